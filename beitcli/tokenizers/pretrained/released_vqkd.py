"""VQ-KD's released weights (BEiT v2): a file such as `vqkd_encoder_base_decoder_3x768x12_clip-d5036aa7.pth`.

Recognised by its keys. Encoder, its task layer and the codebook are read; what only training needs (decoder, statistics
of the codes, a teacher) is left out. Images are scaled from [0, 1] to [-1, 1], the release's default.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from beitcli.errors import BeitError, StorageError, UsageError
from beitcli.runtime.deferred_compiler import meta_device
from beitcli.runtime.shortages import shortage
from beitcli.runtime.weight_files.reader import WeightFile, read_header
from beitcli.tokenizers.pretrained import PretrainedTokenizer, TokenizerFacts

if TYPE_CHECKING:
    from torch import Tensor

    from beitcli.runtime.hub.download import OnProgress
    from beitcli.tokenizers.base import Tokenizer

_CODEBOOK, _PATCHES, _POSITIONS = "quantize.embedding.weight", "encoder.patch_embed.proj.weight", "encoder.pos_embed"
_MARKS = (_CODEBOOK, _PATCHES, "encode_task_layer.0.weight")
_PARTS = ("encoder.", "encode_task_layer.")  # key prefixes of what tokens need, beside the codebook
_UNUSED = ("encoder.mask_token", "encoder.head.")
_WORD = "released-vqkd"  # as the module is called
_HEAD_WIDTH = 64  # of every released encoder; no tensor says it
_AGAIN = "Download it again."


def _header(reference: str) -> WeightFile | None:
    """Returns the header of a file in this layout; None for any other reference."""
    path = Path(reference)
    if not path.is_file():
        return None
    try:
        header = read_header(path)
    except BeitError:  # whoever opens it says what is wrong
        return None
    return header if all(mark in header.shapes for mark in _MARKS) else None


def _shape(header: WeightFile) -> dict[str, Any]:
    """Returns the arguments of `VQKDArchitecture` for these tensors, without a decoder.

    Raises:
        StorageError: They are not of such a network.
    """
    shapes = header.shapes
    try:
        (codes, code_width), (width, channels, patch_size, across) = shapes[_CODEBOOK], shapes[_PATCHES]
        rows = shapes[_POSITIONS][1]
        hidden = shapes["encoder.blocks.0.mlp.fc1.weight"][0]
    except (KeyError, ValueError, IndexError) as error:
        raise StorageError(f"'{header.path}' is no whole VQ-KD tokenizer: {error}.", _AGAIN) from None
    if codes < 1 or code_width < 1:
        raise StorageError(
            f"'{header.path}' is no whole VQ-KD tokenizer: its codebook is {codes} x {code_width}.", _AGAIN
        )
    grid = math.isqrt(max(0, rows - 1))
    blocks = {name.split(".")[2] for name in shapes if name.startswith("encoder.blocks.")}
    if channels != 3 or patch_size != across or grid < 1 or grid**2 != rows - 1 or hidden != 4 * width:
        raise StorageError(
            f"'{header.path}' holds a VQ-KD encoder of another design: patches of {channels} x {patch_size} x "
            f"{across}, {rows} positions, an MLP of {hidden} over a width of {width}.",
            "Give a file of BEiT v2's release.",
        )
    return {
        "vocab_size": codes,
        "code_width": code_width,
        "grid": grid,
        "patch_size": patch_size,
        "width": width,
        "depth": len(blocks),
        "heads": max(1, width // _HEAD_WIDTH),
    }


def _is_needed(name: str) -> bool:
    return name == _CODEBOOK or (name.startswith(_PARTS) and not name.startswith(_UNUSED))


def _recognizes(reference: str) -> bool:
    return _header(reference) is not None or (reference == _WORD and not Path(reference).exists())


def _no_file() -> UsageError:
    return UsageError(
        f"'{_WORD}' names no file: BEiT v2's tokenizers are not downloaded.",
        "Download one (TOKENIZER.md of its release lists them) and give its path.",
    )


def _open(reference: str, on_progress: OnProgress | None) -> Tokenizer:
    import torch

    from beitcli.runtime.weight_files.reader import read_tensors
    from beitcli.tokenizers.base import Tokenizer, sha256_of_tensors
    from beitcli.tokenizers.vqkd import VQKD, VQKDArchitecture

    header = _header(reference)
    if header is None:
        raise _no_file()
    shape = _shape(header)
    stored: dict[str, Tensor] = read_tensors(header.path)
    tensors = {
        "quantizer.codebook" if name == _CODEBOOK else name: tensor.float()
        for name, tensor in stored.items()
        if _is_needed(name)
    }
    try:
        with meta_device():
            model = VQKD(VQKDArchitecture(**shape))
        if not all(tensor.is_floating_point() for name, tensor in stored.items() if _is_needed(name)):
            raise StorageError("not all of its tensors hold floats", _AGAIN)
        sha256 = sha256_of_tensors(tensors)
        tensors["quantizer.unused"] = torch.zeros(shape["vocab_size"], dtype=torch.int64)
        model.load_state_dict(tensors, assign=True)
    except (RuntimeError, BeitError) as error:
        lacking = shortage(error)
        if lacking is not None:
            raise lacking from None
        said = " ".join(str(error).split())[:200]
        raise StorageError(f"'{reference}' does not fit a VQ-KD encoder: {said}.", _AGAIN) from None
    size = shape["grid"] * shape["patch_size"]
    return Tokenizer(reference, model, size, sha256, notes=_notes(header))


def _notes(header: WeightFile) -> tuple[str, ...]:
    width = header.shapes[_PATCHES][0]
    heads = max(1, width // _HEAD_WIDTH)
    return () if width == 768 else (f"No tensor says the number of heads; assumed: {heads} of {_HEAD_WIDTH}.",)


def _facts(reference: str, on_progress: OnProgress | None) -> TokenizerFacts | None:
    header = _header(reference)
    if header is None:
        if _recognizes(reference):
            raise _no_file()
        return None
    shape = _shape(header)
    needed = {name: list(lengths) for name, lengths in header.shapes.items() if _is_needed(name)}
    return TokenizerFacts(
        format="official",
        architecture={"name": "VQ-KD encoder", **shape},
        vocab_size=shape["vocab_size"],
        size=shape["grid"] * shape["patch_size"],
        downsample=shape["patch_size"],
        parameters=sum(math.prod(lengths) for lengths in needed.values()),
        files=[header.path],
        shapes={name: list(lengths) for name, lengths in header.shapes.items()},
        notes=_notes(header),
    )


TOKENIZER = PretrainedTokenizer(_recognizes, _open, _facts)
