"""Figures of each class of a finetuned model, its confusions and its worst images, from evaluation.json and metrics."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any

from beitcli.engine.report.intervals import wilson
from beitcli.engine.report.record import RunRecord
from beitcli.engine.report.run_state import finite_numbers, is_step

MATRIX = 30  # classes at most in a whole confusion matrix
_PAIRS = 20
_PREFIXES = {"iou/": "IoU", "ap/": "AP"}
_COLOUR = re.compile("#[0-9a-f]{6}")
_PICTURE = "data:image/jpeg;base64,"  # that a run writes; any other is left out
_TEXTS = ("class", "predicted")  # what may be told of one of the worst images
_SHARES = ("probability", "pixel_accuracy", "confused")
_COUNTS = ("objects", "hits", "wrong")
_BY_CONFUSION = (
    "Of the images whose most frequent confusion is the same, the one with the fewest right pixels comes first; "
    "then the second of each, and so on."
)


def class_tables(record: RunRecord) -> dict[str, Any]:
    """Returns `{"rows": [...], "matrix": ..., "pairs": [...], "worst": [...]}` as far as the run has them.

    Numbers of evaluation.json that are not what a run writes leave the tables out.
    """
    evaluation = record.evaluation
    with suppress(KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError):
        if evaluation.get("task") == "classify":
            return _classified(evaluation)
        if evaluation.get("task") == "segment":
            return _segmented(evaluation)
        if evaluation.get("task") == "detect":
            return _detected(evaluation)
    for prefix, words in _PREFIXES.items():
        own = {name.removeprefix(prefix): v for name, v in record.held_out.items() if name.startswith(prefix)}
        if own:
            rows = [{"class": name, "value": value} for name, value in own.items()]
            return {"metric": words, "rows": sorted(rows, key=lambda row: row["value"])}
    return {}


def _classified(evaluation: dict[str, Any]) -> dict[str, Any]:
    classes = [str(name) for name in evaluation["classes"]]
    confusion = [(int(t), int(p), int(count)) for t, p, count in evaluation["confusion"]]
    images, right = [0] * len(classes), [0] * len(classes)
    guessed = [0] * len(classes)
    for t, p, count in confusion:
        images[t] += count
        guessed[p] += count
        right[t] += count if t == p else 0
    if "labelled" in evaluation:  # of many classes the rarest confusions are left out
        images, guessed = ([int(count) for count in evaluation[name]] for name in ("labelled", "predicted"))
    rows = [
        {
            "class": name,
            "images": images[number],
            "right": right[number],
            "value": right[number] / images[number],
            "interval": list(wilson(right[number], images[number])),
            "precision": right[number] / guessed[number] if guessed[number] else None,
        }
        for number, name in enumerate(classes)
        if images[number]
    ]
    wrong = sorted((each for each in confusion if each[0] != each[1]), key=lambda each: -each[2])
    return {
        "metric": "accuracy",
        "rows": sorted(rows, key=lambda row: (row["value"], row["class"])),
        "matrix": _matrix(classes, confusion) if len(classes) <= MATRIX else None,
        "pairs": [[classes[t], classes[p], count, images[t]] for t, p, count in wrong[:_PAIRS]],
        "worst": _worst(evaluation),
        "commonest": max(images) / max(1, sum(images)),
    }


def _matrix(classes: list[str], confusion: list[tuple[int, int, int]]) -> dict[str, Any]:
    counts = [[0] * len(classes) for _ in classes]
    for t, p, count in confusion:
        counts[t][p] += count
    return {"classes": classes, "counts": counts}


def _segmented(evaluation: dict[str, Any]) -> dict[str, Any]:
    classes = [str(name) for name in evaluation["classes"]]
    labelled, predicted, hits = ([int(n) for n in evaluation[key]] for key in ("labelled", "predicted", "hits"))
    pixels = max(1, sum(labelled))
    rows = [
        {
            "class": name,
            "share": labelled[number] / pixels,
            "value": hits[number] / (labelled[number] + predicted[number] - hits[number]),
            "recall": hits[number] / labelled[number] if labelled[number] else None,
        }
        for number, name in enumerate(classes)
        if labelled[number] + predicted[number]
    ]
    pairs = [(int(t), int(p), int(count)) for t, p, count in evaluation["confusion"]]
    worst = _worst(evaluation)
    by_confusion = any("confused" in each for each in worst)  # of this version
    return {
        "metric": "IoU",
        "rows": sorted(rows, key=lambda row: (row["value"], row["class"])),
        "matrix": _pixel_matrix(classes, evaluation.get("matrix")),
        "pairs": [[classes[t], classes[p], count, labelled[t]] for t, p, count in pairs[:_PAIRS]],
        "worst": worst,
        **({"worst_note": _BY_CONFUSION, "legend": _legend(evaluation.get("legend"))} if by_confusion else {}),
        "commonest": max(labelled) / pixels,
    }


def _pixel_matrix(classes: list[str], found: Any) -> dict[str, Any] | None:
    """Returns the matrix of pixels, of which a page shows the shares of each row; None without one."""
    if found is None or len(classes) > MATRIX:
        return None
    counts = [[int(count) for count in row] for row in found]
    if [len(row) for row in counts] != [len(classes)] * len(classes) or min(map(min, counts), default=0) < 0:
        raise ValueError("not a row and a column for each class")
    return {"classes": classes, "counts": counts, "of": "pixels"}


def _legend(found: Any) -> list[dict[str, Any]]:
    """Returns the classes in the pictures with their colours, None where it is not `#rrggbb`."""
    keys = []
    for each in found if isinstance(found, list) else ():
        colour = each["colour"]
        known = colour if isinstance(colour, str) and _COLOUR.fullmatch(colour) else None
        keys.append({"class": str(each["class"]), "colour": known, "hatched": each.get("hatched") is True})
    return keys


def _detected(evaluation: dict[str, Any]) -> dict[str, Any]:
    classes = [str(name) for name in evaluation["classes"]]
    objects, predicted, hits = ([int(n) for n in evaluation[key]] for key in ("objects", "predicted", "hits"))
    precisions = [None if value is None else float(value) for value in evaluation["ap"]]
    rows = [
        {
            "class": name,
            "objects": objects[number],
            "value": precisions[number],
            "precision": hits[number] / predicted[number] if predicted[number] else None,
            "recall": hits[number] / objects[number] if objects[number] else None,
        }
        for number, name in enumerate(classes)
        if precisions[number] is not None or predicted[number]
    ]
    score, overlap = float(evaluation["score_threshold"]), float(evaluation["iou_threshold"])
    return {
        "metric": "AP",
        "rows": sorted(rows, key=lambda row: (-1.0 if row["value"] is None else row["value"], row["class"])),
        "worst": _worst(evaluation),
        "note": f"Precision, recall and the images below are of boxes with a score of {score:.0%} and more; one is "
        f"right from an IoU of {overlap:g} with an object of its class on.",
    }


def _worst(evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the worst images that have a path and a picture of ours, with those of their facts that are of ours."""
    found = evaluation.get("worst")
    shown = []
    for each in found if isinstance(found, list) else ():
        if not isinstance(each, dict) or not _is_picture(each.get("picture")) or not isinstance(each.get("path"), str):
            continue
        facts = {name: each[name] for name in ("path", "picture")}
        facts |= {name: each[name] for name in ("labelled", "image") if _is_picture(each.get(name))}
        facts |= {name: each[name] for name in _TEXTS if isinstance(each.get(name), str)}
        facts |= {name: value for name, value in finite_numbers(each).items() if name in _SHARES and 0 <= value <= 1}
        facts |= {name: each[name] for name in _COUNTS if is_step(each.get(name))}
        shown.append(facts)
    return shown


def _is_picture(value: Any) -> bool:
    return isinstance(value, str) and value.startswith(_PICTURE)
