"""The record of an opened checkpoint. Imports torch only when weights are read."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from beitcli.config.architecture import Architecture, Kind, Pooling
from beitcli.config.normalization import IMAGENET, NORMALIZATIONS, Normalization
from beitcli.errors import StorageError
from beitcli.models.checkpoints.key_mapping import KeyMapping
from beitcli.runtime.weight_files.reader import WeightFile, read_tensors

if TYPE_CHECKING:
    import torch

    from beitcli.runtime.compute.device import Compute
    from beitcli.runtime.storage.checkpoint import CheckpointFolder


@dataclass(frozen=True, kw_only=True)
class CheckpointHandle:
    """A checkpoint, read as far as its header. Built in `open.py` alone.

    Attributes:
        reference: The MODEL as the user names it.
        format: `beit` (this program), `official`, `timm`, `hf`, `dall-e`; `none` where nothing is learned.
        header: Of the weights file; None for `random`.
        settings: The `beit` section of config.json; empty for other programs' checkpoints.
        folder: The verified folder, if this program wrote it.
        backbone: None for a tokenizer. Read it as `architecture`.
        key_mapping: None for tokenizers and for timm models that keep their own names.
        parameters: Number of elements of all tensors that are used.
        outputs: V of a masked image model, classes of a classifier, segmenter or detector, else 0.
        classes: Names in the order of the outputs; numbers where `names_classes` is false.
        normalization: Mean and standard deviation of the training images, three channels each, in [0, 1].
        crop_pct: Share of the resized side that evaluation keeps (0-1); None where it is not declared.
        head: Name of the segmentation or detection head; None where it is not known here.
        assumed: What neither tensors nor config files say.
        warnings: Newer checkpoints that are damaged; for other programs' files, what was assumed or left out.
        seed: Of the weights, where only the shape is taken from a checkpoint.
    """

    reference: str
    format: str
    kind: Kind
    header: WeightFile | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    folder: CheckpointFolder | None = None
    backbone: Architecture | None = None
    key_mapping: KeyMapping | None = None
    parameters: int = 0
    outputs: int = 0
    classes: tuple[str, ...] = ()
    names_classes: bool = True
    pooling: Pooling = "mean"
    normalization: Normalization = IMAGENET
    crop_pct: float | None = None
    head: str | None = None
    assumed: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    seed: int | None = None

    @property
    def architecture(self) -> Architecture:
        """Shape of the vision Transformer. Raises StorageError for a tokenizer."""
        if self.backbone is None:
            raise StorageError(f"'{self.reference}' is a {self.kind}.", "Give a BEiT.")
        return self.backbone

    @property
    def weights(self) -> Path:
        return self.header.path if self.header else Path()

    @property
    def run(self) -> Path:
        """The run folder of the checkpoint; for other programs' files the folder of the weights."""
        return self.folder.path.parent.parent if self.folder else self.weights.parent

    def compute(self, device: str, precision: str) -> Compute:
        """Device and precision. `auto` repeats the training precision on the same kind of device."""
        from beitcli.runtime.compute.device import choose_compute  # imports torch

        chosen = choose_compute(device, precision)
        same = self.settings.get("device") == chosen.device.type
        return replace(chosen, precision=self.settings["precision"]) if precision == "auto" and same else chosen

    def normalized(self, name: str | None) -> CheckpointHandle:
        """A copy with the normalization of an option; the same handle for None."""
        if name is None:
            return self
        warnings = tuple(each for each in self.warnings if "images normalised" not in each)
        return replace(self, normalization=NORMALIZATIONS[name], warnings=warnings)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The state dict in fp32 on the CPU, keys mapped to ours. timm's own models and tokenizers keep their keys."""
        import torch

        if self.seed is not None:
            from beitcli.models.networks.classifier import init_from_seed

            return dict(init_from_seed(self.architecture, self.seed).state_dict())
        stored = read_tensors(self.weights)
        if self.kind == "tokenizer":
            return stored
        if self.key_mapping is None:
            return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in stored.items()}
        joined = {}
        for name, parts in self.key_mapping.parts.items():
            tensors = [_floating(stored[part], part, self.reference).float() for part in parts]
            joined[name] = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
        return joined

    def head_tensors(self) -> dict[str, torch.Tensor]:
        """The state dict of a segmentation or detection head, keys mapped to ours; empty for unknown heads."""
        if self.key_mapping is None or self.head is None:
            return {}
        stored = read_tensors(self.weights)
        return {ours: stored[name] for ours, name in self.key_mapping.head.items()}


def _floating(tensor: torch.Tensor, name: str, reference: str) -> torch.Tensor:
    if not tensor.is_floating_point():
        raise StorageError(
            f"'{reference}' holds {name} as {str(tensor.dtype).removeprefix('torch.')}: it is quantised.",
            "Give the weights in floating point.",
        )
    return tensor
