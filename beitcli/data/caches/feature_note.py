"""What kept features are of, for people: model and images, in `about.json` beside what they depend on; no numpy.

A folder of features is named by a hash, which says nothing. The note is no part of it: the same features may be asked
for by other names.
"""

from __future__ import annotations

from pathlib import Path

from beitcli.runtime.metric_text import counted
from beitcli.runtime.storage.regular_files import read_regular
from beitcli.runtime.storage.safe_json import parse_json

ABOUT = "about.json"
OF = "of"
_LARGEST = 4 << 20  # bytes of an about.json that is looked into: of many unreadable images it is larger
_LONGEST = 200  # characters


def note_of(model: str, data: str, images: int) -> str:
    """Returns the note: `runs/mine, 1,000 images of photos/`."""
    return f"{model}, {counted(images, 'image')} of {data}"[:_LONGEST]


def features_of(folder: Path) -> str:
    """Returns the note of a folder of features; of those without one their number of images; empty if unreadable."""
    try:
        if (folder / ABOUT).stat().st_size > _LARGEST:
            return ""
        document = parse_json(read_regular(folder / ABOUT))
        note = document.get(OF)
        if isinstance(note, str) and note:
            return note[:_LONGEST]
        images = document["about"]["images"]
        return counted(images, "image") if type(images) is int else ""
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return ""
