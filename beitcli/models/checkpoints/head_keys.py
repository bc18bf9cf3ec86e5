"""The names that heads come in, those for segmentation of the release (mmseg) and of transformers; needs no torch.

| here | the release | transformers on disk | transformers 5 in memory |
|---|---|---|---|
| decode_head.fpn1.0 | backbone.fpn1.0 | fpn1.0 | fpn.fpn1.conv_transpose1 |
| decode_head.psp_modules.0.1.conv | the same | the same | decode_head.psp_modules.blocks.0.conv.convolution |
| decode_head.bottleneck | the same | the same | decode_head.psp_bottleneck |
| decode_head.conv_seg | the same | decode_head.classifier | decode_head.classifier |
| decode_head.auxiliary | auxiliary_head | auxiliary_head | auxiliary_head |
"""

from __future__ import annotations

import re
from collections.abc import Iterable

HEAD = "decode_head."  # what the names of our head's tensors begin with
DETECTION = "detection."  # and those of a detector, which nobody else has
_BEGINNINGS = ("decode_head.", "auxiliary_head.", "fpn")
_UPERNET = ("decode_head.fpn_bottleneck.conv.weight", "decode_head.fpn1.0.weight", "decode_head.bottleneck.conv.weight")
_MASKS = "detection.roi_heads.mask_predictor."
_FASTER_RCNN = ("detection.pyramid.levels.2.0.weight", "detection.roi_heads.box_predictor.cls_score.weight")
_RENAMED = (
    (r"^backbone\.", ""),
    (r"^fpn\.", ""),
    (r"^fpn1\.conv_transpose1\.", "fpn1.0."),
    (r"^fpn1\.normalization\.", "fpn1.1."),
    (r"^fpn1\.conv_transpose2\.", "fpn1.3."),
    (r"^fpn2\.(weight|bias)$", r"fpn2.0.\1"),
    (r"^(fpn[12]\.)", r"decode_head.\1"),
    (r"^auxiliary_head\.", "decode_head.auxiliary."),
    (r"\.psp_modules\.blocks\.(\d)\.conv\.", r".psp_modules.\1.1."),
    (r"\.psp_bottleneck\.", ".bottleneck."),
    (r"\.convolution\.", ".conv."),
    (r"\.normalization\.", ".bn."),
    (r"\.classifier\.", ".conv_seg."),
)


def head_name(name: str) -> str | None:
    """Our name of a tensor of a segmentation or detection head; None where it is none of one."""
    if name.startswith(DETECTION):
        return name
    if not name.removeprefix("backbone.").startswith(_BEGINNINGS):
        return None
    for pattern, ours in _RENAMED:
        name = re.sub(pattern, ours, name)
    return name


def head_kind(names: Iterable[str]) -> str | None:
    """`upernet`, `faster-rcnn` or `mask-rcnn` where our names tell so; None where the head is another."""
    names = set(names)
    if set(_FASTER_RCNN) <= names:
        return "mask-rcnn" if any(name.startswith(_MASKS) for name in names) else "faster-rcnn"
    return "upernet" if set(_UPERNET) <= names else None
