"""The report of one or several runs as plain data: verdict, figures, curves, differing settings, next commands."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from beitcli.engine.report.classes import class_tables
from beitcli.engine.report.intervals import interval_of
from beitcli.engine.report.next_steps import next_commands, note_of, tokenizer_commands
from beitcli.engine.report.record import RunRecord
from beitcli.engine.report.run_state import is_step, newest_folder
from beitcli.engine.report.verdict import fixed_guess, verdict_of
from beitcli.escaping import shell_line
from beitcli.runtime.metric_text import (
    HELD_OUT,
    counted,
    figure_text,
    frequent_token,
    is_idle,
    is_share,
    measured_images,
    metric_label,
    metric_title,
    percent,
)

_FINGERPRINT = 16  # characters that are shown
_POINTS = 400  # of a curve at most
_OF_VERDICT = (
    "masked_accuracy_std_error", "loss_lead_std_error", "measured_patches", "measured_images", "measured_tokens",
)  # fmt: skip
_NOT_CURVES = ("step", "epoch", *(f"{HELD_OUT}{name}" for name in _OF_VERDICT))
_ENTROPY = "entropy of the tokens (best guess without the image)"
_BASELINES = {  # metric -> the figure of a guess that ignores the image
    "masked_accuracy": ("baseline_accuracy", f"always {frequent_token(1)}"),
    "loss": ("unigram_entropy", _ENTROPY),
    "masked_loss": ("unigram_entropy", _ENTROPY),
}
_PIXEL_BASELINE = ("baseline_loss", "always the mean colour")
_COMMONEST_CLASS = "always the most frequent class"
_FIRST = ("masked_accuracy", "top1", "miou", "ap", "mean_ap", "psnr", "loss", "probe_top1", "perplexity")
_KEY = (
    "masked_accuracy", "baseline_accuracy", "loss", "masked_loss", "unigram_entropy", "baseline_loss", "top1", "top5",
    "mean_ap", "micro_f1", "miou", "pixel_accuracy", "mean_accuracy", "ap", "ap50", "ap75", "ap_small", "ap_medium",
    "ap_large", "mask_ap", "psnr", "mae", "cosine", "codes_used", "perplexity", "commonest_share", "images",
)  # fmt: skip
_MEASURED = ("patches", "tokens")


def document_of(records: Sequence[RunRecord], names: Sequence[str]) -> dict[str, Any]:
    """Returns the report as plain values.

    Args:
        names: What the runs are called, in the same order.
    """
    return {
        "runs": [_run(record, name) for record, name in zip(records, names, strict=True)],
        "differing": differing_settings(records),
        "charts": charts_of(records),
    }


def _run(record: RunRecord, name: str) -> dict[str, Any]:
    verdict = verdict_of(record.measured)
    last = record.rows[-1] if record.rows else {}
    tokenizer = tokenizer_commands(record.settings) if verdict.needs_tokenizer else []
    commands = tokenizer + next_commands(
        record.command,
        record.settings,
        str(record.path),
        decodes="psnr" in record.held_out,
        can_resume=record.state in ("stopped", "empty"),
        has_model=newest_folder(record.path / "checkpoints") is not None,
    )
    measurings = record.measurings
    evaluated = record.evaluation.get("step")
    return {
        "name": name,
        "path": str(record.path),
        "command": record.command,
        "recipe": str(record.settings.get("recipe", "")),
        "state": record.state,
        "step": record.step,
        "measured_step": measurings[-1][0] if measurings else None,
        "epoch": last.get("epoch"),
        "seconds": record.time.training,
        "total_seconds": record.time.total,
        "measured_images": images_of(record.on_training),
        "verdict": {"grade": verdict.grade, "heading": verdict.heading, "text": verdict.text},
        "figures": _figures(record),
        "facts": _facts(record, last),
        "bad": {"count": record.bad_count, "named": [list(each) for each in record.bad]},
        "next": [shell_line(words) for words in commands],
        "next_notes": {shell_line(words): note for words in commands if (note := note_of(words))},
        "classes": class_tables(record),
        "classes_step": evaluated if is_step(evaluated) else None,
    }


def _figures(record: RunRecord) -> list[dict[str, Any]]:
    """Returns the figures of the measured images, the known ones first; those of one class are in `class_tables`.

    A share has the number of `images`, an accuracy also its `interval` of 95%; `title` says them too, for display.
    """
    classes = record.measured.classes
    hidden = {name for name in record.held_out if "/" in name or name in _OF_VERDICT or is_idle(name, classes)}
    own = {name: value for name, value in record.held_out.items() if name not in hidden}
    names = [*(name for name in _KEY if name in own), *(name for name in own if name not in _KEY)]
    return [_figure_of(name, own[name], int(own.get("images", 0))) for name in names]


def _figure_of(name: str, value: float, images: int) -> dict[str, Any]:
    figure: dict[str, Any] = {"name": _label(name), "title": _title(name)}
    figure |= {"text": figure_text(name, value), "value": value}
    if name == "baseline_accuracy" and not value:
        figure["title"] = figure["title"].replace(frequent_token(1), frequent_token(value))
    if images and is_share(name):
        figure["images"] = images
        figure["title"] += f" of {counted(images, 'image')}"
        if (interval := interval_of(name, {name: value, "images": images})) is not None:
            figure["interval"] = interval
            figure["title"] += " (95%: {} to {})".format(*map(percent, interval))
    return figure


def _label(name: str) -> str:
    """Returns the name of a figure in the JSON document, which stays what it is."""
    return _ENTROPY if name == "unigram_entropy" else metric_label(name)


def _title(name: str) -> str:
    return _ENTROPY if name == "unigram_entropy" else metric_title(name)


def _speed(record: RunRecord, last: dict[str, float]) -> str:
    """Returns the images per second of the whole training, and of the last logged steps."""
    if "images_per_second" not in last:
        return ""
    at_the_end, batch_size = last["images_per_second"], record.settings.get("batch_size")
    if record.state == "running":  # whose checkpoint, with its time, is behind
        return f"{at_the_end:,.1f} images/s"
    if not (isinstance(batch_size, int) and record.time.training > 0 and record.step):
        return f"{at_the_end:,.1f} images/s at the end"
    average = record.step * batch_size / record.time.training
    return f"{average:,.1f} images/s on average, {at_the_end:,.1f} at the end"


def _facts(record: RunRecord, last: dict[str, float]) -> dict[str, str]:
    settings = record.settings
    data = settings.get("data")
    facts = {
        "made by": f"beit {record.command}, recipe {settings.get('recipe', '?')}",
        "data": " ".join(map(str, data)) if isinstance(data, list) else str(data or ""),
        "fingerprint of the data": record.fingerprint[:_FINGERPRINT],
        "time": str(record.time) if record.time.total else "",
        "measured on": ", ".join(filter(None, (str(settings.get("val") or ""), *_measured_counts(record)))),
        "speed": _speed(record, last),
        "waiting for data": f"{last['data_wait_share']:.0%} of the time" if "data_wait_share" in last else "",
    }
    return {name: text for name, text in facts.items() if text}


def _measured_counts(record: RunRecord) -> Iterator[str]:
    images = record.held_out.get("measured_images", record.held_out.get("images"))
    if images is not None:
        yield measured_images(round(images), on_training=record.on_training)
    elif record.held_out:  # of pixels and of tokenizers they are not counted
        yield images_of(record.on_training)
    for name in _MEASURED:
        if (number := record.held_out.get(f"measured_{name}")) is not None:
            yield counted(round(number), name.removesuffix("s"))


def images_of(on_training: bool) -> str:
    """Returns what the measured images of a run are, for display."""
    return "training images" if on_training else "held-out images"


def differing_settings(records: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """Returns the settings that are not the same in all runs: name, and a text for each run."""
    names = dict.fromkeys(name for record in records for name in record.settings)
    rows = [{"name": "command", "values": [record.command for record in records]}]
    rows += [{"name": name, "values": [_setting(record.settings.get(name)) for record in records]} for name in names]
    rows.append(
        {"name": "fingerprint of the data", "values": [record.fingerprint[:_FINGERPRINT] for record in records]}
    )
    return [row for row in rows if len(set(row["values"])) > 1]


def _setting(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else "-" if value is None else str(value)


def charts_of(records: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """Returns one chart for each metric: its curve in training and on the measured images, and its baseline."""
    found = dict.fromkeys(
        name.removeprefix(HELD_OUT)
        for record in records
        for row in record.rows
        for name in row
        if name not in _NOT_CURVES and "/" not in name
    )
    drawn_with = {baseline for baseline, _ in (*_BASELINES.values(), _PIXEL_BASELINE)}
    classes = max((record.measured.classes for record in records), default=0)
    names = [name for name in found if name not in drawn_with and name != "images" and not is_idle(name, classes)]
    names.sort(key=lambda name: _FIRST.index(name) if name in _FIRST else len(_FIRST))
    charts = []
    for name in names:
        series = [line for number, record in enumerate(records) for line in _lines(number, record, name)]
        if any(len(line["points"]) > 1 for line in series) or name in _FIRST:
            chart = {"name": name, "title": metric_title(name), "key": name in _FIRST, "share": is_share(name)}
            charts.append(chart | {"series": series})
    return charts


def _lines(number: int, record: RunRecord, name: str) -> Iterable[dict[str, Any]]:
    measured = f"{HELD_OUT}{name}"
    baseline, words = _BASELINES.get(name, ("", ""))
    if name in ("loss", "masked_loss") and not any("unigram_entropy" in row for row in record.rows):
        baseline, words = _PIXEL_BASELINE
    has_measured_baseline = any(f"{HELD_OUT}{baseline}" in row for row in record.rows) if baseline else False
    curves = [
        (name, "training", "training"),
        (measured, "held-out", images_of(record.on_training)),
        (f"{HELD_OUT}{baseline}" if has_measured_baseline else baseline, "baseline", words),
    ]
    for key, role, label in curves:
        points = [(int(row["step"]), row[key]) for row in record.rows if key and key in row]
        if points:
            drawn = thinned(points)
            if key.endswith("baseline_accuracy") and not any(share for _, share in points):
                label = f"always {frequent_token(0)}"
            line: dict[str, Any] = {"run": number, "role": role, "label": label, "points": drawn}
            if role == "held-out" and (spans := _spans(record, name, {int(step) for step, _ in drawn})):
                line["spans"] = spans
            yield line
    steps = [step for step, metrics in record.measurings if name in metrics]
    guess = fixed_guess(record.measured, name) if steps else 0.0
    if guess:
        ends = thinned([(step, guess) for step in dict.fromkeys((steps[0], steps[-1]))])
        yield {"run": number, "role": "baseline", "label": _COMMONEST_CLASS, "points": ends}


def _spans(record: RunRecord, name: str, steps: set[int]) -> list[list[float]]:
    """Returns [step, lowest, highest] of 95% of a metric at the steps where it has an interval."""
    found = [(step, interval_of(name, own)) for step, own in record.measurings if step in steps and name in own]
    return [[step, *(float(f"{end:.6g}") for end in ends)] for step, ends in found if ends is not None]


def thinned(points: Sequence[tuple[int, float]]) -> list[list[float]]:
    """Returns at most `_POINTS` of the points, at equal distances, the last one included."""
    every = -(-len(points) // _POINTS) or 1
    kept = list(points[::every])
    if kept and kept[-1] != points[-1]:
        kept.append(points[-1])
    return [[step, float(f"{value:.6g}")] for step, value in kept]
