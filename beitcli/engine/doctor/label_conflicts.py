"""Finds copies of an image that are labelled as another class: one of the two labels is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from beitcli.data.sources.base import Source
from beitcli.engine.doctor.copies import Copies


def label_conflicts(
    copies: Iterable[Copies], pixels: np.ndarray, place: Callable[[int], tuple[Source, int]]
) -> list[tuple[int, int, str, str]]:
    """Returns index, index of the copy that has another class, and both classes, of each such image.

    Images that are only nearly equal are not compared: frames of one film may well show different things.

    Args:
        pixels: (n, 16) uint8, digests of the decoded pixels.
        place: Returns the source of an image and its index in there.
    """
    found = []
    for group in copies:
        firsts: dict[bytes, tuple[int, str]] = {}  # by digest: a group of near copies may hold equal ones
        for member in group.members:
            name = _class_of(*place(member))
            if name is None:
                continue
            first, other = firsts.setdefault(pixels[member].tobytes(), (member, name))
            if name != other:
                found.append((member, first, name, other))
    return found


def _class_of(source: Source, index: int) -> str | None:
    label = source.label(index)
    return None if label is None or source.classes is None else source.classes[label]
