"""Reads and writes the image processors of transformers: preprocessor_config.json. Imports no torch.

| processor | `size` as a number | default size, crop |
|---|---|---|
| Beit, ViT and others | both sides | 224 x 224, no crop |
| DeiT | both sides | 256 x 256, center crop of 224 x 224 |
| CLIP, ChineseCLIP, Bit | the shorter side | 224, center crop of 224 x 224 |
| ConvNext | the shorter side | 384; below 384: size / crop_pct, center crop of size; from 384: both sides |
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from beitcli.config.eval_crop import INTERPOLATIONS, RELEASED_CROP, EvalCrop, pct_of_sides
from beitcli.config.normalization import INCEPTION, Normalization

_CONVNEXT = ("ConvNext", "Convnext")
_BY_SHORTEST_EDGE = ("CLIP", "ChineseCLIP", "Bit", *_CONVNEXT)
_CROPS = ("DeiT", "CLIP", "ChineseCLIP", "Bit")  # where do_center_crop is not stated
_SIZES = {"DeiT": 256, "Conv": 384}  # where no size is stated; the others 224
_BILINEAR = ("ViT",)  # where no filter is stated; the others bicubic


def hf_normalization(preprocessing: Mapping[str, Any]) -> Normalization | None:
    """Returns mean and standard deviation for images in [0, 1], whatever range transformers normalizes in."""
    largest = 255 * (preprocessing.get("rescale_factor", 1 / 255) if preprocessing.get("do_rescale", True) else 1)
    mean, std = (preprocessing.get(name) for name in ("image_mean", "image_std"))
    if not preprocessing.get("do_normalize", True):
        mean, std = 0.0, 1.0
    if math.isclose(largest, 1):
        nothing = mean is None and std is None
        return None if nothing else (_channels(mean, INCEPTION[0]), _channels(std, INCEPTION[1]))
    means, stds = _channels(mean, INCEPTION[0]), _channels(std, INCEPTION[1])
    return tuple(each / largest for each in means), tuple(each / largest for each in stds)


def _channels(value: Any, default: tuple[float, ...]) -> tuple[float, ...]:
    """Returns three numbers, of a list or of one number for all channels."""
    if value is None:
        return default
    return (value,) * 3 if isinstance(value, int | float) else tuple(value)


def hf_crop(preprocessing: Mapping[str, Any]) -> EvalCrop:
    """Returns what a processor does to the shape of an image; without a processor, the release's center crop.

    A model takes images of one size, so that a shorter side without a crop means the square in its middle.

    Raises:
        ValueError: A size is none.
    """
    if not any(name in preprocessing for name in ("size", "crop_size", "do_center_crop", "do_resize", "resample")):
        return RELEASED_CROP
    kind = str(preprocessing.get("image_processor_type") or preprocessing.get("feature_extractor_type") or "Beit")
    resample = preprocessing.get("resample")
    resample = (2 if kind.startswith(_BILINEAR) else 3) if resample is None else resample
    if not isinstance(resample, int) or not 0 <= resample < len(INTERPOLATIONS):
        raise ValueError(f"resample {resample!r}")
    crop = EvalCrop(crop_pct=1.0, crop_mode="squash", interpolation=INTERPOLATIONS[resample])
    if preprocessing.get("do_resize") is False:
        return crop  # images of the model's own size stay as they are
    side, keeps_shape = _resized(preprocessing, kind)
    if kind.startswith(_CONVNEXT):
        pct = preprocessing.get("crop_pct") or 224 / 256
        return crop if side >= 384 else replace(crop, crop_mode="center", crop_pct=pct, rounds_down=True)
    if preprocessing.get("do_center_crop", kind.startswith(_CROPS)):
        kept = _sides(preprocessing.get("crop_size") or 224)[0]
        crop = replace(crop, crop_pct=pct_of_sides(kept, side) if kept < side else 1.0, rounds_down=True)
    return replace(crop, crop_mode="center", rounds_down=True) if keeps_shape else crop


def _resized(preprocessing: Mapping[str, Any], kind: str) -> tuple[int, bool]:
    """Returns the height that images are resized to, and whether it is the length of the shorter side instead."""
    size = preprocessing.get("size") or next((side for name, side in _SIZES.items() if kind.startswith(name)), 224)
    if isinstance(size, Mapping):
        return _sides(size)[0], not size.get("height")
    return _sides(size)[0], kind.startswith(_BY_SHORTEST_EDGE) and not isinstance(size, list | tuple)


def _sides(size: Any) -> tuple[int, int]:
    """Returns (H, W) of a number, a pair or a dict. Raises ValueError for anything else."""
    if isinstance(size, Mapping):
        edge = size.get("shortest_edge") or size.get("longest_edge")
        size = (size.get("height", edge), size.get("width", edge))
    height, width = (size, size) if isinstance(size, int | float) else size
    if not all(isinstance(side, int | float) and side >= 1 for side in (height, width)):
        raise ValueError(f"size {size!r}")
    return int(height), int(width)


def hf_preprocessing(size: tuple[int, int], normalization: Normalization, crop: EvalCrop) -> dict[str, Any]:
    """Returns preprocessor_config.json of a processor that gives the model's own pixels.

    CLIPImageProcessor resizes the shorter side; BeitImageProcessor resizes both. Both are read alike by transformers 4
    and 5.

    Args:
        size: (H, W) of the model's images.
    """
    height, width = size
    down, across = crop.resized(size)
    keeps_shape = crop.crop_mode == "center"
    return {
        "image_processor_type": "CLIPImageProcessor" if keeps_shape else "BeitImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": down} if keeps_shape else {"height": down, "width": across},
        "resample": INTERPOLATIONS.index(crop.interpolation),
        "do_center_crop": keeps_shape or (down, across) != size,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(normalization[0]),
        "image_std": list(normalization[1]),
        **({"do_convert_rgb": True} if keeps_shape else {"do_reduce_labels": False}),
    }
