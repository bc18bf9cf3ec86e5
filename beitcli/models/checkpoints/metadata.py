"""What a checkpoint is, from the names and shapes of its tensors and the settings beside them; needs no torch.

Shapes tell width, depth, FFN, patch size, positions, grid, vocabulary and classes. What they cannot tell, the number of
heads under absolute positions and the normalisation of the images, comes from the settings or is assumed, and said.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from beitcli.config.architecture import Architecture, Kind, Pooling, Positions
from beitcli.config.normalization import IMAGENET, INCEPTION, Normalization
from beitcli.config.tasks import task_of_head, task_of_kind
from beitcli.errors import StorageError
from beitcli.models.checkpoints.head_keys import head_classes, head_kind
from beitcli.models.checkpoints.key_mapping import Layout

_RELEASED_HEAD_WIDTH = 64
IMAGENETS = {1000: "imagenet-1k", 21841: "imagenet-22k"}  # by their number of classes; the names are timm's
_AXES = (
    ("_token", 3),
    ("pos_embed", 3),
    ("patch_embed.proj.weight", 4),
    ("norm1.weight", 1),
    ("norm2.weight", 1),
    ("norm.weight", 1),
    (".weight", 2),
    ("_table", 2),
    ("", 1),
)  # by the end of the name

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # of batch norm; nothing that is learned

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Stated:
    """What the settings beside the tensors say; None where they are silent.

    Attributes:
        image_size: (H, W) in pixels.
        classes: Names, in the order of the head's outputs.
        head: Of a segmenter or detector, by name.
        normalization: Mean and standard deviation a channel, of [0, 1] images.
        crop_share: Share of the resized image that evaluation keeps.
    """

    heads: int | None = None
    image_size: tuple[int, int] | None = None
    classes: tuple[str, ...] = ()
    normalization: Normalization | None = None
    crop_share: float | None = None
    pooling: Pooling | None = None
    norm_eps: float = 1e-6
    layer_scale: float | None = None
    head: str | None = None


@dataclass(frozen=True, kw_only=True)
class Description:
    """A checkpoint in BEiT's terms.

    Attributes:
        parameters: Numbers in all tensors that are taken.
        outputs: V of a masked image model, classes of what was finetuned, else 0.
        head: Of what was finetuned, by name, where it has one of its own; None where it is none that is known here.
        classes: Names; numbers where `names_classes` is false.
        assumed: What neither tensors nor settings tell, in words.
    """

    kind: Kind
    architecture: Architecture
    parameters: int
    outputs: int
    classes: tuple[str, ...]
    names_classes: bool
    pooling: Pooling
    normalization: Normalization
    crop_share: float | None
    head: str | None = None
    assumed: tuple[str, ...] = field(default=())


def joined_shapes(layout: Layout, shapes: Shapes, origin: str) -> dict[str, tuple[int, ...]]:
    """Shapes under our names: parts are joined along the first axis.

    Raises:
        StorageError: A tensor has not the axes that it has in every BEiT.
    """
    joined = {}
    for name, parts in layout.parts.items():
        axes = next(number for ending, number in _AXES if name.endswith(ending))
        for part in parts:
            if len(shapes[part]) != axes or 0 in shapes[part]:
                raise StorageError(
                    f"'{origin}' is no BEiT: {part} is {_by(shapes[part])}, where {axes} axes are due.", "Give a BEiT."
                )
        joined[name] = (sum(shapes[part][0] for part in parts), *shapes[parts[0]][1:])
    return joined


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a single number"


def _check_shapes(ours: Shapes, architecture: Architecture, origin: str) -> None:
    """Every tensor against what the architecture, read from a few of them, asks for."""
    width, table = architecture.width, 3 + math.prod(2 * side - 1 for side in architecture.grid)
    hidden = hidden_width(architecture)
    due: dict[str, tuple[int | None, ...]] = {
        "cls_token": (1, 1, width),
        "mask_token": (1, 1, width),
        "pos_embed": (1, architecture.num_patches + 1, width),
        "patch_embed.proj.weight": (width, 3, architecture.patch_size, architecture.patch_size),
        "attn.qkv.weight": (3 * width, width),
        "attn.proj.weight": (width, width),
        "mlp.fc1.weight": (hidden, width),
        "mlp.fc1.bias": (hidden,),
        "mlp.fc2.weight": (width, hidden),
        "relative_position_bias_table": (table, architecture.heads),
        "token_head.weight": (None, width),
        "head.weight": (None, width),
        "head.bias": (None,),
    }
    for name, shape in ours.items():
        wanted = next((each for ending, each in due.items() if name.endswith(ending)), (width,))
        if len(wanted) != len(shape) or any(w not in (None, s) for w, s in zip(wanted, shape, strict=True)):
            shown = " x ".join("*" if size is None else str(size) for size in wanted)
            raise StorageError(f"'{origin}' has {name} of {_by(shape)}, where {shown} is due.", "Download it again.")
    for head in ("token_head", "head"):
        rows = {ours[name][0] for name in (f"{head}.weight", f"{head}.bias") if name in ours}
        if len(rows) > 1:
            raise StorageError(f"'{origin}' has {head}.weight and {head}.bias of other lengths.", "Download it again.")


def describe(layout: Layout, shapes: Shapes, stated: Stated, origin: str) -> Description:
    """Reads a BEiT's description.

    Args:
        shapes: Of the file's tensors.
        origin: The file, for messages.

    Raises:
        StorageError: Tensors are missing or contradict each other or the settings.
    """
    ours = joined_shapes(layout, shapes, origin)
    assumed: list[str] = []
    architecture = _architecture(ours, stated, origin, assumed)
    _check_shapes(ours, architecture, origin)
    outputs = {name: ours[f"{name}.weight"][0] for name in ("token_head", "head") if f"{name}.weight" in ours}
    of_head = None if outputs else task_of_head(layout.head)
    kind: Kind = of_head.kind if of_head else "backbone"
    if outputs:
        kind = "masked-image-model" if "token_head" in outputs else "classifier"
    by_norm: Pooling = "token" if "norm.weight" in ours and "fc_norm.weight" not in ours else "mean"
    pooling: Pooling = "mean" if kind == "masked-image-model" else stated.pooling or by_norm
    needed = {"masked-image-model": "norm", "classifier": "norm" if pooling == "token" else "fc_norm"}.get(kind)
    if needed and f"{needed}.weight" not in ours:
        raise StorageError(f"'{origin}' has no {needed}, which a {kind} needs.", "Download it again.")
    normalization = stated.normalization
    if normalization is None:
        released = architecture.positions != "absolute" and not layout.is_version_2
        normalization = INCEPTION if released else IMAGENET
        assumed.append(f"images normalised by {'0.5 / 0.5' if released else 'ImageNet mean and std'}")
    head = (stated.head or head_kind(layout.head)) if of_head else None
    number = head_classes(head, layout.head, shapes) if of_head else outputs.get("token_head", outputs.get("head", 0))
    named = task_of_kind(kind) is not None
    classes = stated.classes if named else ()
    names_classes = not named or len(classes) == number
    if not names_classes:
        classes = tuple(map(str, range(number)))
        known = IMAGENETS.get(number)
        assumed.append(f"the classes of {known}, in its order" if known else "classes are named by their numbers")
    return Description(
        kind=kind,
        architecture=architecture,
        parameters=sum(math.prod(shape) for shape in ours.values())
        + sum(math.prod(shapes[name]) for name in layout.head.values() if not name.endswith(_STATISTICS)),
        outputs=number,
        classes=classes,
        names_classes=names_classes,
        pooling=pooling,
        normalization=normalization,
        crop_share=stated.crop_share,
        head=head,
        assumed=tuple(assumed),
    )


def _architecture(ours: Shapes, stated: Stated, origin: str, assumed: list[str]) -> Architecture:
    def fail(what: str) -> StorageError:
        return StorageError(f"'{origin}' {what}.", "Check that it is a whole BEiT; download it again.")

    width, channels, patch_size, across = ours["patch_embed.proj.weight"]
    if channels != 3 or patch_size != across:
        raise fail(f"has patches of {channels} x {patch_size} x {across}, not 3 x P x P")
    blocks = {int(name.split(".")[1]) for name in ours if name.startswith("blocks.")}
    depth = len(blocks)
    if not blocks or blocks != set(range(depth)):
        raise fail(f"lacks blocks: it has {sorted(blocks)}")
    for block in range(depth):
        for part in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"):
            if f"blocks.{block}.{part}.weight" not in ours:
                raise fail(f"lacks blocks.{block}.{part}.weight")
    positions, table = _positions(ours, depth, fail)
    grid = _grid(ours, stated, patch_size, positions, fail)
    return Architecture(
        image_size=(grid[0] * patch_size, grid[1] * patch_size),
        patch_size=patch_size,
        width=width,
        depth=depth,
        heads=_heads(ours[table][1] if table else None, stated, width, fail, assumed),
        mlp_ratio=_ratio(ours["blocks.0.mlp.fc1.weight"][0], width),
        positions=positions,
        layer_scale=(stated.layer_scale or 0.1) if "blocks.0.gamma_1" in ours else 0.0,
        norm_eps=stated.norm_eps,
    )


def hidden_width(architecture: Architecture) -> int:
    """Of the FFN, rounded as timm does."""
    return int(architecture.width * architecture.mlp_ratio)


def _ratio(hidden: int, width: int) -> float:
    """FFN over width, such that timm's rounding gives `hidden` back."""
    exact = hidden / width
    return exact if int(width * exact) == hidden else (hidden + 0.5) / width


def _positions(ours: Shapes, depth: int, fail: Any) -> tuple[Positions, str | None]:
    """The kind of positions, and the name of a bias table."""
    leaf = "relative_position_bias_table"
    own = [f"blocks.{block}.attn.{leaf}" for block in range(depth) if f"blocks.{block}.attn.{leaf}" in ours]
    found: dict[Positions, str | None] = {}
    if "pos_embed" in ours:
        found["absolute"] = None
    if f"rel_pos_bias.{leaf}" in ours:
        found["shared"] = f"rel_pos_bias.{leaf}"
    if own:
        found["per-block"] = own[0]
    if len(found) != 1 or (own and len(own) != depth):
        kinds = " and ".join(found) if found else "no"
        raise fail(f"has {kinds} positions ({len(own)} of {depth} blocks with a bias table); one kind is needed")
    return next(iter(found.items()))


def _grid(ours: Shapes, stated: Stated, patch_size: int, positions: Positions, fail: Any) -> tuple[int, int]:
    """Patches down and across: as stated where that fits the tensors, else the square that does."""

    def rows(grid: tuple[int, int]) -> int:
        if positions == "absolute":
            return grid[0] * grid[1] + 1
        return (2 * grid[0] - 1) * (2 * grid[1] - 1) + 3

    name = "pos_embed" if positions == "absolute" else next(n for n in ours if n.endswith("position_bias_table"))
    there = ours[name][1] if positions == "absolute" else ours[name][0]
    if stated.image_size is not None:
        grid = (stated.image_size[0] // patch_size, stated.image_size[1] // patch_size)
        if rows(grid) == there:
            return grid
    side = math.isqrt(there - 1) if positions == "absolute" else (math.isqrt(max(0, there - 3)) + 1) // 2
    if side < 1 or rows((side, side)) != there:
        size = f" of {stated.image_size[0]} x {stated.image_size[1]} pixels" if stated.image_size else ""
        raise fail(f"has {there} rows in {name}, which fits neither a square grid nor an image{size}")
    return side, side


def _heads(from_table: int | None, stated: Stated, width: int, fail: Any, assumed: list[str]) -> int:
    heads = from_table or stated.heads
    if heads is None:
        heads = max(1, width // _RELEASED_HEAD_WIDTH)
        assumed.append(f"{heads} heads of {_RELEASED_HEAD_WIDTH}, as in every released BEiT")
    if from_table and stated.heads and from_table != stated.heads:
        raise fail(f"states {stated.heads} heads, but its bias table has {from_table}")
    if width % heads:
        raise fail(f"has width {width}, which {heads} heads do not divide")
    return heads
