"""`beit export`: writes a model in another library's format, with its preprocessing, and keeps it once it is verified.

What is compared, and with which library: `export_check.py`.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from beitcli.config.architecture import Pooling
from beitcli.config.inspect_export import ExportConfig
from beitcli.engine.events import OnEvent, Warned, downloads, ignore, warn
from beitcli.engine.export_card import export_card
from beitcli.engine.export_check import compare, network_of
from beitcli.engine.io.export_target import is_one_file, refuse_kind, require_free_target, require_packages, taken
from beitcli.engine.io.outputs import require_writable_outputs
from beitcli.engine.io.protected_inputs import ProtectedInputs
from beitcli.engine.onnx_export import MODEL_FILE, WEIGHTS_FILE, fits_one_file, write_onnx
from beitcli.errors import StorageError, UsageError
from beitcli.models.checkpoints.export_formats import (
    HF_CLASSES,
    Tensors,
    hf_settings,
    official_settings,
    timm_preprocessing,
    timm_settings,
    to_hf,
    to_official,
    to_timm,
    without_aggregation,
)
from beitcli.models.checkpoints.handle import CheckpointHandle
from beitcli.models.checkpoints.hf_preprocessing import hf_preprocessing
from beitcli.models.checkpoints.key_mapping import by_block
from beitcli.models.checkpoints.open import open_pretrained
from beitcli.models.networks.timm_vit import TimmArchitecture
from beitcli.runtime.storage.own_files import apply_umask
from beitcli.runtime.storage.safe_json import dump_json

_WEIGHTS = ("model.pth", "model.safetensors", MODEL_FILE)
_GRAPH = {MODEL_FILE, WEIGHTS_FILE}  # an ONNX model, which may lie beside weights for torch
_EXPORTED = {"README.md", "config.json", "preprocessor_config.json", *_WEIGHTS} - _GRAPH
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
        pixel_difference: Largest difference of a pixel (0-255) after resizing and cropping photos of `PHOTOS` pixels by
            the preprocessing that the export states.
        photo_difference: Largest absolute difference of the outputs on these photos, each by its own preprocessing.
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
    pixel_difference: float
    photo_difference: float


def export(config: ExportConfig, on_event: OnEvent = ignore) -> ExportReport:
    """Writes `config.output`, which is complete and verified, or absent.

    Raises:
        UsageError: The output exists, the format does not support this kind of model, or its package is missing.
        StorageError: The model cannot be opened, the result cannot be written, or its outputs differ.
    """
    target, as_file = Path(config.output).resolve(), is_one_file(config)
    require_packages(config)
    require_free_target(config)
    checkpoint = open_pretrained(config.model, downloads(on_event))
    warn(checkpoint.warnings, on_event)
    _refuse_unsupported(config, checkpoint)
    if config.to not in ("hf", "onnx") and checkpoint.architecture.norm_eps != TIMM_NORM_EPS:
        own = f"'{config.model}' normalises with an epsilon of {checkpoint.architecture.norm_eps:g}"
        on_event(Warned(f"{own}, for which {config.to} has no setting: it computes with {TIMM_NORM_EPS:g}."))
    stored = checkpoint.tensors()
    tensors = {name: t for name, t in stored.items() if not name.startswith(_NOT_OF.get(checkpoint.kind, "\0"))}
    unmapped = checkpoint.key_mapping.dropped if checkpoint.key_mapping else ()
    kept = {"timm": to_timm, "onnx": to_timm, "hf": without_aggregation}.get(config.to, dict)(tensors)
    if as_file and not fits_one_file(kept):
        raise _too_large(config)
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        if config.to == "onnx":
            _write_onnx(checkpoint, tensors, partial)
        else:
            _write(config.to, checkpoint, kept, partial)
        checked = compare(config.to, checkpoint, tensors, partial)
        if checked.photos.shifted:
            on_event(Warned(f"{config.to} rounds its center crop otherwise: it may lie one resized pixel away."))
        difference = f"{checked.reader}, largest difference {checked.max_difference:.2g} of the {checked.compared}"
        card = export_card(config.to, checkpoint, HF_CLASSES[checkpoint.kind], difference)
        (partial / "README.md").write_text(card, encoding="utf-8")
        if as_file:
            _move_file(partial, target, config)
        elif config.overwrite and target.is_dir():
            _move_into(partial, target, ProtectedInputs(config, models=[str(checkpoint.weights)]))
        else:
            partial.rename(target)  # replaces an empty folder only
    except (OSError, SafetensorError) as error:
        if not config.overwrite and target.is_dir() and any(target.iterdir()):  # written by another process meanwhile
            raise taken(config) from None
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
        pixel_difference=checked.photos.largest,
        photo_difference=checked.photo_difference,
    )


def _move_file(partial: Path, target: Path, config: ExportConfig) -> None:
    """Moves the one file of an ONNX model. Raises UsageError if it is two files, or its name was taken meanwhile."""
    if (partial / WEIGHTS_FILE).exists():
        raise _too_large(config)
    require_free_target(config)
    (partial / MODEL_FILE).replace(target)


def _too_large(config: ExportConfig) -> UsageError:
    return UsageError(
        f"The weights of '{config.model}' are too large for one .onnx file, which ends at 2 GiB.",
        "Give a folder with -o: they are written beside the graph.",
    )


def _move_into(partial: Path, target: Path, inputs: ProtectedInputs) -> None:
    """Replaces files of the same names in an existing folder. Raises UsageError if one of them is the model's own."""
    names = sorted(path.name for path in partial.iterdir())
    if not any((target / name).is_file() for name in _WEIGHTS):
        raise UsageError(f"-o '{target}' is not the folder of an export.", "Give a new folder, or that of an export.")
    require_writable_outputs([target / name for name in names], f"-o '{target}'", inputs, overwrite=True)
    for name in names:
        (partial / name).replace(target / name)
    of_the_other = _GRAPH if MODEL_FILE in names else _EXPORTED
    for name in of_the_other - set(names):  # of another export of its kind, which would be opened in place of this one
        if not inputs.kind_of(target / name):
            (target / name).unlink(missing_ok=True)


def _refuse_unsupported(config: ExportConfig, checkpoint: CheckpointHandle) -> None:
    """Raises UsageError for a model that the layout cannot hold."""
    refuse_kind(config, checkpoint.kind)
    if isinstance(checkpoint.architecture, TimmArchitecture):
        raise UsageError(
            f"'{config.model}' is timm's {checkpoint.architecture.name}, no BEiT.",
            "A checkpoint of `finetune` opens in timm as it lies; other layouts are BEiT's.",
        )
    height, width = checkpoint.architecture.image_size
    if config.to == "hf" and height != width:
        raise UsageError(
            f"'{config.model}' takes {height} x {width} pixels, and transformers computes square images only.",
            "Export it --to timm, official or onnx.",
        )
    if config.to == "hf" and checkpoint.crop.crop_mode == "border":
        raise UsageError(
            f"'{config.model}' pads its images, for which transformers' processors have no setting.",
            "Export it --to timm, official or onnx.",
        )


def _write(to: str, checkpoint: CheckpointHandle, tensors: Tensors, folder: Path) -> None:
    architecture = checkpoint.architecture
    pooling: Pooling = "token" if checkpoint.kind == "backbone" and "norm.weight" in tensors else checkpoint.pooling
    if to == "official":
        names = checkpoint.classes if checkpoint.names_classes else ()
        args = official_settings(
            architecture,
            classes=names,
            normalization=checkpoint.normalization,
            crop=checkpoint.crop,
            problem=checkpoint.problem,
            aggregation=checkpoint.aggregation,
        )
        try:
            torch.save({"model": to_official(tensors, architecture), "args": args}, folder / "model.pth")
        except RuntimeError as error:  # of torch's zip writer, for a full disk too
            raise OSError(f"model.pth: {str(error).splitlines()[0]}") from None
        return
    if to == "timm":
        settings = timm_settings(
            architecture,
            classes=checkpoint.classes,
            pooling="token" if checkpoint.kind == "masked-image-model" else pooling,  # keeps `norm`
            normalization=checkpoint.normalization,
            crop=checkpoint.crop,
            problem=checkpoint.problem,
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
            problem=checkpoint.problem,
        )
        written = to_hf(tensors, checkpoint.kind)
        preprocessing = hf_preprocessing(architecture.image_size, checkpoint.normalization, checkpoint.crop)
        (folder / "preprocessor_config.json").write_text(dump_json(preprocessing, indent=2) + "\n")
    (folder / "config.json").write_text(dump_json(settings, indent=2) + "\n")
    save_file({n: t.contiguous().clone() for n, t in written.items()}, folder / "model.safetensors", {"format": "pt"})
    apply_umask(folder / "model.safetensors")


def _write_onnx(checkpoint: CheckpointHandle, tensors: Tensors, folder: Path) -> None:
    """Writes the graph, and transformers' config.json and preprocessor_config.json for what reads labels from these."""
    architecture, is_classifier = checkpoint.architecture, checkpoint.kind == "classifier"
    preprocessing = timm_preprocessing(architecture.image_size, checkpoint.normalization, checkpoint.crop)
    labels = list(checkpoint.classes) if is_classifier else []
    named = {"label_names": labels, "problem": checkpoint.problem} if is_classifier else {}
    stated = {"kind": checkpoint.kind, "preprocessing": preprocessing, **named}
    write_onnx(network_of(checkpoint, tensors), checkpoint, folder / MODEL_FILE, stated)
    settings = hf_settings(
        architecture,
        checkpoint.kind if is_classifier else "backbone",
        outputs=checkpoint.outputs,
        classes=checkpoint.classes,
        pooling=checkpoint.pooling,
        has_mask_token=False,
        problem=checkpoint.problem,
    )
    (folder / "config.json").write_text(dump_json(settings, indent=2) + "\n")
    height, width = architecture.image_size
    if height == width and checkpoint.crop.crop_mode != "border":  # else transformers' processors have no setting
        processor = hf_preprocessing(architecture.image_size, checkpoint.normalization, checkpoint.crop)
        (folder / "preprocessor_config.json").write_text(dump_json(processor, indent=2) + "\n")
