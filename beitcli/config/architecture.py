"""Architecture of a BEiT, and its named sizes (paper, section 2.2; stdlib only)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from beitcli.config.nearest import suggestion
from beitcli.errors import UsageError

Kind = str  # `masked-image-model`, `backbone`, `tokenizer`, or that of a task (`config.tasks`)

_IN_WORDS = {
    "masked-image-model": "a pretrained model, not finetuned yet",
    "backbone": "a backbone without a head",
}
Pooling = Literal["mean", "token"]


Positions = Literal["absolute", "shared", "per-block"]


def kind_in_words(kind: Kind) -> str:
    """Returns a kind of checkpoint as a message says it: `a classifier`, `a pretrained model, not finetuned yet`."""
    return _IN_WORDS.get(kind) or f"{'an' if kind[:1] in 'aeiou' else 'a'} {kind}"


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Architecture of a backbone.

    Attributes:
        image_size: (H, W) in pixels.
        patch_size: Side of a patch in pixels.
        width: Embedding dimension D, of `depth` blocks with `heads` heads and an MLP of `mlp_ratio` x D.
        positions: Positional encoding: `absolute` (the paper's model), `shared` (one relative position bias table for
            all blocks, the released pretraining) or `per-block` (one table per block, the released finetuning).
        layer_scale: Initial value of LayerScale; 0 disables it.
        norm_eps: Epsilon of every LayerNorm; transformers' default is 1e-12.
    """

    image_size: tuple[int, int] = (224, 224)
    patch_size: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    positions: Positions = "absolute"
    layer_scale: float = 0.0
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", tuple(self.image_size))
        height, width = self.image_size
        if self.patch_size < 1 or height < self.patch_size or height % self.patch_size or width % self.patch_size:
            down = max(self.patch_size, height - height % max(1, self.patch_size))
            raise UsageError(
                f"Image size {height} x {width} is not divided by patch size {self.patch_size}.",
                f"Give a size that is a multiple of it, such as {down}, or another patch size.",
            )
        if self.width % self.heads:
            raise UsageError(
                f"Width {self.width} is not divided by {self.heads} heads.", "Give a width that is a multiple of heads."
            )

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) patches."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def num_patches(self) -> int:
        return self.grid[0] * self.grid[1]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"image_size": list(self.image_size)}


@dataclass(frozen=True, kw_only=True)
class Aggregation:
    """Patch aggregation of pretraining (BEiT v2, arXiv 2208.06366, section 2.4).

    Attributes:
        after: Number of the block, from 1, whose patches are aggregated; 0 if a weights file does not say it.
        blocks: Number of extra blocks.
        head: Whether the extra blocks' output goes through the model's `norm` and head, or through their own.
    """

    after: int
    blocks: int = 2
    head: Literal["shared", "own"] = "shared"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"width": 128, "depth": 4, "heads": 4},
    "small": {"width": 192, "depth": 6, "heads": 3},
    "medium": {"width": 384, "depth": 12, "heads": 6},  # ViT-S
    "base": {"width": 768, "depth": 12, "heads": 12},
    "large": {"width": 1024, "depth": 24, "heads": 16},
    "giant": {"width": 1408, "depth": 40, "heads": 16, "mlp_ratio": 48 / 11},
}


def require_size(name: str) -> None:
    """Raises UsageError if `name` is not in `SIZES`."""
    if name not in SIZES:
        raise UsageError(f"There is no model '{name}'.", suggestion(name, SIZES) or f"Models: {', '.join(SIZES)}.")


def default_out_indices(depth: int) -> tuple[int, ...]:
    """Returns the indices, from 0, of the blocks whose outputs a segmentation head takes, as in the release."""
    return tuple(max(1, round(depth * twelfths / 12)) - 1 for twelfths in (4, 6, 8, 12))


def finetuning_architecture(pretrained: Architecture, image_size: tuple[int, int] | None) -> Architecture:
    """Returns the backbone's architecture for finetuning: a shared relative position bias becomes one per block."""
    return replace(
        pretrained,
        image_size=image_size or pretrained.image_size,
        positions="per-block" if pretrained.positions == "shared" else pretrained.positions,
    )
