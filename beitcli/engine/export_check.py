"""Whether an export computes what its original does: both run in fp32 on the CPU over two images of noise.

The export is read from the disk by the program it is for: timm, and transformers where it is installed; the release's
layout, whose code is no package, by this program's own reader.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from beitcli.errors import StorageError
from beitcli.models.beit import Classifier
from beitcli.models.published import HF_CLASSES, Tensors
from beitcli.models.references import OpenedModel, masked_image_model_of, open_pretrained

TOLERANCE = 1e-4  # of the largest output, or of 1 where that is smaller; seen: below 1e-5

Outputs = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Checked:
    """How far the export is from its original.

    Attributes:
        compared: `logits`; or `features`, (B, N, D), where the layout has no head for them.
        argmax_agreement: Share of equal decisions (0-1); None of features.
        reader: What read the export.
    """

    compared: str
    max_difference: float
    argmax_agreement: float | None
    reader: str


@torch.no_grad()
def compare(to: str, opened: OpenedModel, tensors: Tensors, folder: Path) -> Checked:
    """Runs the original and the export in `folder`.

    Args:
        tensors: The original's, under our names.

    Raises:
        StorageError: They differ by more than the tolerance.
    """
    architecture = opened.architecture
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, *architecture.image_size, generator=generator)
    mask = torch.rand(2, architecture.num_patches, generator=generator) < 0.4
    features = opened.kind == "backbone" or (opened.kind == "masked-image-model" and to == "timm")
    before = _ours(opened, tensors, features)(images, mask)
    outputs, reader = _reader(to, opened, folder, features)
    after = outputs(images, mask)
    difference = float((before - after).abs().max())
    if not difference <= TOLERANCE * max(1.0, float(before.abs().max())):
        raise StorageError(
            f"The export differs from '{opened.reference}' by {difference:.3g} in its outputs (read by {reader}).",
            "Nothing was written. This is a fault of the export: report it with the output of `beit inspect`.",
        )
    agreement = None if features else float((before.argmax(-1) == after.argmax(-1)).double().mean())
    return Checked("features" if features else "logits", difference, agreement, reader)


def _ours(opened: OpenedModel, tensors: Tensors, features: bool) -> Outputs:
    """The model under our names: logits, (M, V) or (B, classes), or the features of the patches, (B, N, D)."""
    found = opened.described
    if found.kind == "masked-image-model":
        model = masked_image_model_of(opened, tensors)
        return (lambda images, mask: model.hidden_features(images, None)) if features else model
    pooling = found.pooling if found.kind == "classifier" else "token" if "norm.weight" in tensors else "mean"
    classifier = Classifier(found.architecture, found.outputs, pooling=pooling).eval()
    classifier.load_state_dict({name: tensor for name, tensor in tensors.items() if name != "mask_token"}, strict=False)
    if features:
        return lambda images, mask: classifier.forward_features(images)[:, 1:]
    return lambda images, mask: classifier(images)


def _reader(to: str, opened: OpenedModel, folder: Path, features: bool) -> tuple[Outputs, str]:
    if to == "timm":
        return _timm(folder, features)
    if to == "hf" and importlib.util.find_spec("transformers"):
        return _transformers(opened.kind, folder)
    again = open_pretrained(str(folder))
    return _ours(again, again.tensors(), features), "this program's own reader"


def _timm(folder: Path, features: bool) -> tuple[Outputs, str]:
    import timm

    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    reader = f"timm {timm.__version__}"
    if features:
        return lambda images, mask: model.forward_features(images)[:, 1:], reader
    return lambda images, mask: model(images), reader


def _transformers(kind: str, folder: Path) -> tuple[Outputs, str]:
    import transformers

    shows_bars = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        model: Any = getattr(transformers, HF_CLASSES[kind]).from_pretrained(folder).eval()
    finally:
        if shows_bars:
            transformers.utils.logging.enable_progress_bar()
    reader = f"transformers {transformers.__version__}"
    if kind == "masked-image-model":
        return lambda images, mask: model(images, bool_masked_pos=mask).logits[mask], reader
    if kind == "classifier":
        return lambda images, mask: model(images).logits, reader
    return lambda images, mask: model(images).last_hidden_state[:, 1:], reader
