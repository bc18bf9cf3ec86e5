"""Compares the pixels of this program's preprocessing with those by the preprocessing that an export states.

Libraries round and order the passes of a resize differently: pixels differ by 3 of 255 levels at most, by 0.3 on
average (measured with timm 1.0, transformers 4.46 and 5, bilinear and bicubic). Another crop differs by 6 and more on
average. transformers rounds the margin of a center crop down, torchvision to even, so that in one of four images its
crop begins one pixel of the resized image earlier.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from beitcli.config.eval_crop import EvalCrop
from beitcli.config.normalization import Normalization
from beitcli.data.transforms.base import evaluation_view, normalize
from beitcli.engine.onnx_export import MODEL_FILE, stated_preprocessing
from beitcli.errors import StorageError
from beitcli.models.checkpoints.handle import CheckpointHandle
from beitcli.models.checkpoints.open import open_pretrained
from beitcli.runtime.deferred_compiler import meta_device

PHOTOS = ((300, 500), (500, 300))  # (H, W) in pixels
MOST, MEAN = 8.0, 0.5  # bounds of the difference, in levels of 0-255

Preprocess = Callable[[list[Image.Image]], torch.Tensor]


@dataclass(frozen=True)
class PhotoCheck:
    """Photos of `PHOTOS` pixels after both preprocessings.

    Attributes:
        ours: (2, 3, H, W), normalized; `theirs` by the export's preprocessing.
        largest: Largest difference of a pixel in levels of 0-255.
        shifted: Whether they are equal only where both round the margin of the center crop alike.
    """

    ours: torch.Tensor
    theirs: torch.Tensor
    largest: float
    shifted: bool


def compare_photos(to: str, checkpoint: CheckpointHandle, folder: Path) -> PhotoCheck:
    """Preprocesses photos as the original and as the export in `folder` says.

    Raises:
        StorageError: The pixels differ by more than resampling does.
    """
    pictures = [_picture(height, width) for height, width in PHOTOS]
    size, crop, normalization = checkpoint.architecture.image_size, checkpoint.crop, checkpoint.normalization
    theirs = _stated(to, folder)(pictures)
    ours = _own(pictures, size, crop, normalization)
    levels = _levels(ours, theirs, normalization)
    if _is_close(levels):
        return PhotoCheck(ours, theirs, float(levels.max()), shifted=False)
    rounded = _own(pictures, size, replace(crop, rounds_down=not crop.rounds_down), normalization)
    either = torch.minimum(levels.mean((1, 2, 3)), _levels(rounded, theirs, normalization).mean((1, 2, 3)))
    if not float(either.max()) <= MEAN:
        raise StorageError(
            f"The preprocessing of the export gives other pixels than '{checkpoint.reference}' takes: they differ by "
            f"{float(levels.mean()):.1f} of 255 on average.",
            "Nothing was written. This is a fault of the export: report it with the output of `beit inspect`.",
        )
    return PhotoCheck(ours, theirs, float(levels.max()), shifted=True)


def _picture(height: int, width: int) -> Image.Image:
    """A photo-like picture: smooth blobs and fine noise, always the same."""
    rng = np.random.default_rng(0)
    blobs = rng.integers(0, 256, (height // 10, width // 10, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(blobs).resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)
    return Image.fromarray((smooth + rng.normal(0, 6, smooth.shape)).clip(0, 255).astype(np.uint8))


def _own(
    pictures: Iterable[Image.Image], size: tuple[int, int], crop: EvalCrop, normalization: Normalization
) -> torch.Tensor:
    view = evaluation_view(size, crop, normalization)
    return normalize(torch.from_numpy(np.stack([view(each)["images"] for each in pictures])), *normalization)


def _levels(ours: torch.Tensor, theirs: torch.Tensor, normalization: Normalization) -> torch.Tensor:
    """(B, 3, H, W) absolute differences of pixels in levels of 0-255; infinite if the shapes differ."""
    if ours.shape != theirs.shape:
        return torch.full_like(ours, float("inf"))
    return (ours - theirs).abs() * torch.tensor(normalization[1]).view(3, 1, 1) * 255


def _is_close(levels: torch.Tensor) -> bool:
    return float(levels.max()) <= MOST and float(levels.mean()) <= MEAN


def _stated(to: str, folder: Path) -> Preprocess:
    """Returns the preprocessing as the library that the export is for reads it."""
    if to == "timm":
        return _timm(folder)
    if to == "onnx":
        return _transform(pretrained_cfg=stated_preprocessing(folder / MODEL_FILE))
    if to == "hf" and importlib.util.find_spec("transformers"):
        return _transformers(folder)
    again = open_pretrained(str(folder))
    return lambda pictures: _own(pictures, again.architecture.image_size, again.crop, again.normalization)


def _timm(folder: Path) -> Preprocess:
    import timm

    with meta_device():
        model = timm.create_model(f"local-dir:{folder}", pretrained=False)
    return _transform(model=model)


def _transform(**stated: Any) -> Preprocess:
    """Returns timm's transform of a model, or of a `pretrained_cfg`."""
    from timm.data import create_transform, resolve_data_config

    transform = create_transform(**resolve_data_config({}, **stated))
    return lambda pictures: torch.stack([transform(each) for each in pictures])


def _transformers(folder: Path) -> Preprocess:
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(folder)
    return lambda pictures: processor(images=pictures, return_tensors="pt")["pixel_values"].float()
