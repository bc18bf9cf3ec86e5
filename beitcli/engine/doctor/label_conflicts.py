"""Finds copies of an image that are labelled as another class: one of the two labels is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from beitcli.data.sources.base import Source
from beitcli.engine.doctor.copies import Copies


def label_conflicts(
    copies: Iterable[Copies], place: Callable[[int], tuple[Source, int]]
) -> list[tuple[int, int, str, str]]:
    """Returns index, index of the copy that has another class, and both classes, of each such image.

    Nearly equal images are not taken: frames of one film may well show different things.

    Args:
        place: Returns the source of an image and its index in there.
    """
    found = []
    for group in copies:
        if group.kind == "near":
            continue
        labelled = [(member, name) for member in group.members if (name := _class_of(*place(member))) is not None]
        for member, name in labelled[1:]:
            first, other = labelled[0]
            if name != other:
                found.append((member, first, name, other))
    return found


def _class_of(source: Source, index: int) -> str | None:
    label = source.label(index)
    return None if label is None or source.classes is None else source.classes[label]
