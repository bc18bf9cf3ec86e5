"""Reads what mmseg writes beside the weights of a segmenter: the text of its config, and its classes. Imports no torch.

| in `meta` | mmseg 0.x | mmseg 1.x |
|---|---|---|
| the config's text | config | cfg |
| mean and std, in 0 to 255 | img_norm_cfg = dict(mean=[...], std=[...], to_rgb=True) | data_preprocessor = dict(...) |
| blocks and bins | out_indices=[...], pool_scales=(...) | the same |
| whether 0 is no class | reduce_zero_label=True | the same |
| class names | CLASSES | dataset_meta: classes |
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from beitcli.config.normalization import Normalization
from beitcli.errors import StorageError
from beitcli.models.checkpoints.segmenter_settings import NOTHING_DECLARED, DeclaredSegmenter


@dataclass(frozen=True, kw_only=True)
class MmsegConfig:
    """Values of `meta`.

    Attributes:
        normalization: Mean and standard deviation of images in [0, 1]; None if not declared.
        classes: Class names in the order of the outputs; empty if not declared.
    """

    normalization: Normalization | None = None
    classes: tuple[str, ...] = ()
    segmenter: DeclaredSegmenter = NOTHING_DECLARED


def of_mmseg(meta: Mapping[str, Any]) -> MmsegConfig:
    """Reads `meta`, whose plain values the weights' reader has kept.

    Raises:
        StorageError: The model takes images in the order blue, green, red.
    """
    text = meta.get("config") or meta.get("cfg") or ""
    text = text if isinstance(text, str) else ""
    if re.search(r"\b(bgr_)?to_rgb\s*=\s*False", text):
        raise StorageError(
            "The settings beside the weights state to_rgb = False: this model takes blue, green and red.",
            "Give a model of images in the order red, green, blue.",
        )
    mean, std = _numbers(text, "mean"), _numbers(text, "std")
    in_unit = [tuple(round(value / 255, 6) for value in values) for values in (mean, std)]
    return MmsegConfig(
        normalization=(in_unit[0], in_unit[1]) if len(mean) == len(std) == 3 else None,
        classes=tuple(meta.get("CLASSES") or meta.get("classes") or ()),
        segmenter=DeclaredSegmenter(
            blocks=[int(block) for block in _numbers(text, "out_indices")] or None,
            pools=[int(bins) for bins in _numbers(text, "pool_scales")] or None,
            reduce_zero_label=_flag(text, "reduce_zero_label"),
        ),
    )


def _flag(text: str, name: str) -> bool | None:
    """Returns whether `name` is set anywhere; None if the text does not mention it."""
    values = re.findall(rf"\b{name}\s*=\s*(True|False)\b", text)
    return "True" in values if values else None


def _numbers(text: str, name: str) -> list[float]:
    """Returns the list that is first assigned to `name`; empty if there is none, or not of plain numbers."""
    found = re.search(rf"\b{name}\s*=\s*[\[(]([-+.\deE,\s]*)[\])]", text)
    try:
        return [float(part) for part in found[1].split(",") if part.strip()] if found else []
    except ValueError:
        return []
