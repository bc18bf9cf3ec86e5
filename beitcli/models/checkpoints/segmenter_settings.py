"""Reads what the network of a segmenter needs besides backbone, head and classes. Imports no torch.

transformers counts hidden states from 1, the embeddings first, so its index i is the output of block i - 2 (from 0):
[3, 5, 7, 11] are blocks 1, 3, 5 and 9 there, where the release takes blocks 3, 5, 7 and 11. What a config.json states
is computed as transformers computes it, or refused by name. The auxiliary head follows from its tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from beitcli.config.architecture import default_out_indices
from beitcli.errors import StorageError
from beitcli.runtime.weight_files.file_sniffing import one_line

MAPS = 4  # that a segmentation head takes
_DATA2VEC = "data2vec-vision"
_DATA2VEC_INDICES = (3, 5, 7, 11)  # transformers' default; BEiT has none
_RELEASED_POOLS = 4
_MOST_BINS = 256
_MOST_WEIGHT = 1000.0
_AUXILIARY = "decode_head.auxiliary."


@dataclass(frozen=True, kw_only=True)
class DeclaredSegmenter:
    """What the config files declare of a segmenter; None if not declared.

    Attributes:
        blocks: Indices from 0 of the blocks whose outputs the head takes, -1 for the embeddings.
        hidden_states: The same as transformers' `out_indices`; read instead of `blocks`.
        stages: The same as transformers' `out_features`.
        is_data2vec: Whether transformers takes `hidden_states` as a set, as Data2VecVision does.
        pools: Bins a side of each average pooling of UPerNet.
        auxiliary_weight: Weight of the auxiliary loss.
        ignore_index: Value of labels without a class, after `reduce_zero_label`.
        reduce_zero_label: Whether 0 in the masks stands for no class, and 1 for the first one.
    """

    blocks: Any = None
    hidden_states: Any = None
    stages: Any = None
    is_data2vec: bool = False
    pools: Any = None
    auxiliary_weight: Any = None
    ignore_index: Any = None
    reduce_zero_label: Any = None

    @property
    def states_blocks(self) -> bool:
        return any(value is not None for value in (self.blocks, self.hidden_states, self.stages))


NOTHING_DECLARED = DeclaredSegmenter()


@dataclass(frozen=True, kw_only=True)
class SegmenterSettings:
    """What the network of a segmenter is built from, besides backbone, head and classes; plain values.

    Attributes:
        out_indices: As in `Segmenter`.
        head: Keyword arguments of the head's constructor; empty for its defaults.
        ignore_index: Value in mask files that stands for no class.
        reduce_zero_label: Whether 0 stands for no class too, and 1 for the first one; None if nothing tells.
    """

    out_indices: tuple[int, ...]
    head: Mapping[str, Any] = field(default_factory=dict)
    ignore_index: int = 255
    reduce_zero_label: bool | None = None

    def config(self, depth: int) -> dict[str, Any]:
        """Returns the entries of config.json; none for those of the release."""
        own = {} if self.out_indices == default_out_indices(depth) else {"blocks": list(self.out_indices)}
        return {**own, **({"head_settings": dict(self.head)} if self.head else {})}


def of_transformers(settings: Mapping[str, Any], preprocessing: Mapping[str, Any]) -> DeclaredSegmenter:
    """Reads config.json and preprocessor_config.json of transformers. The values are checked for segmenters only."""
    is_data2vec = settings.get("model_type") == _DATA2VEC
    indices = settings.get("out_indices")
    indices = settings.get("segmentation_indices") if indices is None else indices  # name in old versions
    stages = settings.get("out_features")
    if is_data2vec:
        indices, stages = _DATA2VEC_INDICES if indices is None else indices, None
    return DeclaredSegmenter(
        hidden_states=indices,
        stages=stages,
        is_data2vec=is_data2vec,
        pools=settings.get("pool_scales"),
        auxiliary_weight=settings.get("auxiliary_loss_weight"),
        ignore_index=settings.get("semantic_loss_ignore_index"),
        reduce_zero_label=preprocessing.get("do_reduce_labels", preprocessing.get("reduce_labels")),
    )


def of_run(section: Mapping[str, Any]) -> DeclaredSegmenter:
    """Reads the `beit` section of this program's config.json."""
    head = section.get("head_settings") or {}
    return DeclaredSegmenter(
        blocks=section.get("blocks"), pools=head.get("pools"), auxiliary_weight=head.get("auxiliary_weight")
    )


def segmenter_settings(
    declared: DeclaredSegmenter,
    head: str | None,
    shapes: Mapping[str, tuple[int, ...]],
    depth: int,
    origin: str,
) -> SegmenterSettings:
    """Derives the settings of a segmenter.

    Args:
        head: Name of the head; None if unknown here.
        shapes: Shapes of the head's tensors, by our keys.

    Raises:
        StorageError: A declared value has no meaning, or contradicts the tensors.
    """
    reduced = _flag("do_reduce_labels", declared.reduce_zero_label, origin)
    return SegmenterSettings(
        out_indices=_out_indices(declared, depth, origin),
        head=_upernet(declared, shapes, origin) if head == "upernet" else {},
        ignore_index=_ignore_index(declared, bool(reduced), origin),
        reduce_zero_label=reduced,
    )


def _refused(origin: str, what: str, value: Any, why: str) -> StorageError:
    return StorageError(
        f"'{origin}' states {what} = {one_line(repr(value))}: {why}.",
        "Give the model with the config.json it came with.",
    )


def _numbers(value: Any) -> list[int] | None:
    """Returns a list of whole numbers; None for anything else."""
    if not isinstance(value, list | tuple) or any(type(each) is not int for each in value):
        return None
    return list(value)


def _out_indices(declared: DeclaredSegmenter, depth: int, origin: str) -> tuple[int, ...]:
    if declared.blocks is not None:
        blocks = _numbers(declared.blocks)
        if blocks is None or len(blocks) != MAPS or not all(-1 <= block < depth for block in blocks):
            raise _refused(origin, "blocks", declared.blocks, f"{MAPS} blocks from -1 to {depth - 1} are needed")
        return tuple(blocks)
    indices = declared.hidden_states
    if declared.stages is not None:
        staged = _of_stages(declared.stages, depth, origin)
        stated = staged if indices is None else _numbers(indices)
        if stated is None or [index % (depth + 1) for index in stated] != staged:
            raise _refused(origin, "out_indices", indices, f"its out_features are {', '.join(declared.stages)}")
        indices = staged
    if indices is None:
        return default_out_indices(depth)
    return _of_hidden_states(indices, declared.is_data2vec, depth, origin)


def _of_stages(stages: Any, depth: int, origin: str) -> list[int]:
    """Returns transformers' indices of its names of hidden states."""
    names = ["stem", *(f"stage{number}" for number in range(1, depth + 1))]
    if not isinstance(stages, list | tuple) or not all(name in names for name in stages):
        raise _refused(origin, "out_features", stages, f"they are called stem, stage1 to stage{depth}")
    return [names.index(name) for name in stages]


def _of_hidden_states(indices: Any, is_data2vec: bool, depth: int, origin: str) -> tuple[int, ...]:
    """Returns the blocks of transformers' `out_indices`: from 1 the embeddings, so index i is block i - 2.

    BeitForSemanticSegmentation indexes a list of depth + 1 hidden states with i - 1, so that 0 is its last one and
    negative indices count from the end; Data2VecVision looks which of 1 to depth + 1 are there.
    """
    numbers = _numbers(indices)
    least, most = (1, depth + 1) if is_data2vec else (-depth - 1, depth)
    if numbers is None or not all(least <= number <= most for number in numbers):
        raise _refused(origin, "out_indices", indices, f"transformers takes {least} to {most} of {depth} blocks")
    if is_data2vec:
        numbers = sorted(set(numbers))
    if len(numbers) != MAPS:
        raise _refused(origin, "out_indices", indices, f"the head takes {MAPS} hidden states")
    places = [number % (depth + 1) for number in numbers]
    if not is_data2vec and places != sorted(set(places)):
        raise _refused(origin, "out_indices", indices, "transformers takes them in ascending order only")
    return tuple((number - 1) % (depth + 1) - 1 for number in numbers)


def _ignore_index(declared: DeclaredSegmenter, reduced: bool, origin: str) -> int:
    value = declared.ignore_index
    if value is None:
        return 255
    if type(value) is not int:
        raise _refused(origin, "semantic_loss_ignore_index", value, "it is no whole number")
    if not 0 <= value < 255:  # never in a mask of 8 bits
        return 255
    return value + int(reduced)  # transformers compares it with labels that are reduced already


def _flag(name: str, value: Any, origin: str) -> bool | None:
    if value is not None and not isinstance(value, bool):
        raise _refused(origin, name, value, "true or false is needed")
    return value


def _upernet(declared: DeclaredSegmenter, shapes: Mapping[str, tuple[int, ...]], origin: str) -> dict[str, Any]:
    """Returns the arguments of `UPerNet` that are not the release's."""
    settings: dict[str, Any] = {}
    count = _numbered(shapes, "decode_head.psp_modules.{}.1.conv.weight")
    pools = _numbers(declared.pools)
    if declared.pools is not None and (pools is None or not all(1 <= bins <= _MOST_BINS for bins in pools)):
        raise _refused(origin, "pool_scales", declared.pools, f"numbers of bins from 1 to {_MOST_BINS} are needed")
    if pools is None and count != _RELEASED_POOLS:
        raise StorageError(
            f"'{origin}' pools over {count} scales, and nothing says which.", "Give it with its config.json."
        )
    if pools is not None and len(pools) != count:
        raise _refused(origin, "pool_scales", declared.pools, f"the head has {count} pooling modules")
    if pools not in (None, [1, 2, 3, 6]):
        settings["pools"] = pools
    auxiliary = _auxiliary(shapes)
    if auxiliary != {"channels": 256, "convs": 1, "concat": False}:
        settings["auxiliary"] = auxiliary
    weight = declared.auxiliary_weight
    if weight is not None and (
        isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight <= _MOST_WEIGHT
    ):
        raise _refused(origin, "auxiliary_loss_weight", weight, "a number from 0 is needed")
    if auxiliary is not None and weight not in (None, 0.4):
        settings["auxiliary_weight"] = float(weight)
    return settings


def _auxiliary(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any] | None:
    """Returns the arguments of the auxiliary head by its tensors; None if there are none."""
    classifier = shapes.get(f"{_AUXILIARY}conv_seg.weight")
    if classifier is None or len(classifier) < 2:
        return None
    return {
        "channels": classifier[1],
        "convs": _numbered(shapes, _AUXILIARY + "convs.{}.conv.weight"),
        "concat": f"{_AUXILIARY}conv_cat.conv.weight" in shapes,
    }


def _numbered(names: Iterable[str], pattern: str) -> int:
    """Returns how many of the names `pattern` with 0, 1, 2 and so on there are, without a gap."""
    names, number = set(names), 0
    while pattern.format(number) in names:
        number += 1
    return number
