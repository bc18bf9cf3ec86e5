"""Opens every split of DATA, for commands that take all of them: `doctor` and `pack`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from operator import itemgetter

from beitcli.data.sources.base import Source
from beitcli.data.sources.concat import Concat
from beitcli.data.sources.format import Request
from beitcli.data.sources.open_data import open_data
from beitcli.data.sources.splits import canonical
from beitcli.errors import DataError

_SPLITS = ("train", "validation", "test")
_STDIN = "-"  # it can be read once only, and has no splits


def open_every_split(references: Sequence[str], request: Request) -> dict[str | None, Source]:
    """Returns the images of each split by its canonical name, such as validation; None for data without splits.

    These are the split of `request`, else all that any of DATA has. Each has the images, in the order, that it has when
    it is opened alone; what has no splits belongs to the first one, as in training.

    Raises:
        DataError: As in `open_data`.
    """
    parts: dict[str | None, Source] = {}
    for name, of_split in _splits_of(references, request).items():
        opened = [
            open_data([reference for reference, _ in group], replace(request, split=split))
            for split, group in groupby(of_split, key=itemgetter(1))
        ]
        parts[name] = opened[0] if len(opened) == 1 else Concat(opened)
    return parts


def _splits_of(references: Sequence[str], request: Request) -> dict[str | None, list[tuple[str, str | None]]]:
    """Returns the splits to open, each with its references and the split to open of them; None for no split."""
    if request.split is not None:
        return {canonical(request.split): [(reference, request.split) for reference in references]}
    files = [reference for reference in references if reference != _STDIN]
    splits_of = _splits_by_reference(files, Request(reports_missing=request.reports_missing)) if files else {}
    has = [(reference, splits_of.get(reference, set())) for reference in references]
    found: list[str | None] = [split for split in _SPLITS if any(split in splits for _, splits in has)]
    found = found or [None]
    return {
        split: [
            (reference, split if splits else None)
            for reference, splits in has
            if split in splits or (not splits and split == found[0])
        ]
        for split in found
    }


def _splits_by_reference(references: Sequence[str], request: Request) -> dict[str, set[str]]:
    """Returns the splits of each reference. Files of one format are taken together: their names may be the splits."""
    try:
        together = _opened_anyhow(references, request)
    except DataError:  # no split that all have
        if len(references) == 1:
            raise
    else:
        each = together.sources if isinstance(together, Concat) else (together,)
        if len({source.splits for source in each}) == 1:
            return {reference: set(map(canonical, together.splits)) for reference in references}
    return {reference: set(map(canonical, _opened_anyhow([reference], request).splits)) for reference in references}


def _opened_anyhow(references: Sequence[str], request: Request) -> Source:
    """Opens any split of DATA, to see which there are."""
    try:
        return open_data(references, request)
    except DataError:
        return open_data(references, replace(request, role="eval"))  # there is no training split
