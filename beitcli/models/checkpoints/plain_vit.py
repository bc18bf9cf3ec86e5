"""Plain vision Transformers in the layouts of DeiT, DINO, MoCo v3 and MAE. Imports no torch.

| layout | state dict | keys of the network | beside them, not used |
|---|---|---|---|
| `vit`: DeiT, a finetuned MAE, bare weights | `model`, or the file | as in timm | |
| `dino` | `teacher` | `backbone.` | the projection head `head.`; the student |
| `moco-v3` | `state_dict` | `module.base_encoder.` | its projector `head.`, `momentum_encoder.`, `predictor.` |
| `mae` | `model` | as in timm | `mask_token`, `decoder_...` |

All are computed by timm's `VisionTransformer`, whose arguments follow from the shapes. Only the number of heads does
not: it is stated (`args.num_heads`, the name of the architecture), else that of the published model of this width.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from beitcli.errors import StorageError
from beitcli.models.checkpoints.config_readers import DeclaredConfig
from beitcli.models.checkpoints.head_keys import head_name
from beitcli.models.checkpoints.key_mapping import KeyMapping, Naming

Shapes = Mapping[str, tuple[int, ...]]

NORMALIZED_AS_IMAGENET = ("dino", "moco-v3", "mae")  # layouts whose programs have no other normalisation
_EMBED = "patch_embed.proj.weight"
_KEYS = re.compile(
    r"cls_token|dist_token|reg_token|pos_embed|patch_embed\.proj\.(weight|bias)"
    r"|blocks\.\d{1,4}\.((norm1|norm2|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)\.(weight|bias)|ls[12]\.gamma)"
    r"|(norm|fc_norm|head|head_dist)\.(weight|bias)"
)
_INSIDE = re.compile(r"(blocks|patch_embed)\.|norm_pre\.|register_tokens|rope|attn_pool\.")
_ROOTS = re.compile(r"(module\.)?(teacher\.)?(backbone\.|base_encoder\.)?")  # what may stand before the keys
_SECOND = {"momentum_encoder.": "base_encoder.", "student.": "teacher."}  # copies that are left, and beside which
_BEIT = re.compile(r"(.*\.)?(q_bias|relative_position_bias_table|(lm|token)_head\.weight|gamma_1|mask_token)")
_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}  # DeiT, DINO and MAE, by width; ViT-H has heads of 80
_MOCO_HEADS = {"vit_small": 12, "vit_base": 12, "vit_large": 16, "vit_huge": 16}  # its ViT-S has heads of 32
_HEAD_WIDTH = 64
_SIZES = {192: "tiny", 384: "small", 1024: "large"}


def is_plain_vit(names: Iterable[str]) -> bool:
    """Whether the tensors are those of a vision Transformer that is no BEiT, by what only one of them has."""
    names = list(names)
    if not any(name.endswith(_EMBED) or re.search(r"patch_embed\.proj\.\d+\.weight$", name) for name in names):
        return False
    if any(name.endswith(".attn.qkv.bias") for name in names):
        return True
    has_blocks = any(name.endswith(".attn.qkv.weight") for name in names)
    return has_blocks and not any(_BEIT.fullmatch(name) for name in names)


def is_known_root(root: str) -> bool:
    """Whether the keys of DeiT, DINO, MoCo v3 or MAE may begin so."""
    return _ROOTS.fullmatch(root) is not None


def vit_key_mapping(names: Iterable[str], origin: str) -> KeyMapping:
    """Maps every key to timm's, or names what is left out.

    Args:
        origin: Name of the file, for error messages.

    Raises:
        StorageError: There are several networks, one under a prefix that is not known, or tensors inside of it that a
            plain vision Transformer does not have.
    """
    names = list(names)
    root = _root(names, origin)
    layout = _layout(names, root)
    parts: dict[str, tuple[str, ...]] = {}
    head: dict[str, str] = {}
    left: list[str] = []
    for name in names:
        ours = re.sub(r"^(blocks\.\d+\.)gamma_([12])$", r"\1ls\2.gamma", name.removeprefix(root))  # DeiT III
        of_head = head_name(name)
        if not name.startswith(root) or (layout == "moco-v3" and ours.startswith("head.")):
            left.append(name)
        elif of_head is not None:
            head[of_head] = name
        elif not _KEYS.fullmatch(ours):
            if _INSIDE.match(ours):
                raise StorageError(
                    f"'{origin}' is no plain vision Transformer, though near: it has {name}.",
                    "Give a ViT as DeiT, DINO, MoCo v3 or MAE have it, or the folder of a timm model.",
                )
            left.append(name)
        elif ours in parts:
            raise StorageError(f"'{origin}' has {ours} twice: {parts[ours][0]} and {name}.", "Keep one of them.")
        else:
            parts[ours] = (name,)
    return KeyMapping(layout, parts, tuple(_by_part(left)), head)


def timm_key_mapping(names: Iterable[str], origin: str) -> KeyMapping | None:
    """Maps the keys of a model whose config.json names a model of timm; None if all are timm's own."""
    names = list(names)
    if is_plain_vit(names) and _root(names, origin):
        return vit_key_mapping(names, origin)
    head = {ours: name for name in names if (ours := head_name(name)) is not None}
    if not head:
        return None
    taken = set(head.values())
    return KeyMapping("timm", {name: (name,) for name in names if name not in taken}, (), head)


def vit_arguments(
    ours: Shapes,
    key_mapping: KeyMapping,
    about: Mapping[str, Any],
    declared: DeclaredConfig,
    origin: str,
    assumed: list[str],
) -> tuple[str, dict[str, Any]]:
    """Derives timm's name and arguments, `img_size` included, from the shapes.

    Args:
        ours: Shapes by timm's keys.
        about: Plain values inside the weights file, such as `args`.
        assumed: Output list: what neither shapes nor settings say is appended.

    Raises:
        StorageError: Tensors are missing or contradict each other, or the number of heads cannot be told.
    """

    def fail(what: str) -> StorageError:
        return StorageError(f"'{origin}' {what}.", "Check that it is a whole vision Transformer; download it again.")

    if len(ours[_EMBED]) != 4 or ours[_EMBED][1] != 3 or ours[_EMBED][2] != ours[_EMBED][3] or 0 in ours[_EMBED]:
        raise fail(f"has patches of {' x '.join(map(str, ours[_EMBED]))}, where width x 3 x P x P is due")
    width, _, patch_size, _ = ours[_EMBED]
    depth = _depth(ours, fail)
    prefix = sum(name in ours for name in ("cls_token", "dist_token")) + _registers(ours)
    size, embeds_prefix = _size(ours, patch_size, prefix, declared, fail)
    hidden = ours["blocks.0.mlp.fc1.weight"][0] if "blocks.0.mlp.fc1.weight" in ours else 4 * width
    exact = hidden / width
    arguments: dict[str, Any] = {
        "img_size": list(size),
        "patch_size": patch_size,
        "embed_dim": width,
        "depth": depth,
        "mlp_ratio": exact if int(width * exact) == hidden else (hidden + 0.5) / width,  # as timm rounds it
    }
    if "blocks.0.attn.qkv.bias" not in ours:
        arguments["qkv_bias"] = False
    if "blocks.0.ls1.gamma" in ours:
        arguments["init_values"] = 1e-5
    if _registers(ours):
        arguments["reg_tokens"] = _registers(ours)
    if not embeds_prefix:
        arguments["no_embed_class"] = True
    if "cls_token" not in ours:
        arguments["class_token"] = False
    if "fc_norm.weight" in ours and "norm.weight" in ours:
        raise fail("has both norm.weight and fc_norm.weight, of which a vision Transformer computes one")
    if "fc_norm.weight" in ours or "cls_token" not in ours:
        arguments["global_pool"] = "avg"
    distilled = "dist_token" in ours
    name = f"{'deit' if distilled else 'vit'}_{_SIZES.get(width, 'base')}_{'distilled_' * distilled}patch16_224"
    heads = _heads(width, key_mapping.naming, about, declared, assumed)
    if heads is None:
        example = json.dumps({"architecture": name, "model_args": arguments | {"num_heads": 0}})
        raise StorageError(
            f"'{origin}' does not say how many heads its width of {width} has.",
            f"Put a config.json beside it: {example}, with the number of heads in place of 0.",
        )
    if width % heads:
        raise fail(f"has width {width}, which {heads} heads do not divide")
    return name, arguments | {"num_heads": heads}


def _root(names: list[str], origin: str) -> str:
    """Returns what stands before the keys of the network. Raises StorageError unless it is one known prefix."""
    found = [name.removesuffix(_EMBED) for name in names if name.endswith(_EMBED)]
    kept = [root for root in found if not any(copy in root and _beside(root, copy, found) for copy in _SECOND)]
    if not kept:
        stem = next(name for name in names if "patch_embed.proj." in name)
        raise StorageError(
            f"'{origin}' embeds patches by several convolutions ({stem}), which no plain vision Transformer does.",
            "Give one with a single one, such as MoCo v3's vit_small or vit_base.",
        )
    if len(kept) > 1:
        places = " and ".join(f"'{root}'" if root else "no prefix" for root in kept)
        raise StorageError(
            f"'{origin}' holds {len(kept)} vision Transformers, under {places}.",
            "Save the state dict of the one that is meant by itself.",
        )
    if not _ROOTS.fullmatch(kept[0]):
        raise StorageError(
            f"'{origin}' has its vision Transformer under '{kept[0]}', a layout that is not known.",
            "Save its state dict without this prefix.",
        )
    return kept[0]


def _beside(root: str, copy: str, found: list[str]) -> bool:
    """Whether the network that is meant stands beside its copy."""
    return root.replace(copy, _SECOND[copy]) in found


def _layout(names: list[str], root: str) -> Naming:
    if root.endswith("base_encoder."):
        return "moco-v3"
    outside = root.removesuffix("backbone.")
    if outside != root and any(name.startswith((f"{outside}head.", f"{outside}dino_head.")) for name in names):
        return "dino"
    return "mae" if any(name.startswith(f"{root}decoder_") for name in names) else "vit"


def _by_part(names: Iterable[str]) -> list[str]:
    """Groups keys by their first part, such as `momentum_encoder.* (158)`; `base_encoder.head.*` by two."""
    part = re.compile(r"^((?:module\.)?(?:base_encoder\.|backbone\.)?[^.]+\.).*$")
    counts = Counter(part.sub(r"\1*", name) for name in names)
    return [f"{name} ({count})" if name.endswith(".*") else name for name, count in counts.items()]


def _depth(ours: Shapes, fail: Any) -> int:
    """Returns the number of blocks. Raises StorageError if one is missing."""
    there = {int(name.split(".")[1]) for name in ours if name.startswith("blocks.")}
    depth = max(there, default=-1) + 1
    absent = next((block for block in range(depth) if block not in there), None)
    if absent is not None or not depth:
        raise fail(f"lacks block {absent} of {depth}" if depth else "has no blocks")
    return depth


def _registers(ours: Shapes) -> int:
    return ours["reg_token"][1] if len(ours.get("reg_token", ())) == 3 else 0


def _size(
    ours: Shapes, patch_size: int, prefix: int, declared: DeclaredConfig, fail: Any
) -> tuple[tuple[int, int], bool]:
    """Returns the image size (H, W), and whether the prefix tokens have positions too."""
    shape = ours.get("pos_embed", ())
    if len(shape) != 3:
        raise fail("lacks pos_embed" if not shape else f"has pos_embed of {len(shape)} axes, where 3 are due")
    for rows, embeds_prefix in ((shape[1] - prefix, True), (shape[1], False)):
        if declared.image_size is not None:
            height, width = (side // patch_size for side in declared.image_size)
            if height * width == rows:
                return (height * patch_size, width * patch_size), embeds_prefix
        side = math.isqrt(max(0, rows))
        if side and side * side == rows:
            return (side * patch_size, side * patch_size), embeds_prefix
    raise fail(
        f"has {shape[1]} positions, which are no square grid with or without the {prefix} tokens before the patches"
    )


def _heads(
    width: int, layout: str, about: Mapping[str, Any], declared: DeclaredConfig, assumed: list[str]
) -> int | None:
    """Returns the number of heads: stated, by the name of the architecture, or by the width; None if in doubt."""
    if declared.heads is not None:
        return declared.heads
    args = about.get("args")
    args = args if isinstance(args, Mapping) else {}
    named = about.get("arch")  # MoCo v3's programs and timm's; DINO's stands in `args`
    of_moco = _MOCO_HEADS.get(named) if isinstance(named, str) else None
    if layout == "moco-v3" or of_moco is not None:
        heads = of_moco or {384: 12}.get(width, _HEADS.get(width))
        if heads is not None:
            if of_moco is None:
                assumed.append(f"{heads} heads, as MoCo v3's model of width {width} has")
            return heads
    for name in (named, args.get("arch"), args.get("model")):
        heads = _named_heads(name, width)
        if heads is not None:
            return heads
    heads = _HEADS.get(width) or (width // _HEAD_WIDTH if width % _HEAD_WIDTH == 0 else None)
    if heads is not None:
        less = "; MoCo v3's model of this width has 12" if width == 384 else ""
        assumed.append(f"{heads} heads of {width // heads}, as the published model of this width has{less}")
    return heads


def _named_heads(name: Any, width: int) -> int | None:
    """Returns the heads of the named architecture if it has this width: DINO's and MAE's names, or one of timm's."""
    if not isinstance(name, str):
        return None
    sizes = {"tiny": 192, "small": 384, "base": 768, "large": 1024, "huge": 1280}
    short = re.fullmatch(r"(?:mae_)?vit_(tiny|small|base|large|huge)(?:_patch\d+)?(?:_dec\w+)?", name)
    if short and sizes[short[1]] == width:
        return _HEADS[width]
    from beitcli.models.checkpoints.timm_references import heads_of_timm_model

    return heads_of_timm_model(name, width)
