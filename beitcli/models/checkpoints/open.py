"""Opens a MODEL, whoever wrote it: found by `locate`, recognised by `layouts`, described, and loaded under our names.

Our own checkpoints are verified by their hashes first, and the newest whole one of a run is taken.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from beitcli.config.architecture import Architecture
from beitcli.config.normalization import NORMALIZATIONS, Normalization
from beitcli.config.tasks import TASKS, TaskDefinition, task_of_kind
from beitcli.errors import StorageError
from beitcli.models.checkpoints.config_readers import check_section, stated_in
from beitcli.models.checkpoints.key_mapping import Layout, read_layout
from beitcli.models.checkpoints.load_backbone import by_block
from beitcli.models.checkpoints.locate import WEIGHTS, format_of, locate, read_settings
from beitcli.models.checkpoints.metadata import Description, describe
from beitcli.models.checkpoints.timm_references import (
    describe_foreign,
    describe_random,
    describe_timm_random,
    is_foreign,
    shape_only,
    unlearned,
)
from beitcli.models.networks.classifier import drawn
from beitcli.models.networks.timm_vit import ForeignArchitecture
from beitcli.runtime.compute.device import Compute, choose_compute
from beitcli.runtime.hub.download import OnProgress
from beitcli.runtime.storage.checkpoint import SUMS, Checkpoint, newest_checkpoint, verified_checkpoint
from beitcli.runtime.storage.safe_json import parse_json
from beitcli.runtime.weight_files.reader import WeightFile, read_header, read_tensors

_MADE_BY = {"masked-image-model": "pretrain", "tokenizer": "train-tokenizer"}


@dataclass(frozen=True)
class OpenedModel:
    """A checkpoint, read as far as its header.

    Attributes:
        format: `beit` (ours), `official`, `timm` or `hf`.
        kind: `masked-image-model`, `classifier`, `segmenter`, `detector`, `backbone` or `tokenizer`.
        settings: What this program wrote beside the weights; empty for others' checkpoints.
        description: None for a tokenizer.
        layout: Likewise.
        checkpoint: Where this program wrote it, its folder.
        warnings: Newer checkpoints that were damaged, and what had to be assumed.
        seed: Where only the shape is wanted: what the weights are drawn from.
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
    seed: int | None = None

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

    def normalized(self, name: str | None) -> OpenedModel:
        """With the normalisation of an option in place of its own; None keeps it."""
        if name is None or self.description is None:
            return self
        warnings = tuple(each for each in self.warnings if "images normalised" not in each)
        return replace(
            self, description=replace(self.description, normalization=NORMALIZATIONS[name]), warnings=warnings
        )

    def tensors(self) -> dict[str, torch.Tensor]:
        """The weights on the CPU in fp32, under our names; timm's other models keep their own."""
        if self.seed is not None:
            return dict(drawn(self.architecture, self.seed).state_dict())
        stored = read_tensors(self.weights)
        if isinstance(self.description and self.description.architecture, ForeignArchitecture):
            return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in stored.items()}
        if self.layout is None or self.layout.naming == "dall-e":
            return stored
        joined = {}
        for name, parts in self.layout.parts.items():
            tensors = [_floating(stored[part], part, self.reference).float() for part in parts]
            joined[name] = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
        return joined

    def head_tensors(self) -> dict[str, torch.Tensor]:
        """Those of a segmenter's or detector's head, under our names; nothing where it is none that is known here."""
        if self.layout is None or self.described.head is None:
            return {}
        stored = read_tensors(self.weights)
        return {ours: stored[name] for ours, name in self.layout.head.items()}


def _floating(tensor: torch.Tensor, name: str, reference: str) -> torch.Tensor:
    if not tensor.is_floating_point():
        raise StorageError(
            f"'{reference}' holds {name} as {str(tensor.dtype).removeprefix('torch.')}: it is quantised.",
            "Give the weights in floating point.",
        )
    return tensor


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
    check_section(settings, reference)
    if kind == "tokenizer":
        return OpenedModel(reference, "beit", kind, weights, settings, None, None, checkpoint, checkpoint.damaged)
    beside = read_settings(checkpoint.path / "config.json")
    if is_foreign(beside):
        seen = describe_foreign(beside, read_header(weights).shapes, reference)
        return OpenedModel(reference, "beit", kind, weights, settings, seen, None, checkpoint, checkpoint.damaged)
    layout, description = _read(read_header(weights), {"beit": settings}, {}, reference)
    return OpenedModel(reference, "beit", kind, weights, settings, description, layout, checkpoint, checkpoint.damaged)


def open_model(reference: str, on_progress: OnProgress | None = None, seed: int = 0) -> OpenedModel:
    """Any BEiT, of this program or another's, or a vision Transformer of timm's.

    Args:
        seed: Of the weights where none are to be read (`MODEL@random`, `random`).

    Raises:
        UsageError: There is nothing of that name.
        StorageError: It is none of these, damaged, or cannot be had.
    """
    base = unlearned(reference)
    if base is not None:
        return _unlearned(reference, base, on_progress, seed)
    if reference == "random":
        return OpenedModel(reference, "none", "backbone", Path(), {}, describe_random(), None, None, (), seed)
    if _our_checkpoint_folder(Path(reference)) is not None:
        return open_checkpoint(reference)
    located = locate(reference, on_progress)
    header = read_header(located.weights)
    if is_foreign(located.settings):
        seen = describe_foreign(located.settings, header.shapes, reference)
        said = tuple(f"'{reference}' does not say it; assumed: {what}." for what in seen.assumed)
        return OpenedModel(reference, "timm", seen.kind, located.weights, {}, seen, None, None, said)
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
        warnings=_remarks(reference, layout, header, description),
    )


def _unlearned(reference: str, base: str, on_progress: OnProgress | None, seed: int) -> OpenedModel:
    """The shape of `base` alone."""
    if base.startswith("timm/") and not Path(base).exists():
        found = describe_timm_random(reference)
        return OpenedModel(reference, "none", "backbone", Path(), {}, found, None, None, (), seed)
    opened = open_model(base, on_progress)
    shape = shape_only(opened.described)
    opened = replace(opened, reference=reference, format="none", kind="backbone", description=shape)
    return replace(opened, settings={}, layout=None, seed=seed)


def _remarks(reference: str, layout: Layout, header: WeightFile, description: Description) -> tuple[str, ...]:
    """What a person should know of another's checkpoint."""
    said = [f"'{reference}' does not say it; assumed: {what}." for what in description.assumed]
    if layout.dropped:
        names = ", ".join(by_block(layout.dropped))
        said.append(f"'{reference}' has tensors without a place in BEiT, left out: {names}.")
    if "averaged" in header.about:
        said.append(f"'{reference}' holds averaged weights too ({header.about['averaged']}); the raw ones are taken.")
    height, width = description.architecture.image_size
    if layout.naming == "hf" and height != width and description.architecture.positions != "absolute":
        said.append(f"'{reference}' takes {height} x {width} pixels, where transformers mixes up its bias tables.")
    return tuple(said)


def _read(
    header: WeightFile, settings: dict[str, Any], preprocessing: dict[str, Any], reference: str
) -> tuple[Layout, Description | None]:
    layout = read_layout(header.shapes, reference)
    if layout.naming == "dall-e":
        return layout, None
    stated = stated_in(settings, preprocessing, header.about)
    return layout, describe(layout, header.shapes, stated, reference)


def _our_checkpoint_folder(path: Path) -> Path | None:
    """The checkpoint folder, or the run, that this program wrote at `path`.

    A checkpoint is told by the `beit` section of its config.json; a damaged one by its place in a run.
    """
    if path.is_file():
        return path.parent if path.name == "model.safetensors" and _is_ours(path.parent) else None
    if any((path / name).is_file() for name in WEIGHTS) or _is_ours(path):
        return path if _is_ours(path) else None
    if path.name == "checkpoints":
        path = path.parent
    return path if any((path / "checkpoints").glob("step-*")) else None


def _is_ours(folder: Path) -> bool:
    try:
        return "beit" in parse_json((folder / "config.json").read_bytes())
    except (OSError, ValueError, TypeError):
        return (folder / SUMS).is_file() and folder.parent.name == "checkpoints"


def _our_checkpoint(path: Path) -> Checkpoint | None:
    folder = _our_checkpoint_folder(path)
    if folder is None:
        return None
    is_run = (folder / "checkpoints").is_dir()
    return newest_checkpoint(folder, weights_only=True) if is_run else verified_checkpoint(folder, weights_only=True)


def expect(opened: OpenedModel, *kinds: str, or_else: str = "") -> None:
    """Raises StorageError where the checkpoint is of another kind.

    Args:
        or_else: What else can be done with that one, a sentence.
    """
    if opened.kind not in kinds:
        made_by = _MADE_BY | {task.kind: task.command for task in TASKS.entries().values()}
        needed = " or ".join(dict.fromkeys(f"`beit {made_by[kind]}`" for kind in kinds))
        article = "an" if opened.kind[0] in "aeiou" else "a"
        raise StorageError(
            f"'{opened.reference}' is {article} {opened.kind}.",
            f"Give a checkpoint as made by {needed}. {or_else}".strip(),
        )


def expect_finetuned(opened: OpenedModel, or_else: str = "") -> TaskDefinition:
    """The task that the checkpoint was finetuned for. Raises StorageError where it was for none; see `expect`."""
    task = task_of_kind(opened.kind)
    if task is None:
        expect(opened, *(task.kind for task in TASKS.entries().values()), or_else=or_else)
    assert task is not None
    return task


def open_pretrained(reference: str, on_progress: OnProgress | None = None, seed: int = 0) -> OpenedModel:
    """The checkpoint of any BEiT or vision Transformer of timm's, to start from."""
    opened = open_model(reference, on_progress, seed)
    if opened.description is None:
        expect(opened, "masked-image-model", "classifier")
    return opened


def state_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What a checkpoint holds of a model: its parameters and persistent buffers."""
    return dict(model.state_dict())
