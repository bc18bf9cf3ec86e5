"""RUN/report.html: the report as one page that makes no request."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from beitcli.engine.report.document import document_of, images_of
from beitcli.engine.report.record import preview_files, read_record
from beitcli.pictures.page_file import Page, assemble, image_url, page_part, plain_section
from beitcli.runtime.metric_text import metric_label
from beitcli.runtime.storage.regular_files import open_regular
from beitcli.runtime.storage.run_dir import PREVIEWS

PAGE = "report.html"
_PICTURES = 24  # of a page, at equal distances over the run
_WIDTH = 1120  # pixels of a preview at most
_QUALITY = 82
_TWICE = metric_label("mae_normalized")  # the error of pixels in [0, 1], which is shown, times two
_NEEDS_SCRIPT = "Curves, previews and classes are drawn by JavaScript, which is off here."


def report_page(runs: Sequence[Path], *, finished: bool = False) -> str:
    """Returns the HTML of the report of one or several runs, to be encoded as UTF-8.

    Args:
        finished: Whether they are at their end, though their process still holds them.

    Raises:
        OSError, ValueError: A run has no readable config.toml.
    """
    document = report_document(runs, finished=finished)
    strips = [
        {**strip, "pictures": _pictures(strip["pictures"], max(4, _PICTURES // len(runs)))}
        for strip in document["previews"]
    ]
    document["previews"] = [strip for strip in strips if strip["pictures"]]  # all of a run's may be damaged
    for run in document["runs"]:
        run["figures"] = [each for each in run["figures"] if each["name"] != _TWICE]
    names = ", ".join(run["name"] for run in document["runs"])
    return assemble(
        Page(
            title=f"Report: {names}",
            body=page_part("report/page.html"),
            styles=page_part("report/style.css"),
            script=page_part("report/page.js"),
            data=document,
            plain="".join(map(_plain, document["runs"])),
        )
    )


def _plain(run: dict[str, Any]) -> str:
    """Returns the essentials of a run for a reader without JavaScript: verdict, figures, facts, next commands."""
    figures = [(each["title"], each["text"]) for each in run["figures"]]
    measured = run["measured_step"]
    elsewhere = f", measured at step {measured:,}" if measured not in (None, run["step"]) else ""
    rows = [("state", f"{run['state']}, step {run['step']:,}{elsewhere}"), *figures, *run["facts"].items()]
    for line in run["next"]:
        rows += [("next", line), *(("", note) for note in [run["next_notes"].get(line)] if note)]
    rows += [("unreadable images", f"{run['bad']['count']:,}")] if run["bad"]["count"] else []
    return plain_section(run["name"], [run["verdict"]["text"], _NEEDS_SCRIPT], rows)


def report_document(runs: Sequence[Path], *, finished: bool = False) -> dict[str, Any]:
    """Returns the report as plain values; the previews are paths. Arguments and errors are those of `report_page`."""
    records = [read_record(path) for path in runs]
    if finished:
        records = [replace(record, state="done") for record in records]
    names = distinct_names(runs)
    document = document_of(records, names)
    document["previews"] = []
    for record, name in zip(records, names, strict=True):
        own, tokenizer = name if len(names) > 1 else "", record.tokenizer
        images = images_of(record.on_training)
        pictures = preview_files(record.path / PREVIEWS)
        if not pictures:
            pictures = preview_files(record.path / "tokenizer" / PREVIEWS)
            own = ", ".join(filter(None, (own, "its tokenizer")))
            images = images_of(tokenizer is not None and tokenizer.on_training)
        strip = [{"step": step, "path": str(path)} for path, step in pictures]
        document["previews"] += [{"name": own, "images": images, "pictures": strip}] if strip else []
    return document


def distinct_names(runs: Sequence[Path]) -> list[str]:
    """Returns the shortest ends of the paths that tell them apart."""
    parts = [path.resolve().parts for path in runs]
    for depth in range(1, max(map(len, parts), default=1) + 1):
        names = ["/".join(each[-depth:]) for each in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in runs]


def _pictures(found: Sequence[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """Returns step and `data:` URL of the previews, at most `most`, the first and the last included."""
    if len(found) > most:
        found = [found[round(place * (len(found) - 1) / (most - 1))] for place in range(most)]
    drawn = []
    for each in found:
        with (
            suppress(OSError, ValueError, Image.DecompressionBombError),  # damaged, or of a stranger
            open_regular(each["path"]) as file,
            Image.open(file, formats=["PNG"]) as image,
        ):
            image.thumbnail((_WIDTH, 4 * _WIDTH))
            drawn.append({"step": each["step"], "width": image.width, "url": image_url(image, quality=_QUALITY)})
    return drawn
