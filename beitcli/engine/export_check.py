"""Compares an export with the original before it is kept: outputs on noise, and pixels and outputs on photos.

Both models run in fp32 on the CPU. The export is loaded by the library it is for: timm, or transformers if installed.
The release's format, whose code is not a package, is loaded by this program's reader, an ONNX graph by onnxruntime.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from beitcli import __version__
from beitcli.engine.export_photos import PhotoCheck, compare_photos
from beitcli.engine.onnx_export import MODEL_FILE, open_onnx
from beitcli.errors import StorageError
from beitcli.models.checkpoints.build import masked_image_model_of
from beitcli.models.checkpoints.export_formats import HF_CLASSES, Tensors
from beitcli.models.checkpoints.handle import CheckpointHandle
from beitcli.models.checkpoints.open import open_pretrained
from beitcli.models.networks.blocks import Backbone
from beitcli.models.networks.classifier import Classifier

TOLERANCE = 1e-4  # relative to the largest output, or to 1 if that is smaller; observed: below 1e-5

Outputs = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Checked:
    """Result of the comparison.

    Attributes:
        compared: `logits`; or `features`, (B, L, D), if the format has no head for them.
        argmax_agreement: Fraction of equal argmax (0-1); None for features.
        reader: Library that loaded the export.
        photos: What the stated preprocessing makes of photos.
        photo_difference: Largest difference of the outputs on them.
    """

    compared: str
    max_difference: float
    argmax_agreement: float | None
    reader: str
    photos: PhotoCheck
    photo_difference: float


@torch.no_grad()
def compare(to: str, checkpoint: CheckpointHandle, tensors: Tensors, folder: Path) -> Checked:
    """Runs the original and the export in `folder`, and compares their outputs.

    Args:
        tensors: State dict of the original, with this package's names.

    Raises:
        StorageError: They, or the pixels by the stated preprocessing, differ by more than the tolerance.
    """
    architecture = checkpoint.architecture
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, *architecture.image_size, generator=generator)
    mask = torch.rand(2, architecture.num_patches, generator=generator) < 0.4
    features = checkpoint.kind == "backbone" or (checkpoint.kind == "masked-image-model" and to in ("timm", "onnx"))
    own = _ours(checkpoint, tensors, features)
    before = own(images, mask)
    outputs, reader = _reader(to, checkpoint, folder, features)
    after = outputs(images, mask)
    difference = float((before - after).abs().max())
    if not difference <= TOLERANCE * max(1.0, float(before.abs().max())):
        raise StorageError(
            f"The export differs from '{checkpoint.reference}' by {difference:.3g} in its outputs (read by {reader}).",
            "Nothing was written. This is a fault of the export: report it with the output of `beit inspect`.",
        )
    agreement = None if features else float((before.argmax(-1) == after.argmax(-1)).double().mean())
    photos = compare_photos(to, checkpoint, folder)
    on_photos = float((own(photos.ours, mask) - outputs(photos.theirs, mask)).abs().max())
    return Checked("features" if features else "logits", difference, agreement, reader, photos, on_photos)


def _ours(checkpoint: CheckpointHandle, tensors: Tensors, features: bool) -> Outputs:
    """Returns the model of our state dict: logits, (M, V) or (B, classes), or features, (B, L, D)."""
    model = network_of(checkpoint, tensors)
    if features:
        return lambda images, mask: model.forward_features(images)
    return model if checkpoint.kind == "masked-image-model" else lambda images, mask: model(images)


def network_of(checkpoint: CheckpointHandle, tensors: Tensors) -> Backbone:
    """Builds the network of our state dict, in evaluation mode: a `MaskedImageModel`, or a `Classifier`."""
    if checkpoint.kind == "masked-image-model":
        return masked_image_model_of(checkpoint, tensors)
    pooling = checkpoint.pooling if checkpoint.kind == "classifier" else "token" if "norm.weight" in tensors else "mean"
    classifier = Classifier(checkpoint.architecture, checkpoint.outputs, pooling=pooling).eval()
    classifier.load_state_dict({name: tensor for name, tensor in tensors.items() if name != "mask_token"}, strict=False)
    return classifier


def _reader(to: str, checkpoint: CheckpointHandle, folder: Path, features: bool) -> tuple[Outputs, str]:
    if to == "timm":
        return _timm(folder, features)
    if to == "onnx":
        run, reader = open_onnx(folder / MODEL_FILE)
        return lambda images, mask: run(images), reader
    if to == "hf" and importlib.util.find_spec("transformers"):
        return _transformers(checkpoint.kind, folder)
    again = open_pretrained(str(folder))
    return _ours(again, again.tensors(), features), f"beit {__version__}"


def _timm(folder: Path, features: bool) -> tuple[Outputs, str]:
    import timm

    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    reader = f"timm {timm.__version__}"
    if features:
        return lambda images, mask: model.forward_features(images), reader
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
    return lambda images, mask: model(images).last_hidden_state, reader
