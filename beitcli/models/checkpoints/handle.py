"""The record of an opened checkpoint. Imports torch only when weights are read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from beitcli.config.architecture import Aggregation, Architecture, Kind, Pooling, kind_in_words
from beitcli.config.eval_crop import RELEASED_CROP, EvalCrop
from beitcli.config.normalization import IMAGENET, NORMALIZATIONS, Normalization
from beitcli.config.problem import Problem
from beitcli.errors import StorageError
from beitcli.models.checkpoints.key_mapping import KeyMapping
from beitcli.models.checkpoints.segmenter_settings import SegmenterSettings
from beitcli.runtime.weight_files.file_sniffing import one_line
from beitcli.runtime.weight_files.reader import WeightFile, read_tensors

if TYPE_CHECKING:
    import torch

    from beitcli.runtime.compute.device import Compute
    from beitcli.runtime.storage.checkpoint import CheckpointFolder


@dataclass(frozen=True, kw_only=True)
class CheckpointHandle:
    """An opened checkpoint, of which only header and configs are read. Built only in `open.py` and `describe.py`.

    Attributes:
        reference: The MODEL reference as the user gave it.
        format: `beit` (this program), `official`, `timm`, `hf`, `dall-e`; `vit`, `dino`, `moco-v3`, `mae`; `none` for
            random weights.
        header: Header of the weights file; None for `random`.
        settings: The `beit` section of config.json; empty for checkpoints of other programs.
        folder: The verified folder, if this program wrote it.
        backbone: None for a tokenizer. Use `architecture` to read it.
        key_mapping: None for tokenizers and for timm models that keep their own keys.
        parameters: Number of elements of all tensors that are used.
        outputs: V of a masked image model; number of classes of a classifier, segmenter or detector; else 0.
        classes: Class names in the order of the outputs; numbers if `names_classes` is false.
        normalization: Mean and standard deviation, three channels each, of images in [0, 1].
        crop: Resizing and cropping in evaluation; the release's if not declared.
        problem: What the outputs of a classifier mean.
        head: Name of the segmentation or detection head; None if unknown here.
        aggregation: Patch aggregation of pretraining, whose tensors only a run that goes on needs; else None.
        segmenter: What else the network of a segmenter is built from; None for other kinds.
        assumed: Values that neither tensors nor config files declare.
        warnings: Damaged newer checkpoints; for files of other programs, what was assumed or left out.
        seed: Seed of random weights, if only the architecture comes from a checkpoint.
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
    crop: EvalCrop = RELEASED_CROP
    problem: Problem = "single-label"
    head: str | None = None
    aggregation: Aggregation | None = None
    segmenter: SegmenterSettings | None = None
    assumed: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    seed: int | None = None

    @property
    def architecture(self) -> Architecture:
        """Architecture of the vision Transformer. Raises StorageError for a tokenizer."""
        if self.backbone is None:
            raise StorageError(f"'{self.reference}' is {kind_in_words(self.kind)}.", "Give a BEiT.")
        return self.backbone

    @property
    def weights(self) -> Path:
        return self.header.path if self.header else Path()

    @property
    def run(self) -> Path:
        """The run folder of the checkpoint; for files of other programs, the folder of the weights."""
        return self.folder.path.parent.parent if self.folder else self.weights.parent

    def compute(self, device: str, precision: str) -> Compute:
        """Chooses device and precision. `auto` keeps the training precision on the same device type."""
        from beitcli.runtime.compute.device import choose_compute  # imports torch

        chosen = choose_compute(device, precision)
        same = self.settings.get("device") == chosen.device.type
        return replace(chosen, precision=self.settings["precision"]) if precision == "auto" and same else chosen

    def normalized(self, name: str | None) -> CheckpointHandle:
        """Returns a copy with the named normalization; the handle itself for None."""
        if name is None:
            return self
        warnings = tuple(each for each in self.warnings if "images normalised" not in each)
        return replace(self, normalization=NORMALIZATIONS[name], warnings=warnings)

    def tensors(self, *, with_head: bool = False) -> dict[str, torch.Tensor]:
        """Reads the state dict in fp32 on the CPU, keys mapped to ours. timm models and tokenizers keep their keys.

        Args:
            with_head: Whether to read a segmentation or detection head too, in its own dtypes, if it is known here.

        Raises:
            StorageError: A number is NaN or infinite, or the weights are quantised.
        """
        if self.seed is not None:
            from beitcli.models.networks.classifier import init_from_seed

            return dict(init_from_seed(self.architecture, self.seed).state_dict())
        tensors = self._mapped(with_head)
        require_finite(tensors, self.reference)
        return tensors

    def _mapped(self, with_head: bool) -> dict[str, torch.Tensor]:
        import torch

        stored = read_tensors(self.weights, self.header.part if self.header else "")
        if self.kind == "tokenizer":
            return stored
        if self.key_mapping is None:
            return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in stored.items()}
        joined = {}
        for name, parts in self.key_mapping.parts.items():
            tensors = [_floating(stored[part], part, self.reference).float() for part in parts]
            joined[name] = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
        if with_head and self.head is not None:
            joined |= {ours: stored[name] for ours, name in self.key_mapping.head.items()}
        return joined


def require_finite(tensors: Mapping[str, torch.Tensor], reference: str) -> None:
    """Raises StorageError if a weight is NaN or infinite: every figure of such a model would be undefined."""
    absent = [name for name, tensor in tensors.items() if tensor.is_meta]
    if absent:
        raise StorageError(
            f"'{reference}' has no numbers for {one_line(absent[0])}: it was saved from the device meta.",
            "Save the model once its weights are loaded.",
        )
    odd = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not _is_finite(tensor)]
    if odd:
        more = f" and {len(odd) - 1} more tensors" if len(odd) > 1 else ""
        raise StorageError(
            f"'{reference}' has NaN or infinite weights, in {one_line(odd[0])}{more}.",
            "Take an earlier checkpoint, or download it again.",
        )


def _is_finite(tensor: torch.Tensor) -> bool:
    """Whether no number is NaN or infinite: its extremes say so, in a twentieth of the time that isfinite takes."""
    if tensor.numel() == 0:
        return True
    low, high = (tensor if tensor.element_size() > 1 else tensor.float()).aminmax()  # float8 has no aminmax
    return math.isfinite(low.item()) and math.isfinite(high.item())


def _floating(tensor: torch.Tensor, name: str, reference: str) -> torch.Tensor:
    if not tensor.is_floating_point():
        raise StorageError(
            f"'{reference}' holds {name} as {str(tensor.dtype).removeprefix('torch.')}"
            + (", no weights of a BEiT." if tensor.is_complex() else ": it is quantised."),
            "Give the weights in floating point.",
        )
    return tensor
