"""Maps the state-dict keys of other programs to ours, by name only. Imports no torch.

Our keys are those of the release and of timm (`blocks.0.attn.qkv.weight`), except `token_head` for the release's
`lm_head`. Hugging Face's keys are mapped by this table; it has none for patch aggregation (`cls_pt_layers`).

| here, official, timm | Hugging Face |
|---|---|
| cls_token, mask_token, pos_embed | beit.embeddings.{cls_token, mask_token, position_embeddings} |
| patch_embed.proj | beit.embeddings.patch_embeddings.projection |
| rel_pos_bias | beit.encoder.relative_position_bias |
| blocks.i.norm1, norm2, gamma_1, gamma_2 | beit.encoder.layer.i.layernorm_before, _after, lambda_1, lambda_2 |
| attn.qkv.weight (rows q, k, v), q_bias, v_bias | attention.attention.{query, key, value} |
| attn.proj, mlp.fc1, mlp.fc2 | attention.output.dense, intermediate.dense, output.dense |
| norm, fc_norm, head, token_head | layernorm, pooler.layernorm, classifier, lm_head |

Data2VecVision has `data2vec_vision.` for `beit.`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from beitcli.errors import StorageError
from beitcli.models.checkpoints.head_keys import head_name

Naming = Literal["beit", "hf", "dall-e", "timm", "vit", "dino", "moco-v3", "mae"]

AGGREGATION = ("cls_pt_layers.", "cls_pt_norm.", "cls_pt_lm_head.")  # keys of patch aggregation, of pretraining only
_PLAIN = re.compile(
    r"cls_token|mask_token|pos_embed|patch_embed\.proj\.(weight|bias)|rel_pos_bias\.relative_position_bias_table"
    r"|blocks\.\d{1,4}\.attn\.relative_position_bias_table"
    r"|(blocks|cls_pt_layers)\.\d{1,4}\.((norm1|norm2|attn\.proj|mlp\.fc1|mlp\.fc2)\.(weight|bias)"
    r"|attn\.(qkv\.weight|q_bias|v_bias)|gamma_1|gamma_2)"
    r"|(norm|fc_norm|head|token_head|cls_pt_norm|cls_pt_lm_head)\.(weight|bias)"
)
_INDEX = re.compile(r"(.*\.)?(relative_position_index|k_bias)")  # rebuilt when loading, or always zero
_LAYER = re.compile(r"(?:encoder\.layer|layers)\.(\d{1,4})\.(.+)")
_HF_TOP = {
    "embeddings.cls_token": "cls_token",
    "embeddings.mask_token": "mask_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "encoder.relative_position_bias.relative_position_bias_table": "rel_pos_bias.relative_position_bias_table",
    "layernorm": "norm",
    "pooler.layernorm": "fc_norm",
    "classifier": "head",
    "lm_head": "token_head",
}
_HF_LAYER = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.attention.query.bias": "attn.q_bias",
    "attention.attention.value.bias": "attn.v_bias",
    "attention.attention.relative_position_bias.relative_position_bias_table": "attn.relative_position_bias_table",
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "lambda_1": "gamma_1",
    "lambda_2": "gamma_2",
}
_QKV = [f"attention.attention.{part}.weight" for part in ("query", "key", "value")]
_HF_TOP_IN_MEMORY = {  # transformers 5 uses these keys in memory, and those above on disk
    "shared_position_bias.relative_position_bias_table": "rel_pos_bias.relative_position_bias_table"
}
_HF_LAYER_IN_MEMORY = {
    "attention.q_proj.bias": "attn.q_bias",
    "attention.v_proj.bias": "attn.v_bias",
    "relative_position_bias.relative_position_bias_table": "attn.relative_position_bias_table",
    "attention.o_proj": "attn.proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_QKV_IN_MEMORY = [f"attention.{part}_proj.weight" for part in "qkv"]
_HF_OUTSIDE = {"masked-image-model": ("layernorm", "lm_head"), "classifier": ("classifier",)}  # the `beit.` prefix
_OF_TRANSFORMERS = re.compile(r"^(beit|data2vec_vision)\.")  # models with a head have their backbone below
_INSIDE = re.compile(r"(backbone\.|beit\.|data2vec_vision\.)?(blocks|patch_embed|encoder|layers|embeddings)\.")


@dataclass(frozen=True)
class KeyMapping:
    """Maps our state-dict keys to those of a file.

    Attributes:
        naming: `beit` for the release's and timm's keys, `hf` for Hugging Face's; `dall-e` for a tokenizer's encoder;
            `timm` for a vision Transformer of timm, `vit`, `dino`, `moco-v3` and `mae` for others (`plain_vit.py`).
        parts: Our key -> the file's keys; several tensors are concatenated along the first axis.
        dropped: Keys of the file that are not used; of a vision Transformer, those of a part as `PART.* (NUMBER)`.
        head: Our key -> the file's key, for the tensors of a segmentation or detection head.
    """

    naming: Naming
    parts: dict[str, tuple[str, ...]]
    dropped: tuple[str, ...]
    head: dict[str, str] = field(default_factory=dict)

    @property
    def is_beit(self) -> bool:
        """Whether the keys are a BEiT's; if not, our keys are timm's `VisionTransformer`'s, or there are none."""
        return self.naming in ("beit", "hf")

    @property
    def is_version_2(self) -> bool:
        """Whether it is a pretraining checkpoint of BEiT v2, which does not use DALL-E's tokenizer."""
        return any(name.startswith(AGGREGATION) for name in self.parts)

    @property
    def is_of_mmseg(self) -> bool:
        """Whether it is a segmenter as mmseg and the release write it: `backbone.` before the keys of the backbone."""
        embedding = self.parts.get("patch_embed.proj.weight", ("",))[0]
        return self.naming == "beit" and bool(self.head) and embedding.startswith("backbone.")


def detect_key_mapping(names: Iterable[str], origin: str) -> KeyMapping:
    """Recognizes the naming and maps every key.

    Args:
        origin: Name of the file, for error messages.

    Raises:
        StorageError: It is not a BEiT, or has unknown tensors inside the backbone, which would change the result.
    """
    names = list(names)
    if "blocks.input.weight" in names or "blocks.input.w" in names:
        return KeyMapping("dall-e", {}, ())
    if any("embeddings.patch_embeddings.projection." in name for name in names):
        key_mapping = _read_hf(names)
    elif any(name.endswith("patch_embed.proj.weight") for name in names):
        key_mapping = _read_plain(names)
    else:
        key_mapping = KeyMapping("beit", {}, ())
    if "patch_embed.proj.weight" not in key_mapping.parts:
        first = f" (first: {names[0]})" if names else ""
        raise StorageError(
            f"'{origin}' holds no BEiT: none of its {len(names)} tensors is a BEiT's patch embedding{first}.",
            "Give a BEiT of this program, of the release (.pth), of timm or of transformers.",
        )
    unknown = [name for name in key_mapping.dropped if _INSIDE.match(name)]
    if unknown:
        raise StorageError(
            f"'{origin}' is no BEiT, though near: it has {unknown[0]}, and {len(unknown)} such tensors in all.",
            "Plain ViTs and BEiT's descendants (EVA, BEiT-3) compute something else; give a BEiT or BEiT v2.",
        )
    return key_mapping


def _read_plain(names: list[str]) -> KeyMapping:
    parts: dict[str, tuple[str, ...]] = {}
    dropped = []
    for name in names:
        ours = name.removeprefix("backbone.")  # segmentation checkpoints of the release
        ours = re.sub(r"^lm_head\.", "token_head.", ours)
        if _PLAIN.fullmatch(ours):
            parts[ours] = (name,)
        elif not _INDEX.fullmatch(ours):
            dropped.append(name)
    return _split_head("beit", parts, dropped)


def _split_head(naming: Naming, parts: dict[str, tuple[str, ...]], left: list[str]) -> KeyMapping:
    """Splits the keys outside the backbone into those of a segmentation or detection head and dropped ones."""
    head = {ours: name for name in left if (ours := head_name(name, of_transformers=naming == "hf")) is not None}
    taken = set(head.values())
    return KeyMapping(naming, parts, tuple(name for name in left if name not in taken), head)


def _read_hf(names: list[str]) -> KeyMapping:
    parts: dict[str, tuple[str, ...]] = {}
    dropped = []
    for name in names:
        ours, place = _from_hf(name)
        if ours is None:
            if not _INDEX.fullmatch(name):
                dropped.append(name)
        elif place is not None:
            rows = parts.get(ours, ("", "", ""))
            parts[ours] = (*rows[:place], name, *rows[place + 1 :])
        elif ours in parts:
            raise StorageError(
                f"Both {parts[ours][0]} and {name} are there: this model normalises twice (use_mean_pooling = false).",
                "Give the masked image model as it was released, with mean pooling.",
            )
        else:
            parts[ours] = (name,)
    for ours, theirs in parts.items():
        if "" in theirs:
            raise StorageError(f"{ours} is not whole: only {', '.join(filter(None, theirs))}.", "Download it again.")
    return _split_head("hf", parts, dropped)


def _from_hf(name: str) -> tuple[str | None, int | None]:
    """Returns our key, None if unknown; and for q, k and v the index (0-2) of that third of qkv, else None."""
    inner = _OF_TRANSFORMERS.sub("", name)
    layer = _LAYER.fullmatch(inner)
    if layer:
        for parts in (_QKV, _QKV_IN_MEMORY):
            if layer[2] in parts:
                return f"blocks.{layer[1]}.attn.qkv.weight", parts.index(layer[2])
        found = _renamed(layer[2], _HF_LAYER | _HF_LAYER_IN_MEMORY)
        return (f"blocks.{layer[1]}.{found}" if found else None), None
    return _renamed(inner, _HF_TOP | _HF_TOP_IN_MEMORY), None


def _renamed(name: str, table: dict[str, str]) -> str | None:
    if name in table:
        return table[name]
    stem, _, leaf = name.rpartition(".")
    return f"{table[stem]}.{leaf}" if stem in table and leaf in ("weight", "bias") else None


def by_block(names: Iterable[str]) -> list[str]:
    """Groups the same tensor of all blocks, such as `blocks.*.gamma_1 (12)`."""
    counts = Counter(re.sub(r"\.\d+\.", ".*.", name) for name in names)
    return [f"{name} ({count})" if count > 1 else name for name, count in counts.items()]


def hf_names(ours: str, kind: str) -> tuple[str, ...]:
    """Returns the Hugging Face keys of one of our tensors; three for qkv.

    Args:
        kind: `masked-image-model`, `classifier`, or `backbone`, whose keys have no `beit.` prefix.
    """
    prefix = "" if kind == "backbone" else "beit."
    block = re.fullmatch(r"blocks\.(\d+)\.(.+)", ours)
    if block:
        at = f"{prefix}encoder.layer.{block[1]}."
        if block[2] == "attn.qkv.weight":
            return tuple(at + part for part in _QKV)
        return (at + _renamed_back(block[2], _HF_LAYER),)
    theirs = _renamed_back(ours, _HF_TOP)
    return (theirs if theirs.split(".")[0] in _HF_OUTSIDE.get(kind, ()) else prefix + theirs,)


def _renamed_back(ours: str, table: dict[str, str]) -> str:
    for theirs, name in table.items():
        if ours == name:
            return theirs
        if ours.startswith(name + ".") and ours.rpartition(".")[0] == name:
            return f"{theirs}.{ours.rpartition('.')[2]}"
    raise KeyError(ours)
