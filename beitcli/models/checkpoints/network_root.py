"""Finds the vision Transformer in a state dict: the prefix of its keys, and OpenMMLab's names. Imports no torch.

| prefix | who writes it |
|---|---|
| `model.`, `net.`, `module.` | a module around the network, as Lightning, wrappers and averages have it |
| `backbone.`, `model.backbone.`, `backbone.bottom_up.backbone.` | OpenMMLab, unilm's detectors |
| `pretrained.model.`, `encoder.model.`, `visual.trunk.` | MiDaS and ZoeDepth, segmentation_models, open_clip |
| `teacher.`, `student.`, `encoder.`, `ema_model.` | several networks in one file |

`_orig_mod.` and the like count nowhere in a key: torch puts them around a part that it compiles or shards.

OpenMMLab's names (mmseg, mmpretrain, mmselfsup):

| here | OpenMMLab |
|---|---|
| patch_embed.proj | patch_embed.projection |
| blocks.i.norm1, norm2 | layers.i.ln1, ln2 |
| blocks.i.mlp.fc1, mlp.fc2 | layers.i.ffn.layers.0.0, ffn.layers.1 |
| blocks.i.attn.qkv, proj, gamma_1, gamma_2 | the same; mmseg's ViT: attn.attn.in_proj_, attn.attn.out_proj |
| norm, fc_norm | ln1, ln2 |
| head, token_head | head.fc, head.layers.head; head.cls_head |
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from beitcli.errors import StorageError
from beitcli.models.checkpoints.head_keys import head_name
from beitcli.models.checkpoints.key_mapping import KeyMapping
from beitcli.runtime.weight_files import choices

PATCHES, _OPENMMLAB = "patch_embed.proj.weight", "patch_embed.projection.weight"
_HF = "embeddings.patch_embeddings.projection.weight"
_OF_TRANSFORMERS = ("beit.", "data2vec_vision.")  # before the backbone, not before its head
_PLAIN_ROOTS = ("", "backbone.")  # as the release and this program write them
_RENAMED = (
    (r"^layers\.(\d+)\.", r"blocks.\1."),
    (r"^(blocks\.\d+\.)ln([12])\.", r"\1norm\2."),
    (r"^(blocks\.\d+\.)ffn\.layers\.0\.0\.", r"\1mlp.fc1."),
    (r"^(blocks\.\d+\.)ffn\.layers\.1\.", r"\1mlp.fc2."),
    (r"^(blocks\.\d+\.)(?:attn\.gamma1|ffn\.gamma2|(?:attn|ffn)\.gamma([12]))\.weight$", r"\1ls\2.gamma"),
    (r"^(blocks\.\d+\.attn)\.attn\.in_proj_(weight|bias)$", r"\1.qkv.\2"),
    (r"^(blocks\.\d+\.attn)\.attn\.out_proj\.", r"\1.proj."),
    (r"^patch_embed\.projection\.", "patch_embed.proj."),
    (r"^(ln1|norm1)\.", "norm."),
    (r"^(ln2|norm2)\.", "fc_norm."),
)
_RENAMED_HEAD = ((r"^head\.(fc|layers\.head)\.", "head."), (r"^head\.cls_head\.", "token_head."))
_CLASSIFIER = re.compile(r"(head|fc_norm)\.((fc|layers\.head|cls_head)\.)?(weight|bias)")
_ADAPTER = re.compile(r"\.(lora_[AB]|lora_embedding_[AB]|base_layer|modules_to_save|hada_w\d|ia3_l)\b")
_WRAPPERS = re.compile(  # of single blocks: torch.compile, FSDP, activation checkpointing
    r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_fpw_module)\."
)
_MERGE = (
    "Merge the adapter into its base model first: "
    "PeftModel.from_pretrained(BASE, ADAPTER).merge_and_unload().save_pretrained('merged'), and give merged/."
)


@dataclass(frozen=True)
class Network:
    """The keys of one network in a state dict.

    Attributes:
        keys: Key without prefix, in the release's or transformers' naming -> key in the file.
        outside: Keys of the file outside the network, grouped by their first parts.
        as_stored: Whether the keys are those of the file.
        root: Prefix of the keys in the file.
    """

    keys: dict[str, str]
    outside: tuple[str, ...] = ()
    as_stored: bool = True
    root: str = ""

    def in_file(self, mapping: KeyMapping) -> KeyMapping:
        """Returns a mapping of the network's keys as one of the file's."""
        if self.as_stored:
            return mapping
        return replace(
            mapping,
            parts={ours: tuple(self.keys[name] for name in names) for ours, names in mapping.parts.items()},
            dropped=(*(self.keys.get(name, self.root + name) for name in mapping.dropped), *self.outside),
            head={ours: self.keys[name] for ours, name in mapping.head.items()},
        )


def find_network(names: Iterable[str], origin: str, part: str = "", keys: Sequence[str] = ()) -> Network:
    """Finds the network whose patch embedding the keys name.

    Args:
        names: Keys of the file.
        origin: Name of the file, for error messages.
        part: Prefix of the network that is meant, or a word of it; empty if there is but one.
        keys: Keys of the state dicts of the file, which could have been named instead.

    Raises:
        StorageError: There are several and nothing says which is meant, or the weights are those of an adapter.
    """
    names = list(names)
    stored = {_WRAPPERS.sub("", name): name for name in names}
    is_wrapped = len(stored) == len(names) and list(stored) != names
    if is_wrapped:
        names = list(stored)
    if any(_ADAPTER.search(name) for name in names):
        raise StorageError(f"'{origin}' holds the weights of a peft adapter beside or without those of a BEiT.", _MERGE)
    roots = roots_of(names)
    if part:
        root = choices.named(roots, part) if len(roots) > 1 or roots[:1] != [""] else None
        if root is None:
            raise choices.unknown(origin, part, [*keys, *roots])
    elif len(roots) > 1:
        root = choices.default(roots)
        if root is None:
            raise choices.refusal(origin, "vision Transformers", roots)
    else:
        root = roots[0] if roots else ""
    network = _network(names, root, alone=len(roots) < 2)
    if not is_wrapped:
        return network
    return replace(network, keys={ours: stored[name] for ours, name in network.keys.items()}, as_stored=False)


def roots_of(names: Iterable[str]) -> list[str]:
    """Returns the prefixes before the patch embeddings."""
    found = []
    for name in names:
        ending = next((each for each in (PATCHES, _OPENMMLAB, _HF) if name.endswith(each)), None)
        if ending is None:
            continue
        root = name.removesuffix(ending)
        if ending == _HF:
            root = next((root.removesuffix(each) for each in _OF_TRANSFORMERS if root.endswith(each)), root)
        if not root or root.endswith("."):
            found.append(root)
    return list(dict.fromkeys(found))


def _network(names: list[str], root: str, *, alone: bool) -> Network:
    of_transformers = any(name.startswith(root) and name.endswith(_HF) for name in names)
    of_openmmlab = f"{root}{_OPENMMLAB}" in names
    if alone and not of_openmmlab and root in (_PLAIN_ROOTS[:1] if of_transformers else _PLAIN_ROOTS):
        return Network({name: name for name in names})
    around = root if of_transformers else root.removesuffix("backbone.")  # before heads too
    has_decoder = any(name.startswith(f"{around}decode_head.") for name in names)
    keys: dict[str, str] = {}
    outside = []
    for name in names:
        if name.startswith(root):
            inner = _renamed(name.removeprefix(root), _RENAMED) if of_openmmlab else name.removeprefix(root)
        elif name.startswith(around) and _is_head(name.removeprefix(around)):
            inner = _renamed(name.removeprefix(around), _RENAMED_HEAD)
        else:
            outside.append(name)
            continue
        if inner.startswith("fpn") and not has_decoder:  # the neck of a detector, which is no segmenter
            outside.append(name)
        else:
            keys[inner] = name
    return Network(keys, tuple(_by_part(outside)), as_stored=False, root=root)


def _is_head(name: str) -> bool:
    return head_name(name) is not None or _CLASSIFIER.fullmatch(name) is not None


def _renamed(name: str, table: tuple[tuple[str, str], ...]) -> str:
    for pattern, ours in table:
        name = re.sub(pattern, ours, name)
    return name


def _by_part(names: Iterable[str]) -> list[str]:
    """Groups keys by their first part, such as `scratch.* (40)`."""
    counts = Counter(re.sub(r"^([^.]+\.).*$", r"\1*", name) for name in names)
    return [f"{name} ({count})" if name.endswith(".*") else name for name, count in counts.items()]
