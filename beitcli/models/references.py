"""Opens a MODEL, whoever wrote it: found by `locate`, recognised by `layouts`, described, and loaded under our names.

Our own checkpoints are verified by their hashes first, and the newest whole one of a run is taken.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from beitcli.config.architecture import Architecture
from beitcli.config.normalization import Normalization
from beitcli.errors import StorageError
from beitcli.models.beit import Classifier, MaskedImageModel
from beitcli.models.description import Description, describe
from beitcli.models.layouts import Layout, read_layout
from beitcli.models.locate import format_of, locate
from beitcli.models.stated import stated_in
from beitcli.models.transfer import finetuning_architecture, load_backbone
from beitcli.runtime.checkpoint import SUMS, Checkpoint, newest_checkpoint, verified_checkpoint
from beitcli.runtime.device import Compute, choose_compute
from beitcli.runtime.hub import OnProgress
from beitcli.runtime.weight_files import WeightFile, read_header, read_tensors

MADE_BY = {"masked-image-model": "pretrain", "classifier": "finetune", "tokenizer": "train-tokenizer"}


@dataclass(frozen=True)
class OpenedModel:
    """A checkpoint, read as far as its header.

    Attributes:
        format: `beit` (ours), `official`, `timm` or `hf`.
        kind: `masked-image-model`, `classifier`, `segmenter`, `backbone` or `tokenizer`.
        settings: What this program wrote beside the weights; empty for others' checkpoints.
        description: None for a tokenizer.
        layout: Likewise.
        checkpoint: Where this program wrote it, its folder.
        warnings: Newer checkpoints that were damaged, and what had to be assumed.
    """

    reference: str
    format: str
    kind: str
    weights: Path
    settings: dict[str, Any]
    description: Description | None
    layout: Layout | None
    checkpoint: Checkpoint | None
    warnings: tuple[str, ...]

    @property
    def described(self) -> Description:
        if self.description is None:
            raise StorageError(f"'{self.reference}' is a {self.kind}.", "Give a BEiT.")
        return self.description

    @property
    def architecture(self) -> Architecture:
        return self.described.architecture

    def compute(self, device: str, precision: str) -> Compute:
        """What to compute with; `auto` is the precision of the training on the same kind of device, so that its figures
        repeat."""
        chosen = choose_compute(device, precision)
        same = self.settings.get("device") == chosen.device.type
        return replace(chosen, precision=self.settings["precision"]) if precision == "auto" and same else chosen

    @property
    def run(self) -> Path:
        """The run folder that the checkpoint lies in; the folder of another's weights."""
        return self.checkpoint.path.parent.parent if self.checkpoint else self.weights.parent

    @property
    def normalization(self) -> Normalization:
        """Mean and standard deviation of the images it was trained on, a channel each, in [0, 1]."""
        return self.described.normalization

    def tensors(self) -> dict[str, torch.Tensor]:
        """The weights on the CPU in fp32, under our names."""
        stored = read_tensors(self.weights)
        if self.layout is None or self.layout.naming == "dall-e":
            return stored
        joined = {}
        for name, parts in self.layout.parts.items():
            tensors = [stored[part].float() for part in parts]
            joined[name] = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
        return joined


def open_checkpoint(reference: str) -> OpenedModel:
    """A checkpoint of this program: the newest whole one that `reference` names.

    Raises:
        UsageError: There is nothing of that name.
        StorageError: It holds no checkpoint of ours, or only damaged ones.
    """
    checkpoint = _our_checkpoint(Path(reference))
    if checkpoint is None:
        located = locate(reference)  # says what is wrong where there is nothing
        raise StorageError(f"'{located.weights}' was not written by this program.", "Give a run or its checkpoint.")
    settings = checkpoint.config
    weights = checkpoint.path / "model.safetensors"
    kind = settings["kind"]
    if kind == "tokenizer":
        return OpenedModel(reference, "beit", kind, weights, settings, None, None, checkpoint, checkpoint.damaged)
    layout, description = _read(read_header(weights), {"beit": settings}, {}, reference)
    return OpenedModel(reference, "beit", kind, weights, settings, description, layout, checkpoint, checkpoint.damaged)


def open_model(reference: str, on_progress: OnProgress | None = None) -> OpenedModel:
    """Any BEiT, of this program or another's.

    Raises:
        UsageError: There is nothing of that name.
        StorageError: It is no BEiT, damaged, or cannot be had.
    """
    if _our_checkpoint_folder(Path(reference)) is not None:
        return open_checkpoint(reference)
    located = locate(reference, on_progress)
    header = read_header(located.weights)
    layout, description = _read(header, located.settings, located.preprocessing, reference)
    if description is None:
        raise StorageError(f"'{reference}' is DALL-E's tokenizer, not a BEiT.", "Pass it as --tokenizer.")
    return OpenedModel(
        reference=reference,
        format=format_of(layout, header, located),
        kind=description.kind,
        weights=located.weights,
        settings={},
        description=description,
        layout=layout,
        checkpoint=None,
        warnings=tuple(f"'{reference}' does not say it; assumed: {what}." for what in description.assumed),
    )


def _read(
    header: WeightFile, settings: dict[str, Any], preprocessing: dict[str, Any], reference: str
) -> tuple[Layout, Description | None]:
    layout = read_layout(header.shapes, reference)
    if layout.naming == "dall-e":
        return layout, None
    stated = stated_in(settings, preprocessing, header.about)
    return layout, describe(layout, header.shapes, stated, reference)


def _our_checkpoint_folder(path: Path) -> Path | None:
    """The checkpoint folder, or the run, where `path` looks like one of this program's."""
    if path.is_file() and path.name == "model.safetensors":
        path = path.parent
    if (path / SUMS).is_file() or (re.fullmatch(r"step-\d+", path.name) and path.is_dir()):
        return path
    if path.name == "checkpoints" and path.is_dir():
        path = path.parent
    return path if any((path / "checkpoints").glob("step-*")) else None


def _our_checkpoint(path: Path) -> Checkpoint | None:
    folder = _our_checkpoint_folder(path)
    if folder is None:
        return None
    is_one = (folder / "model.safetensors").exists() or re.fullmatch(r"step-\d+", folder.name)
    if is_one:
        return verified_checkpoint(folder, weights_only=True)
    return newest_checkpoint(folder, weights_only=True)


def _expect(opened: OpenedModel, *kinds: str) -> None:
    if opened.kind not in kinds:
        needed = " or ".join(f"`beit {MADE_BY[kind]}`" for kind in kinds)
        article = "an" if opened.kind[0] in "aeiou" else "a"
        raise StorageError(
            f"'{opened.reference}' is {article} {opened.kind}.", f"Give a checkpoint as made by {needed}."
        )


def open_masked_image_model(
    reference: str, on_progress: OnProgress | None = None
) -> tuple[MaskedImageModel, OpenedModel]:
    """A pretraining model with its weights, in evaluation mode."""
    opened = open_model(reference, on_progress)
    _expect(opened, "masked-image-model")
    tensors = opened.tensors()
    with torch.device("meta"):
        model = MaskedImageModel(opened.architecture, opened.described.outputs)
    lacking = sorted(set(model.state_dict()) - set(tensors))
    if lacking:
        raise StorageError(
            f"'{reference}' lacks {', '.join(lacking)}, without which nothing can be hidden or named.",
            "Give a checkpoint of masked image modeling with its mask token and head.",
        )
    model = MaskedImageModel(opened.architecture, opened.described.outputs)
    model.load_state_dict({name: tensors[name] for name in model.state_dict()})
    return model.eval(), opened


def open_classifier(
    reference: str, size: tuple[int, int] | None = None, on_progress: OnProgress | None = None
) -> tuple[Classifier, OpenedModel]:
    """A finetuned classifier with its weights, in evaluation mode, resized to `size` (H, W) where given."""
    opened = open_model(reference, on_progress)
    _expect(opened, "classifier")
    target = finetuning_architecture(opened.architecture, size)
    model = Classifier(target, opened.described.outputs, pooling=opened.described.pooling)
    load_backbone(model, opened.tensors(), opened.architecture, target, head=True)
    return model.eval(), opened


def open_pretrained(reference: str, on_progress: OnProgress | None = None) -> OpenedModel:
    """The checkpoint of any BEiT, to start from."""
    opened = open_model(reference, on_progress)
    if opened.description is None:
        _expect(opened, "masked-image-model", "classifier")
    return opened


def open_backbone(
    reference: str, size: tuple[int, int] | None = None, on_progress: OnProgress | None = None
) -> tuple[Classifier, OpenedModel]:
    """Any BEiT as a backbone in the finetuning layout, for features and attention; its head is not to be used."""
    opened = open_pretrained(reference, on_progress)
    target = finetuning_architecture(opened.architecture, size)
    model = Classifier(target, 0)
    load_backbone(model, opened.tensors(), opened.architecture, target, head=False)
    return model.eval(), opened


def state_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What a checkpoint holds of a model: its parameters and persistent buffers."""
    return dict(model.state_dict())
