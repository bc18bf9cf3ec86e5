"""`beit export`: a model in another's layout, opened again from the disk and compared before it is handed over."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from beitcli.config.weights import ExportConfig
from beitcli.data.views import evaluation_crop
from beitcli.engine.events import OnEvent, Warned, downloads, ignore, warn
from beitcli.engine.export_check import compare
from beitcli.errors import StorageError, UsageError
from beitcli.models.description import Pooling
from beitcli.models.foreign_vit import ForeignArchitecture
from beitcli.models.published import (
    Tensors,
    hf_preprocessing,
    hf_settings,
    official_settings,
    timm_settings,
    to_hf,
    to_official,
    to_timm,
)
from beitcli.models.references import OpenedModel, open_pretrained
from beitcli.models.transfer import by_block

TIMM_NORM_EPS = 1e-6  # timm's and the release's, in their code
_NOT_OF = {"masked-image-model": ("fc_norm.", "head."), "classifier": ("mask_token", "token_head.")}


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how far its outputs are from the original's.

    Attributes:
        compared: `logits`, or `features` where the layout has no head for them.
        max_difference: Largest absolute difference of these, over 2 images.
        argmax_agreement: Share of equal decisions (0-1); of features, None.
        dropped: Tensors that the layout has no place for.
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
    """Writes `config.output`, which is whole and verified or absent.

    Raises:
        UsageError: The output is there already, or the layout has no such kind of model.
        StorageError: The model cannot be opened, the result not written, or it differs.
    """
    target = Path(config.output).resolve()
    taken = UsageError(f"-o '{config.output}' is there already.", "Give a new or empty folder.")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise taken
    opened = open_pretrained(config.model, downloads(on_event))
    warn(opened.warnings, on_event)
    if opened.kind in ("segmenter", "detector"):
        raise UsageError(
            f"'{config.model}' is a {opened.kind}, which has no export.", "Export a pretraining or classifier."
        )
    if isinstance(opened.architecture, ForeignArchitecture):
        raise UsageError(
            f"'{config.model}' is timm's {opened.architecture.name}, no BEiT.",
            "Its checkpoint folder opens in timm as it lies; other layouts are BEiT's.",
        )
    height, width = opened.architecture.image_size
    if config.to == "hf" and height != width:
        raise UsageError(
            f"'{config.model}' takes {height} x {width} pixels, and transformers computes square images only.",
            "Export it --to timm or official.",
        )
    if config.to != "hf" and opened.architecture.norm_eps != TIMM_NORM_EPS:
        own = f"'{config.model}' normalises with an epsilon of {opened.architecture.norm_eps:g}"
        on_event(Warned(f"{own}, for which {config.to} has no setting: it computes with {TIMM_NORM_EPS:g}."))
    stored = opened.tensors()
    tensors = {name: t for name, t in stored.items() if not name.startswith(_NOT_OF.get(opened.kind, "\0"))}
    kept = to_timm(tensors) if config.to == "timm" else tensors
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        _write(config.to, opened, kept, partial)
        checked = compare(config.to, opened, tensors, partial)
        partial.rename(target)  # takes the place of an empty folder, of no other
    except (OSError, SafetensorError) as error:
        if target.is_dir() and any(target.iterdir()):  # by another process meanwhile
            raise taken from None
        raise StorageError(f"'{target}' cannot be written: {error}.", "Free space, or give another -o.") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return ExportReport(
        model=config.model,
        to=config.to,
        output=config.output,
        kind=opened.kind,
        parameters=sum(tensor.numel() for tensor in kept.values()),
        compared=checked.compared,
        max_difference=checked.max_difference,
        argmax_agreement=checked.argmax_agreement,
        verified_with=checked.reader,
        dropped=by_block((*sorted(set(stored) - set(kept)), *(opened.layout.dropped if opened.layout else ()))),
    )


def _write(to: str, opened: OpenedModel, tensors: Tensors, folder: Path) -> None:
    found = opened.described
    architecture = found.architecture
    pooling: Pooling = "token" if opened.kind == "backbone" and "norm.weight" in tensors else found.pooling
    crop_share = found.crop_share or evaluation_crop(architecture.image_size)
    if to == "official":
        names = found.classes if found.names_classes else ()
        args = official_settings(architecture, classes=names, normalization=found.normalization, crop_share=crop_share)
        torch.save({"model": to_official(tensors, architecture), "args": args}, folder / "model.pth")
        return
    if to == "timm":
        settings = timm_settings(
            architecture,
            classes=found.classes,
            pooling="token" if opened.kind == "masked-image-model" else pooling,  # keeps `norm`
            normalization=found.normalization,
            crop_share=crop_share,
        )
        written = dict(tensors)
    else:
        settings = hf_settings(
            architecture,
            opened.kind,
            outputs=found.outputs,
            classes=found.classes,
            pooling=pooling,
            has_mask_token="mask_token" in tensors,
        )
        written = to_hf(tensors, opened.kind)
        preprocessing = hf_preprocessing(architecture, found.normalization, crop_share)
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing, indent=2) + "\n")
    (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
    save_file({n: t.contiguous().clone() for n, t in written.items()}, folder / "model.safetensors", {"format": "pt"})
