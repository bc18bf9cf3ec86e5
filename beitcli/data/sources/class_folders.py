"""Tells a folder of one class, given where the folder of all classes is needed."""

from __future__ import annotations

import os

from beitcli.data.sources.files import folders_below, is_image_name
from beitcli.data.sources.splits import is_split

_MOST = 1000  # folders looked into
_NO_CLASSES = ("images", "masks")


def class_folders_hint(name: str) -> str:
    """Returns a hint to give the folder above, if several folders there hold images; else nothing."""
    parent = os.path.dirname(name.rstrip("/"))
    own = os.path.basename(name.rstrip("/"))
    if own in _NO_CLASSES or is_split(own) or not parent or not os.path.isdir(name) or not _holds_images(name):
        return ""
    found = sum(_holds_images(os.path.join(parent, each)) for each in folders_below(parent)[:_MOST])
    return f"If the {found:,} folders with images in '{parent}' are the classes, give '{parent}'." if found > 1 else ""


def _holds_images(folder: str) -> bool:
    """Whether an image lies in the folder itself, by the names there."""
    try:
        with os.scandir(os.fsencode(folder)) as entries:
            return any(is_image_name(entry.name) for entry in entries)
    except OSError:
        return False
