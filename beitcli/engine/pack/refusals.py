"""What `beit pack` refuses: DATA whose masks or boxes a shard of images would lose, and outputs inside of DATA."""

from __future__ import annotations

import os
from collections.abc import Sequence

from beitcli.config.pack import PackConfig
from beitcli.data.sources.base import Source
from beitcli.data.sources.detection import coco_files
from beitcli.data.sources.formats.folder import FolderSource, beside_masks
from beitcli.errors import UsageError
from beitcli.runtime.storage.regular_files import open_regular

_HEAD = 65_536  # bytes
_FIND = "find DATA -name '*.jpg' | beit pack - -o DIR"


def refuse_inside(output: str, references: Sequence[str]) -> None:
    """Raises UsageError if the output lies inside a folder of DATA: its shards would be DATA the next time."""
    target = os.path.realpath(output)
    for reference in references:
        root = os.path.realpath(reference)
        if os.path.isdir(root) and target.startswith(os.path.join(root, "")):
            raise UsageError(f"-o '{output}' lies inside '{reference}'.", "Give a folder outside of DATA.")


def refuse_annotations(source: Source, config: PackConfig) -> None:
    """Raises UsageError if DATA has segmentation masks, boxes or several numbers an image, which shards do not keep."""
    given = {os.path.realpath(reference) for reference in config.data}
    for leaf in source.leaves():
        if leaf.label_names:
            raise UsageError(
                f"'{leaf.name}' has several numbers an image, and shards keep one class.",
                f"To pack the images alone: {_FIND}",
            )
        if not isinstance(leaf, FolderSource) or os.path.realpath(leaf.root) in given:
            continue
        parent = os.path.dirname(leaf.root)
        masks = beside_masks(parent)
        if masks is not None and os.path.realpath(masks[0]) == os.path.realpath(leaf.root):
            raise UsageError(
                f"'{leaf.name}' has masks in '{masks[1]}', which shards do not keep.",
                f"To pack the images alone, give '{leaf.root}'; segmentation trains from the files.",
            )
    for reference in config.data:
        annotations = [file for file in coco_files(reference) if _is_coco(file)] if os.path.isdir(reference) else []
        if annotations:
            raise UsageError(
                f"'{reference}' has boxes in '{annotations[0]}', which shards do not keep.",
                f"Detection trains from the files. To pack the images alone, give their folders, or: {_FIND}",
            )


def _is_coco(file: str) -> bool:
    """Whether JSON begins as COCO's: a labels.json may be anything."""
    try:
        with open_regular(file) as opened:
            start = opened.read(_HEAD)
    except OSError:
        return False
    return any(word in start for word in (b'"images"', b'"annotations"', b'"categories"', b'"info"'))
