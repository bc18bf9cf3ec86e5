"""Reads the weights of DALL-E's tokenizer (arXiv 2102.12092, App. A) in each published layout.

| layout | example key | source |
|---|---|---|
| OpenAI's | blocks.group_2.block_1.res_path.conv_1.w | encoder.pkl, decoder.pkl; state dicts of them |
| Hugging Face's | blocks.group_2.group.block_1.res_path.path.conv_1.weight | facebook/flava-image-codebook: encoder |
| ours | groups.1.0.convs.0.weight | the cache |

Layout, half (the encoder starts with a 7x7 convolution, the decoder with a 1x1) and sizes are derived from keys and
shapes; file names are only used to find the files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from torch import Tensor

from beitcli.errors import StorageError, UsageError
from beitcli.runtime.deferred_compiler import meta_device
from beitcli.runtime.weight_files.reader import read_tensors
from beitcli.tokenizers.base import sha256_of_tensors
from beitcli.tokenizers.dvae import DiscreteVAE
from beitcli.tokenizers.dvae_network import Decoder, DVAEArchitecture, Encoder
from beitcli.tokenizers.legacy_pickle import read_pickled

SUFFIXES = (".safetensors", ".pkl", ".pth", ".pt", ".bin")
WHOLE = ("model.safetensors", "pytorch_model.bin")  # file names of the encoder on the hub
GRID = 14  # tokens per side of the images that BEiT uses

_PLACE = re.compile(r"(?:group_|groups\.)(\d{1,3})\.(?:group\.)?(?:block_)?(\d{1,3})\.")


@dataclass(frozen=True)
class Half:
    """Weights of the encoder or the decoder.

    Attributes:
        kind: `encoder` or `decoder`.
        architecture: For an encoder, the decoder's sizes are the defaults.
        tensors: State dict in fp32 on the CPU, with our keys.
    """

    path: Path
    kind: str
    architecture: DVAEArchitecture
    tensors: dict[str, Tensor]

    @cached_property
    def sha256(self) -> str:
        return sha256_of_tensors(self.tensors)


def openai_name(own: str) -> str:
    """Maps `groups.1.0.convs.0.weight` to `blocks.group_2.block_1.res_path.conv_1.w`."""
    *place, leaf = own.split(".")
    if place[0] == "groups":
        path = "id_path" if place[3] == "skip" else f"res_path.conv_{int(place[4]) + 1}"
        body = f"group_{int(place[1]) + 1}.block_{int(place[2]) + 1}.{path}"
    else:
        body = {"stem": "input", "head": "output.conv"}[place[0]]
    return f"blocks.{body}.{leaf[0]}"


def huggingface_name(own: str) -> str:
    """Maps `groups.1.0.convs.0.weight` to `blocks.group_2.group.block_1.res_path.path.conv_1.weight`."""
    name = re.sub(r"(group_\d+)\.", r"\1.group.", openai_name(own)).replace("res_path.", "res_path.path.")
    return name[:-1] + own.rpartition(".")[2]


def own_name(own: str) -> str:
    return own


LAYOUTS: tuple[Callable[[str], str], ...] = (openai_name, huggingface_name, own_name)


def weight_files(path: Path) -> list[Path]:
    """Lists the files that may hold a half, encoder first: in a folder, or a given file and a decoder beside it."""
    if path.is_file():
        beside = _first(path.parent, "decoder") if path.stem == "encoder" else None
        return [path, beside] if beside else [path]
    halves = [found for stem in ("encoder", "decoder") if (found := _first(path, stem))]
    whole = [path / name for name in WHOLE if (path / name).is_file()][:1]
    return halves if _first(path, "encoder") else whole + halves


def _first(folder: Path, stem: str) -> Path | None:
    return next((folder / f"{stem}{suffix}" for suffix in SUFFIXES if (folder / f"{stem}{suffix}").is_file()), None)


def read_halves(paths: Sequence[Path]) -> tuple[Half, Half | None]:
    """Reads the encoder, and the decoder if there is one.

    Raises:
        StorageError: There is no encoder, there are two of one kind, or the sizes of the two differ.
    """
    found: dict[str, Half] = {}
    for path in paths:
        half = read_half(path)
        if half.kind in found:
            raise StorageError(
                f"'{path}' and '{found[half.kind].path}' are both DALL-E {half.kind}s.", "Take one of them away."
            )
        found[half.kind] = half
    if "encoder" not in found:
        where = ", ".join(f"'{path}'" for path in paths)
        raise StorageError(f"There is a decoder but no encoder in {where}.", "Put encoder.pkl beside it.")
    encoder, decoder = found["encoder"], found.get("decoder")
    if decoder and not fits(encoder, decoder):
        sizes = [
            f"{half.architecture.vocab_size:,} codes, width {half.architecture.width}" for half in (encoder, decoder)
        ]
        raise StorageError(
            f"'{decoder.path}' ({sizes[1]}) is not the decoder of '{encoder.path}' ({sizes[0]}).",
            "Put the two of one release together.",
        )
    return encoder, decoder


def fits(encoder: Half, decoder: Half) -> bool:
    theirs = decoder.architecture
    sizes = {"decoder_init_width": theirs.decoder_init_width, "output_channels": theirs.output_channels}
    return replace(encoder.architecture, **sizes) == theirs


def read_half(path: Path) -> Half:
    """Reads one half from a pickled module, a state dict or safetensors.

    Raises:
        StorageError: It is not DALL-E's; the message names the first missing or unexpected key.
    """
    tensors = read_pickled(path) or read_tensors(path)
    layout = next((each for each in LAYOUTS if each("stem.weight") in tensors), None)
    if layout is None:
        first_keys = " nor ".join(each("stem.weight") for each in LAYOUTS[:2])
        raise _odd(path, f"it has neither {first_keys}")
    kernel = tuple(tensors[layout("stem.weight")].shape[2:])
    if kernel not in ((7, 7), (1, 1)):
        raise _odd(path, f"{layout('stem.weight')} is a convolution of {kernel}, not of (7, 7) or (1, 1)")
    kind = "encoder" if kernel == (7, 7) else "decoder"
    architecture = _architecture(path, kind, tensors, layout)
    with meta_device():
        empty = Encoder(architecture) if kind == "encoder" else Decoder(architecture)
    found: dict[str, Tensor] = {}
    for own, expected in empty.state_dict().items():
        tensor = tensors.get(layout(own))
        if tensor is None:
            raise _odd(path, f"{layout(own)} is missing")
        if tensor.shape != expected.shape or not tensor.is_floating_point():
            was = f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
            raise _odd(path, f"{layout(own)} is {was}, not float {tuple(expected.shape)}")
        found[own] = tensor.detach().float().contiguous()
    unknown = sorted(set(tensors) - {layout(own) for own in found})
    if unknown:
        raise _odd(path, f"it has {unknown[0]} too")
    return Half(path, kind, architecture, found)


def _architecture(
    path: Path, kind: str, tensors: Mapping[str, Tensor], layout: Callable[[str], str]
) -> DVAEArchitecture:
    head = tensors.get(layout("head.weight"))
    if head is None or head.dim() != 4:
        raise _odd(path, f"{layout('head.weight')} is missing or is no convolution")
    stem = tensors[layout("stem.weight")]
    places = [match for match in map(_PLACE.search, tensors) if match]
    sizes = {"groups": len({match[1] for match in places}), "blocks_per_group": len({match[2] for match in places})}
    if kind == "encoder":
        sizes |= {"vocab_size": head.shape[0], "width": stem.shape[0]}
    else:
        sizes |= {"vocab_size": stem.shape[1], "width": head.shape[1]}
        sizes |= {"decoder_init_width": stem.shape[0], "output_channels": head.shape[0]}
    try:
        return DVAEArchitecture(**sizes)
    except UsageError as error:
        raise _odd(path, error.message.removesuffix(".")) from None


def _odd(path: Path, what: str) -> StorageError:
    return StorageError(
        f"'{path}' does not hold DALL-E's encoder or decoder: {what}.",
        "Give encoder.pkl as OpenAI released it, or the files of facebook/flava-image-codebook.",
    )


def build(encoder: Half, decoder: Half | None) -> DiscreteVAE:
    """Builds the model with these weights, without copying them."""
    with meta_device():
        model = DiscreteVAE((decoder or encoder).architecture, decoder=decoder is not None)
    weights = {
        f"{half.kind}.{name}": tensor for half in (encoder, decoder) if half for name, tensor in half.tensors.items()
    }
    model.load_state_dict(weights, assign=True)
    return model
