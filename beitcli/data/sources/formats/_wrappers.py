"""Wrappers: folders that hold nothing but one folder with the dataset, as unpacked archives often have."""

from __future__ import annotations

import os
from collections.abc import Callable

from beitcli.data.sources.files import folders_below, is_image_name, sibling_names
from beitcli.data.sources.formats._folder_listing import holds_image

_MOST = 8  # folders in one another


def unwrapped(root: str, holds_dataset: Callable[[str], bool]) -> str:
    """Returns the folder that holds the dataset: `root`, or the one below it if `root` is a wrapper; else `root`.

    Args:
        holds_dataset: Whether a folder is laid out as a dataset, such as in splits or as images beside masks.
    """
    inner = root
    for _ in range(_MOST):
        if holds_dataset(inner):
            return inner
        filled = [name for name in folders_below(inner) if holds_image(os.path.join(inner, name))]
        if len(filled) != 1 or any(is_image_name(os.fsencode(name)) for name in sibling_names(inner)):
            return root
        inner = os.path.join(inner, filled[0])
    return root
