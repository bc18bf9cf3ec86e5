"""Finds the state dicts in the content of a torch file, under whatever keys its training program put them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from beitcli.errors import StorageError
from beitcli.runtime.weight_files import choices
from beitcli.runtime.weight_files.file_sniffing import one_line
from beitcli.runtime.weight_files.stand_ins import StandIn, module_tensors

if TYPE_CHECKING:
    import torch

# of BEiT, DeepSpeed, Lightning and timm, the dVAEs of BEiT and DALLE-pytorch, EMA weights, DINO
WRAPPERS = ("model", "module", "state_dict", "weights", "model_ema", "teacher")
_AVERAGE = "model_ema"
_DEPTH = 3  # of keys within keys
_MOST_VISITS = 1_000_000
_PATCHES = re.compile(r"patch_embed(ding)?s?\.")
_OPTIMIZER = {"state", "param_groups"}  # keys of an optimizer's state dict
_SHARDED = ("param_shapes", "ds_version", "ds_config")  # of DeepSpeed


def choose_state_dict(origin: str, content: Any, part: str = "") -> tuple[str, dict[str, torch.Tensor], list[str]]:
    """Chooses the state dict that is the model: the one of a known key, the only one, or the only raw one.

    Args:
        origin: The file, for error messages.
        part: Key of the state dict to take; ignored where no key is called so, as it may be a prefix in it.

    Returns:
        Its key (dotted; empty for the whole content), its tensors, and the keys of the other ones.

    Raises:
        StorageError: There is none, or nothing says which of several is meant.
    """
    if isinstance(content, Mapping) and any(key in content for key in _SHARDED) and _is_sharded(content.get("module")):
        raise deepspeed_refusal(origin)
    found = dict(_state_dicts(content, "", 0, _Visits(origin)))
    likely = {key: each for key, each in found.items() if any(_PATCHES.search(name) for name in each)}
    wrapper_key = next((key for key in WRAPPERS if found.get(key)), None)
    networks = likely or {key: each for key, each in found.items() if any(n.endswith(".weight") for n in each)} or found
    chosen = choices.named(list(networks), part) if part else None
    if wrapper_key == _AVERAGE and len(networks) > 1 and choices.default(list(networks)) not in (None, _AVERAGE):
        wrapper_key = None  # the raw one is taken beside its average
    if chosen is None and wrapper_key is not None and (wrapper_key in networks or not likely):
        chosen = wrapper_key
    if chosen is None and networks:
        chosen = "" if "" in networks else choices.default(list(networks))
        if chosen is None:
            raise choices.refusal(origin, "state dicts", list(networks))
    if chosen is None:
        raise _nothing(origin, content)
    return chosen, found[chosen], [key for key in networks if key != chosen]


def tensors_of(content: Any) -> dict[str, torch.Tensor]:
    """Returns the tensors of a mapping by name; empty for anything else."""
    import torch

    entries = content.items() if isinstance(content, Mapping) else ()
    return {name: t for name, t in entries if isinstance(name, str) and isinstance(t, torch.Tensor)}


class _Visits:
    """Counts what is looked at: a pickle of some kilobytes can hold one dict a billion times within others."""

    def __init__(self, origin: str) -> None:
        self.origin, self.left = origin, _MOST_VISITS

    def count(self, entries: int) -> None:
        self.left -= entries
        if self.left < 0:
            raise StorageError(
                f"'{self.origin}' has more than {_MOST_VISITS:,} entries within one another.",
                "Save the state dict by itself.",
            )


def _state_dicts(content: Any, key: str, depth: int, visits: _Visits) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """Yields every mapping of tensors with its dotted key; a pickled module counts as its state dict."""
    if isinstance(content, Mapping):
        visits.count(len(content))
    if isinstance(content, StandIn):
        tensors = module_tensors(content)
        if tensors:
            yield key, tensors
            return
    if isinstance(content, Mapping):
        if content.keys() >= _OPTIMIZER:
            return
        tensors = tensors_of(content)
        if tensors:
            yield key, tensors
        inner = [(name, each) for name, each in content.items() if isinstance(name, str)]
    elif isinstance(content, (list, tuple)) and len(content) <= 8:
        inner = [(str(number), each) for number, each in enumerate(content)]
    else:
        return
    if depth < _DEPTH:
        for name, each in inner:
            yield from _state_dicts(each, f"{key}.{name}" if key else name, depth + 1, visits)


def _is_sharded(module: Any) -> bool:
    """Whether a file of DeepSpeed has no weights, or only what ZeRO 3 leaves of them: tensors without elements."""
    return not any(math.prod(tensor.shape) for name, tensor in tensors_of(module).items() if name.endswith(".weight"))


def _nothing(origin: str, content: Any) -> StorageError:
    if isinstance(content, Mapping):
        keys = [one_line(str(key), 30) for key in list(content)]
        if content.keys() & {"optimizer", "param_groups", "exp_avg"} and not content.keys() & set(WRAPPERS):
            return StorageError(
                f"'{origin}' holds the state of an optimizer and no model.",
                "Give the file of the model beside it: model.safetensors, pytorch_model.bin, or the run's checkpoint.",
            )
        held = "a dict of " + (", ".join(f"'{key}'" for key in keys[:6]) or "nothing")
        arrays = any(_is_array(each) for each in _values(content))
    else:
        held = f"a {content.name}" if isinstance(content, StandIn) else f"a {type(content).__name__}"
        arrays = _is_array(content)
    if arrays:
        return StorageError(
            f"'{origin}' holds NumPy arrays, not tensors.",
            "Where you trust it, convert it: state = {name: torch.from_numpy(array) for name, array in arrays.items()};"
            " torch.save(state, 'weights.pth').",
        )
    return StorageError(
        f"'{origin}' holds no state dict but {held}.",
        f"Save the state dict itself, or under one of {', '.join(WRAPPERS)}.",
    )


def _values(content: Mapping[Any, Any]) -> Iterator[Any]:
    for each in content.values():
        yield from each.values() if isinstance(each, Mapping) else (each,)


def _is_array(content: Any) -> bool:
    return isinstance(content, StandIn) and content.name.endswith("._reconstruct")


def deepspeed_refusal(origin: str) -> StorageError:
    """Returns the error for a checkpoint of DeepSpeed's ZeRO, whose weights lie in shards."""
    return StorageError(
        f"'{origin}' is a part of a DeepSpeed checkpoint, whose weights lie in shards.",
        "Join them: `python FOLDER/zero_to_fp32.py FOLDER weights` in its folder, and give weights/pytorch_model.bin.",
    )
