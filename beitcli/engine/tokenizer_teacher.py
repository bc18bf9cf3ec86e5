"""The teacher of `train-tokenizer --teacher MODEL`: any MODEL, frozen; its features of an image's patches.

    features = norm(blocks(normalize(resize(images))))[patches]           (B, N, T)

The teacher sees the view that the tokenizer sees, resized so that its patches are the tokenizer's: grid x its own
patch size. Its positions are resized where that is another size than its own. CLIP's features are projected to the
space that it shares with text, as in the release of BEiT v2.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from beitcli.config.train_tokenizer import TrainTokenizerConfig
from beitcli.engine.events import OnEvent, downloads, warn
from beitcli.errors import StorageError
from beitcli.models.checkpoints.build import backbone_of
from beitcli.models.checkpoints.handle import CheckpointHandle
from beitcli.models.checkpoints.open import open_pretrained
from beitcli.models.networks.classifier import Classifier, ImageClassifier
from beitcli.models.networks.pooled_features import weights_digest
from beitcli.models.networks.timm_vit import TimmArchitecture
from beitcli.runtime.compute.device import Compute
from beitcli.runtime.storage.checkpoint import newest_checkpoint
from beitcli.runtime.storage.hashing import sha256_of
from beitcli.runtime.storage.run_dir import RunFolder
from beitcli.tokenizers.base import to_unit
from beitcli.tokenizers.kind import check_teacher

_LABELS = (1000, 11821, 21841, 21843)  # classes of ImageNet's sets: a head of another size on a CLIP is its projection


class PatchTeacher:
    """A frozen model in evaluation mode; see `tokenizers.kind.Teacher`.

    Args:
        projection: Linear map of the features; None to take them as they are.
    """

    def __init__(
        self, checkpoint: CheckpointHandle, model: ImageClassifier, projection: nn.Linear | None, sha256: str
    ) -> None:
        self.reference, self.sha256 = checkpoint.reference, sha256
        self.mean, self.std = (torch.tensor(each).view(3, 1, 1) for each in checkpoint.normalization)
        self.model, self.projection = model.requires_grad_(False).eval(), projection
        self.size = model.architecture.image_size
        self.width = model.architecture.width if projection is None else projection.out_features

    def to(self, device: torch.device) -> PatchTeacher:
        self.model.to(device)
        self.mean, self.std = self.mean.to(device), self.std.to(device)
        if self.projection is not None:
            self.projection.to(device)
        return self

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Maps uint8 or [0, 1] float images (B, 3, H, W) to (B, N, width)."""
        pixels = to_unit(images)
        if tuple(pixels.shape[2:]) != self.size:
            pixels = F.interpolate(pixels, self.size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        hidden = self.model.forward_features((pixels - self.mean) / self.std)  # type: ignore[operator]
        features: Tensor = self.model.fc_norm(hidden[:, self.model.num_prefix_tokens :])  # type: ignore[operator]
        return features if self.projection is None else self.projection(features)


def teacher_for(
    config: TrainTokenizerConfig, grid: tuple[int, int], compute: Compute, on_event: OnEvent
) -> PatchTeacher | None:
    """Opens the teacher, whose patches then are `grid` (h, w); None if the kind has none.

    Raises:
        UsageError: The kind needs one and there is none, or the other way round.
        StorageError: It is no vision Transformer, or cannot be fitted to the grid.
    """
    check_teacher(config)
    reference = config.teacher
    if reference is None:
        return None
    teacher = compute.world.rank_zero_first(lambda: _open(reference, grid, config.seed, on_event))
    return teacher.to(compute.device)


def _open(reference: str, grid: tuple[int, int], seed: int, on_event: OnEvent) -> PatchTeacher:
    checkpoint = open_pretrained(reference, downloads(on_event), seed)
    side = checkpoint.architecture.patch_size
    model, checkpoint = backbone_of(checkpoint, (grid[0] * side, grid[1] * side))
    warn(checkpoint.warnings, on_event)
    if checkpoint.seed is not None:
        return PatchTeacher(checkpoint, model, None, weights_digest(model))
    tensors = checkpoint.tensors()
    if isinstance(model, Classifier):  # a backbone is loaded without its last norm
        for norm in ("fc_norm", "norm"):
            if f"{norm}.weight" in tensors:
                model.fc_norm.load_state_dict({name: tensors[f"{norm}.{name}"] for name in ("weight", "bias")})
                break
    return PatchTeacher(checkpoint, model, _projection(checkpoint, tensors), sha256_of(checkpoint.weights))


def _projection(checkpoint: CheckpointHandle, tensors: dict[str, Tensor]) -> nn.Linear | None:
    """Returns the projection of a CLIP in timm's layout, which is its head; None for models that have none."""
    architecture, weight = checkpoint.architecture, tensors.get("head.weight")
    is_clip = isinstance(architecture, TimmArchitecture) and "_clip_" in architecture.name and not checkpoint.settings
    if not is_clip or weight is None or len(weight) in _LABELS:
        return None
    bias = tensors.get("head.bias")
    projection = nn.Linear(weight.shape[1], len(weight), bias=bias is not None).requires_grad_(False)
    with torch.no_grad():
        projection.weight.copy_(weight)
        if bias is not None:
            projection.bias.copy_(bias)
    return projection


def check_same_teacher(teacher: PatchTeacher, run: RunFolder) -> None:
    """Raises StorageError if the run was started with another teacher: its targets would change midway."""
    newest = newest_checkpoint(run.path)
    named = (newest.config.get("teacher") or {}) if newest is not None else {}
    if named and named.get("sha256") != teacher.sha256:
        raise StorageError(
            f"Teacher '{teacher.reference}' is not the one that run '{run.path}' was trained with.",
            "Put the former one back, or start a new run with another --out.",
        )
