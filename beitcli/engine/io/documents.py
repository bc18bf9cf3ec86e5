"""One JSON document per image, in input order, from the predictions of batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from beitcli.data.loading.batches import Batch
from beitcli.data.sources.base import Source
from beitcli.engine.events import OnEvent, Progress
from beitcli.errors import DataError
from beitcli.runtime.metric_text import counted


class UnreadableImages(DataError):
    """Some images could not be read; the documents of all were yielded before."""


def documents(
    source: Source,
    batches: Iterable[tuple[Batch, Iterable[dict[str, Any]]]],
    on_event: OnEvent,
    at_end: Callable[[], None] | None = None,
) -> Iterator[dict[str, Any]]:
    """Yields `{"path"}` with the prediction of the image, or `{"path", "error"}`.

    Args:
        batches: In order, each with the predictions of its readable images.
        at_end: Called after the last image.

    Raises:
        UnreadableImages: After the last image, where some could not be read.
    """
    bad = done = 0
    for batch, said in batches:
        told = {index: {"path": path, "error": reason} for index, path, reason in batch.bad}
        bad += len(told)
        told |= {index: {"path": source.path(index)} | each for index, each in zip(batch.indices, said, strict=True)}
        for index in sorted(told):
            yield told[index]
        done += len(told)
        on_event(Progress("predict", done, len(source), "image"))
    if at_end is not None:
        at_end()
    if bad:
        raise UnreadableImages(f"{bad} of {counted(len(source), 'image')} cannot be read.", "Their lines say why.")
