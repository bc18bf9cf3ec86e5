"""Opens a MODEL: a run folder, its `checkpoints`, or one checkpoint folder."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from beitcli.config.architecture import Architecture
from beitcli.errors import StorageError, UsageError
from beitcli.models.beit import Classifier, MaskedImageModel
from beitcli.models.transfer import expand_shared_bias, finetuning_architecture, load_backbone
from beitcli.runtime.checkpoint import Checkpoint, newest_checkpoint, verified_checkpoint
from beitcli.runtime.device import Compute, choose_compute


@dataclass(frozen=True)
class OpenedModel:
    """A checkpoint and what its config says.

    Attributes:
        kind: `masked-image-model`, `classifier` or `tokenizer`.
        settings: The checkpoint's config.json.
        warnings: Newer checkpoints that were damaged.
    """

    reference: str
    kind: str
    settings: dict[str, Any]
    checkpoint: Checkpoint
    warnings: tuple[str, ...]

    @property
    def architecture(self) -> Architecture:
        return Architecture(**self.settings["architecture"])

    def compute(self, device: str, precision: str) -> Compute:
        """What to compute with; `auto` is the precision of the training on the same kind of device, so that its figures
        repeat."""
        chosen = choose_compute(device, precision)
        same = self.settings.get("device") == chosen.device.type
        return replace(chosen, precision=self.settings["precision"]) if precision == "auto" and same else chosen

    @property
    def run(self) -> Path:
        """The run folder that the checkpoint lies in."""
        return self.checkpoint.path.parent.parent

    @property
    def normalization(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of the images it was trained on, a channel each, in [0, 1]."""
        return tuple(self.settings["mean"]), tuple(self.settings["std"])


def open_checkpoint(reference: str) -> OpenedModel:
    """Finds the newest whole checkpoint that `reference` names.

    Raises:
        UsageError: There is nothing of that name.
        StorageError: What is there holds no checkpoint, or only damaged ones.
    """
    path = Path(reference)
    if not path.exists():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*")], n=1)
        hint = f"Did you mean '{path.parent / near[0]}'?" if near else "Give a run folder or a checkpoint folder."
        raise UsageError(f"There is no model at '{reference}'.", hint)
    if path.is_file() and path.name == "model.safetensors":
        path = path.parent
    if (path / "model.safetensors").exists():
        found: Checkpoint | None = verified_checkpoint(path)
    else:
        found = newest_checkpoint(path.parent if path.name == "checkpoints" else path) if path.is_dir() else None
    if found is None:
        raise StorageError(
            f"'{reference}' holds no checkpoint.",
            "Give a run that has saved one (RUN/checkpoints/step-...), or go on with it by --resume.",
        )
    settings = found.config
    return OpenedModel(reference, settings.get("kind", "unknown"), settings, found, found.damaged)


def _expect(opened: OpenedModel, *kinds: str) -> None:
    if opened.kind not in kinds:
        made_by = {"masked-image-model": "pretrain", "classifier": "finetune", "tokenizer": "train-tokenizer"}
        needed = " or ".join(f"`beit {made_by[kind]}`" for kind in kinds)
        raise StorageError(f"'{opened.reference}' is a {opened.kind}.", f"Give a checkpoint made by {needed}.")


def open_masked_image_model(reference: str) -> tuple[MaskedImageModel, OpenedModel]:
    """A pretraining model with its weights, in evaluation mode."""
    opened = open_checkpoint(reference)
    _expect(opened, "masked-image-model")
    model = MaskedImageModel(opened.architecture, opened.settings["outputs"])
    model.load_state_dict(opened.checkpoint.model_tensors())
    return model.eval(), opened


def open_classifier(reference: str, size: int | None = None) -> tuple[Classifier, OpenedModel]:
    """A finetuned classifier with its weights, in evaluation mode, resized where `size` asks for it."""
    opened = open_checkpoint(reference)
    _expect(opened, "classifier")
    target = finetuning_architecture(opened.architecture, (size, size) if size else None)
    model = Classifier(target, len(opened.settings["classes"]))
    load_backbone(model, opened.checkpoint.model_tensors(), opened.architecture, target, head=True)
    return model.eval(), opened


def open_pretrained(reference: str) -> OpenedModel:
    """The checkpoint of any BEiT, to start from."""
    opened = open_checkpoint(reference)
    _expect(opened, "masked-image-model", "classifier")
    return opened


def open_backbone(reference: str, size: int | None = None) -> tuple[Classifier, OpenedModel]:
    """Any BEiT as a backbone in the finetuning layout, for features and attention; its head is not to be used."""
    opened = open_pretrained(reference)
    target = finetuning_architecture(opened.architecture, (size, size) if size else None)
    model = Classifier(target, 0)
    tensors = expand_shared_bias(opened.checkpoint.model_tensors(), target.depth)
    load_backbone(model, tensors, opened.architecture, target, head=False)
    return model.eval(), opened


def state_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What a checkpoint holds of a model: its parameters and persistent buffers."""
    return dict(model.state_dict())
