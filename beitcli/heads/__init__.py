"""Segmentation heads by name. A new head is a new file and a line in `HEADS`."""

from __future__ import annotations

from collections.abc import Callable

from beitcli.heads.convolution import SegmentationHead
from beitcli.heads.setr_pup import SetrPup
from beitcli.heads.upernet import UPerNet

HEADS: dict[str, Callable[[int, int, int], SegmentationHead]] = {"upernet": UPerNet, "setr-pup": SetrPup}


def make_head(name: str, width: int, patch_size: int, classes: int) -> SegmentationHead:
    """The head of that name, for four maps of `width` channels."""
    return HEADS[name](width, patch_size, classes)
