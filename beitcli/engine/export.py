"""`beit export`: writes a model in another library's format, loads it from disk and compares outputs before it is kept.

Both models run in fp32 on the CPU on two images of noise. The export is loaded by the library it is for: timm, or
transformers if installed. The release's format, whose code is not a package, is loaded by this program's reader.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from beitcli.config.architecture import Pooling
from beitcli.config.inspect_export import ExportConfig
from beitcli.data.transforms.base import evaluation_crop
from beitcli.engine.events import OnEvent, Warned, downloads, ignore, warn
from beitcli.errors import StorageError, UsageError
from beitcli.models.checkpoints.build import masked_image_model_of
from beitcli.models.checkpoints.export_formats import (
    HF_CLASSES,
    Tensors,
    hf_preprocessing,
    hf_settings,
    official_settings,
    timm_settings,
    to_hf,
    to_official,
    to_timm,
    without_aggregation,
)
from beitcli.models.checkpoints.handle import CheckpointHandle
from beitcli.models.checkpoints.key_mapping import by_block
from beitcli.models.checkpoints.open import open_pretrained
from beitcli.models.networks.classifier import Classifier
from beitcli.models.networks.timm_vit import TimmArchitecture
from beitcli.runtime.storage.safe_json import dump_json

TOLERANCE = 1e-4  # relative to the largest output, or to 1 if that is smaller; observed: below 1e-5

Outputs = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


TIMM_NORM_EPS = 1e-6  # hard-coded in timm and the release
_NOT_OF = {"masked-image-model": ("fc_norm.", "head."), "classifier": ("mask_token", "token_head.")}


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how much its outputs differ from the original's.

    Attributes:
        compared: `logits`, or `features` if the format has no head for them.
        max_difference: Largest absolute difference over 2 images.
        argmax_agreement: Fraction of equal argmax (0-1); None for features.
        dropped: Tensors that the format cannot hold.
    """

    model: str
    to: str
    output: str
    kind: str
    parameters: int
    compared: str
    max_difference: float
    argmax_agreement: float | None
    verified_with: str
    dropped: list[str]


def export(config: ExportConfig, on_event: OnEvent = ignore) -> ExportReport:
    """Writes `config.output`, which is complete and verified, or absent.

    Raises:
        UsageError: The output exists, or the format does not support this kind of model.
        StorageError: The model cannot be opened, the result cannot be written, or its outputs differ.
    """
    target = Path(config.output).resolve()
    taken = UsageError(f"-o '{config.output}' is there already.", "Give a new or empty folder.")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise taken
    checkpoint = open_pretrained(config.model, downloads(on_event))
    warn(checkpoint.warnings, on_event)
    if checkpoint.kind not in HF_CLASSES:
        raise UsageError(
            f"'{config.model}' is a {checkpoint.kind}, which has no export.", "Export a pretraining or classifier."
        )
    if isinstance(checkpoint.architecture, TimmArchitecture):
        raise UsageError(
            f"'{config.model}' is timm's {checkpoint.architecture.name}, no BEiT.",
            "A checkpoint of `finetune` opens in timm as it lies; other layouts are BEiT's.",
        )
    height, width = checkpoint.architecture.image_size
    if config.to == "hf" and height != width:
        raise UsageError(
            f"'{config.model}' takes {height} x {width} pixels, and transformers computes square images only.",
            "Export it --to timm or official.",
        )
    if config.to != "hf" and checkpoint.architecture.norm_eps != TIMM_NORM_EPS:
        own = f"'{config.model}' normalises with an epsilon of {checkpoint.architecture.norm_eps:g}"
        on_event(Warned(f"{own}, for which {config.to} has no setting: it computes with {TIMM_NORM_EPS:g}."))
    stored = checkpoint.tensors()
    tensors = {name: t for name, t in stored.items() if not name.startswith(_NOT_OF.get(checkpoint.kind, "\0"))}
    unmapped = checkpoint.key_mapping.dropped if checkpoint.key_mapping else ()
    kept = to_timm(tensors) if config.to == "timm" else without_aggregation(tensors) if config.to == "hf" else tensors
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        _write(config.to, checkpoint, kept, partial)
        checked = compare(config.to, checkpoint, tensors, partial)
        partial.rename(target)  # replaces an empty folder only
    except (OSError, SafetensorError) as error:
        if target.is_dir() and any(target.iterdir()):  # written by another process meanwhile
            raise taken from None
        raise StorageError(f"'{target}' cannot be written: {error}.", "Free space, or give another -o.") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return ExportReport(
        model=config.model,
        to=config.to,
        output=config.output,
        kind=checkpoint.kind,
        parameters=sum(tensor.numel() for tensor in kept.values()),
        compared=checked.compared,
        max_difference=checked.max_difference,
        argmax_agreement=checked.argmax_agreement,
        verified_with=checked.reader,
        dropped=by_block((*sorted(set(stored) - set(kept)), *unmapped)),
    )


def _write(to: str, checkpoint: CheckpointHandle, tensors: Tensors, folder: Path) -> None:
    architecture = checkpoint.architecture
    pooling: Pooling = "token" if checkpoint.kind == "backbone" and "norm.weight" in tensors else checkpoint.pooling
    crop_pct = checkpoint.crop_pct or evaluation_crop(architecture.image_size)
    if to == "official":
        names = checkpoint.classes if checkpoint.names_classes else ()
        args = official_settings(
            architecture,
            classes=names,
            normalization=checkpoint.normalization,
            crop_pct=crop_pct,
            aggregation=checkpoint.aggregation,
        )
        torch.save({"model": to_official(tensors, architecture), "args": args}, folder / "model.pth")
        return
    if to == "timm":
        settings = timm_settings(
            architecture,
            classes=checkpoint.classes,
            pooling="token" if checkpoint.kind == "masked-image-model" else pooling,  # keeps `norm`
            normalization=checkpoint.normalization,
            crop_pct=crop_pct,
        )
        written = dict(tensors)
    else:
        settings = hf_settings(
            architecture,
            checkpoint.kind,
            outputs=checkpoint.outputs,
            classes=checkpoint.classes,
            pooling=pooling,
            has_mask_token="mask_token" in tensors,
        )
        written = to_hf(tensors, checkpoint.kind)
        preprocessing = hf_preprocessing(architecture, checkpoint.normalization, crop_pct)
        (folder / "preprocessor_config.json").write_text(dump_json(preprocessing, indent=2) + "\n")
    (folder / "config.json").write_text(dump_json(settings, indent=2) + "\n")
    save_file({n: t.contiguous().clone() for n, t in written.items()}, folder / "model.safetensors", {"format": "pt"})


@dataclass(frozen=True)
class Checked:
    """Result of the comparison.

    Attributes:
        compared: `logits`; or `features`, (B, N, D), if the format has no head for them.
        argmax_agreement: Fraction of equal argmax (0-1); None for features.
        reader: Library that loaded the export.
    """

    compared: str
    max_difference: float
    argmax_agreement: float | None
    reader: str


@torch.no_grad()
def compare(to: str, checkpoint: CheckpointHandle, tensors: Tensors, folder: Path) -> Checked:
    """Runs the original and the export in `folder`, and compares their outputs.

    Args:
        tensors: State dict of the original, with this package's names.

    Raises:
        StorageError: They differ by more than the tolerance.
    """
    architecture = checkpoint.architecture
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, *architecture.image_size, generator=generator)
    mask = torch.rand(2, architecture.num_patches, generator=generator) < 0.4
    features = checkpoint.kind == "backbone" or (checkpoint.kind == "masked-image-model" and to == "timm")
    before = _ours(checkpoint, tensors, features)(images, mask)
    outputs, reader = _reader(to, checkpoint, folder, features)
    after = outputs(images, mask)
    difference = float((before - after).abs().max())
    if not difference <= TOLERANCE * max(1.0, float(before.abs().max())):
        raise StorageError(
            f"The export differs from '{checkpoint.reference}' by {difference:.3g} in its outputs (read by {reader}).",
            "Nothing was written. This is a fault of the export: report it with the output of `beit inspect`.",
        )
    agreement = None if features else float((before.argmax(-1) == after.argmax(-1)).double().mean())
    return Checked("features" if features else "logits", difference, agreement, reader)


def _ours(checkpoint: CheckpointHandle, tensors: Tensors, features: bool) -> Outputs:
    """Returns the model of our state dict: logits, (M, V) or (B, classes), or patch features, (B, N, D)."""
    if checkpoint.kind == "masked-image-model":
        model = masked_image_model_of(checkpoint, tensors)
        return (lambda images, mask: model.hidden_features(images, None)) if features else model
    pooling = checkpoint.pooling if checkpoint.kind == "classifier" else "token" if "norm.weight" in tensors else "mean"
    classifier = Classifier(checkpoint.architecture, checkpoint.outputs, pooling=pooling).eval()
    classifier.load_state_dict({name: tensor for name, tensor in tensors.items() if name != "mask_token"}, strict=False)
    if features:
        return lambda images, mask: classifier.forward_features(images)[:, 1:]
    return lambda images, mask: classifier(images)


def _reader(to: str, checkpoint: CheckpointHandle, folder: Path, features: bool) -> tuple[Outputs, str]:
    if to == "timm":
        return _timm(folder, features)
    if to == "hf" and importlib.util.find_spec("transformers"):
        return _transformers(checkpoint.kind, folder)
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
