"""Derives kind and architecture of a checkpoint from tensor names, shapes and config files. Imports no torch.

Shapes give width, depth, MLP ratio, patch size, position encoding, grid, vocabulary size and classes. The number of
attention heads (with absolute positions) and the image normalization come from the config files; otherwise they are
assumed and listed in `assumed`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from beitcli.config.architecture import Aggregation, Architecture, Kind, Pooling, Positions
from beitcli.config.normalization import IMAGENET, INCEPTION, Normalization
from beitcli.config.tasks import task_of_head
from beitcli.errors import StorageError
from beitcli.models.checkpoints.config_readers import DeclaredConfig
from beitcli.models.checkpoints.head_keys import head_classes, head_kind
from beitcli.models.checkpoints.key_mapping import KeyMapping
from beitcli.models.checkpoints.plain_vit import NORMALIZED_AS_IMAGENET

_RELEASED_HEAD_WIDTH = 64
IMAGENETS = {1000: "imagenet-1k", 21841: "imagenet-22k"}  # timm's names, by number of classes
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
)  # number of axes, by key suffix

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # batch norm buffers, not parameters

Shapes = Mapping[str, tuple[int, ...]]


def mapped_shapes(key_mapping: KeyMapping, shapes: Shapes, origin: str) -> dict[str, tuple[int, ...]]:
    """Returns shapes by our keys; q, k and v are joined along the first axis.

    Raises:
        StorageError: A tensor has the wrong number of axes.
    """
    if not key_mapping.is_beit:  # compared with timm's own later
        for name in (part for (part,) in key_mapping.parts.values() if not shapes[part] or 0 in shapes[part]):
            raise StorageError(
                f"'{origin}' has {name} of {_by(shapes[name])}, which is no weight.", "Download it again."
            )
        return {name: shapes[part] for name, (part,) in key_mapping.parts.items()}
    joined = {}
    for name, parts in key_mapping.parts.items():
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
    """Checks the shape of every tensor against the architecture, which was derived from a few. Raises StorageError."""
    width, table = architecture.width, 3 + math.prod(2 * side - 1 for side in architecture.grid)
    hidden = int(width * architecture.mlp_ratio)  # rounded as timm does
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
        expected = next((each for ending, each in due.items() if name.endswith(ending)), (width,))
        if len(expected) != len(shape) or any(w not in (None, s) for w, s in zip(expected, shape, strict=True)):
            shown = " x ".join("*" if size is None else str(size) for size in expected)
            raise StorageError(f"'{origin}' has {name} of {_by(shape)}, where {shown} is due.", "Download it again.")
    for head in ("token_head", "head"):
        rows = {ours[name][0] for name in (f"{head}.weight", f"{head}.bias") if name in ours}
        if len(rows) > 1:
            raise StorageError(f"'{origin}' has {head}.weight and {head}.bias of other lengths.", "Download it again.")


def kind_outputs_head(
    key_mapping: KeyMapping | None, ours: Shapes, shapes: Shapes, declared: DeclaredConfig
) -> tuple[Kind, int, str | None]:
    """Returns the kind of model, its outputs (V or the number of classes, 0 for a backbone), and the head's name.

    Args:
        key_mapping: None for timm models that keep their own keys.
        ours: Shapes by our keys.
        shapes: Shapes by the file's keys.
    """
    outputs = {name: ours[f"{name}.weight"][0] for name in ("token_head", "head") if f"{name}.weight" in ours}
    if outputs.get("token_head"):
        return "masked-image-model", outputs["token_head"], None
    if outputs.get("head"):
        return "classifier", outputs["head"], None
    names = key_mapping.head if key_mapping else {}
    task = task_of_head(names)
    if task is None:
        return "backbone", 0, None
    head = declared.head or head_kind(names)
    return task.kind, head_classes(head, names, shapes), head


def read_aggregation(ours: Shapes, declared: DeclaredConfig) -> Aggregation | None:
    """Returns the patch aggregation of a pretraining checkpoint; None without it."""
    blocks = {name.split(".")[1] for name in ours if name.startswith("cls_pt_layers.")}
    if not blocks:
        return None
    head: Literal["shared", "own"] = "own" if "cls_pt_lm_head.weight" in ours else "shared"
    return Aggregation(after=declared.aggregate_after or 0, blocks=len(blocks), head=head)


def choose_pooling(kind: Kind, ours: Shapes, declared: DeclaredConfig, origin: str) -> Pooling:
    """Returns the declared pooling, mean of the patches or class token; else derives it from the norm that exists.

    Raises:
        StorageError: The required norm is missing.
    """
    by_norm: Pooling = "token" if "norm.weight" in ours and "fc_norm.weight" not in ours else "mean"
    pooling: Pooling = "mean" if kind == "masked-image-model" else declared.pooling or by_norm
    needed = {"masked-image-model": "norm", "classifier": "norm" if pooling == "token" else "fc_norm"}.get(kind)
    if needed and f"{needed}.weight" not in ours:
        raise StorageError(f"'{origin}' has no {needed}, which a {kind} needs.", "Download it again.")
    return pooling


def choose_normalization(
    declared: DeclaredConfig, key_mapping: KeyMapping | None, architecture: Architecture, assumed: list[str]
) -> Normalization:
    """Returns the declared image normalization, else that of the published models of this layout.

    | layout | normalization |
    |---|---|
    | timm | that of timm's own weights of the model |
    | transformers | 0.5 / 0.5, as BeitImageProcessor has it |
    | the release's segmenters (mmseg), BEiT v2 | ImageNet mean and std |
    | other relative positions; absolute ones with LayerScale (DiT) | 0.5 / 0.5 |
    | absolute positions without LayerScale (the paper's) | ImageNet mean and std |
    """
    if declared.normalization is not None:
        return declared.normalization
    if key_mapping is not None and key_mapping.naming in NORMALIZED_AS_IMAGENET:
        return IMAGENET
    chosen = declared.default_normalization
    if chosen is None:
        chosen = _of_layout(key_mapping, architecture)
    name = {IMAGENET: "ImageNet mean and std", INCEPTION: "0.5 / 0.5"}.get(chosen, f"{chosen[0]} / {chosen[1]}")
    assumed.append(f"images normalised by {name}")
    return chosen


def _of_layout(key_mapping: KeyMapping | None, architecture: Architecture) -> Normalization:
    if key_mapping is None or not key_mapping.is_beit or key_mapping.is_of_mmseg or key_mapping.is_version_2:
        return IMAGENET
    of_paper = architecture.positions == "absolute" and not architecture.layer_scale and key_mapping.naming == "beit"
    return IMAGENET if of_paper else INCEPTION


def name_classes(
    kind: Kind, outputs: int, declared: DeclaredConfig, assumed: list[str]
) -> tuple[tuple[str, ...], bool]:
    """Returns the class names and whether they are declared; if not, the names are numbers."""
    if kind in ("masked-image-model", "backbone"):
        return (), True
    if len(declared.classes) == outputs:
        return declared.classes, True
    dataset = IMAGENETS.get(outputs)
    assumed.append(f"the classes of {dataset}, in its order" if dataset else "classes are named by their numbers")
    return tuple(map(str, range(outputs))), False


def read_architecture(ours: Shapes, declared: DeclaredConfig, origin: str, assumed: list[str]) -> Architecture:
    """Derives the architecture of a BEiT and checks every tensor against it.

    Args:
        ours: Shapes by our keys.
        origin: Name of the file, for error messages.
        assumed: Output list: values that neither shapes nor config files declare are appended.

    Raises:
        StorageError: Tensors are missing, or contradict each other or the config files.
    """

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
    grid = _grid(ours, declared, patch_size, positions, fail)
    architecture = Architecture(
        image_size=(grid[0] * patch_size, grid[1] * patch_size),
        patch_size=patch_size,
        width=width,
        depth=depth,
        heads=_heads(ours[table][1] if table else None, declared, width, fail, assumed),
        mlp_ratio=_ratio(ours["blocks.0.mlp.fc1.weight"][0], width),
        positions=positions,
        layer_scale=(declared.layer_scale or 0.1) if "blocks.0.gamma_1" in ours else 0.0,
        norm_eps=1e-6 if declared.norm_eps is None else declared.norm_eps,
    )
    _check_shapes(ours, architecture, origin)
    return architecture


def _ratio(hidden: int, width: int) -> float:
    """Returns the MLP ratio for which timm's rounding gives exactly `hidden`."""
    exact = hidden / width
    return exact if int(width * exact) == hidden else (hidden + 0.5) / width


def _positions(ours: Shapes, depth: int, fail: Any) -> tuple[Positions, str | None]:
    """Returns the position encoding, and the key of a bias table or None."""
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


def _grid(ours: Shapes, declared: DeclaredConfig, patch_size: int, positions: Positions, fail: Any) -> tuple[int, int]:
    """Returns the patch grid (h, w): the declared one if it fits the tensors, else the square grid that does."""

    def rows(grid: tuple[int, int]) -> int:
        if positions == "absolute":
            return grid[0] * grid[1] + 1
        return (2 * grid[0] - 1) * (2 * grid[1] - 1) + 3

    name = "pos_embed" if positions == "absolute" else next(n for n in ours if n.endswith("position_bias_table"))
    there = ours[name][1] if positions == "absolute" else ours[name][0]
    if declared.image_size is not None:
        grid = (declared.image_size[0] // patch_size, declared.image_size[1] // patch_size)
        if rows(grid) == there:
            return grid
    side = math.isqrt(there - 1) if positions == "absolute" else (math.isqrt(max(0, there - 3)) + 1) // 2
    if side < 1 or rows((side, side)) != there:
        size = f" of {declared.image_size[0]} x {declared.image_size[1]} pixels" if declared.image_size else ""
        raise fail(f"has {there} rows in {name}, which fits neither a square grid nor an image{size}")
    return side, side


def _heads(from_table: int | None, declared: DeclaredConfig, width: int, fail: Any, assumed: list[str]) -> int:
    heads = from_table or declared.heads
    if heads is None:
        heads = max(1, width // _RELEASED_HEAD_WIDTH)
        assumed.append(f"{heads} heads of {_RELEASED_HEAD_WIDTH}, as in every released BEiT")
    if from_table and declared.heads and from_table != declared.heads:
        raise fail(f"states {declared.heads} heads, but its bias table has {from_table}")
    if width % heads:
        raise fail(f"has width {width}, which {heads} heads do not divide")
    return heads
