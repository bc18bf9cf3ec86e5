"""BEiT's own dVAE as the release saves it: a file, or a folder with `pytorch_model.bin`, of `{"weights": ...}`.

The release opens it with `--discrete_vae_type customized`. It is recognized by the names and shapes of its tensors; a
file of the encoder alone gives tokens, but no pictures.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from beitcli.errors import BeitError, StorageError, UsageError
from beitcli.runtime.deferred_compiler import meta_device
from beitcli.tokenizers.pretrained import PretrainedTokenizer, TokenizerFacts

if TYPE_CHECKING:
    from beitcli.runtime.hub.download import OnProgress
    from beitcli.runtime.weight_files.reader import WeightFile
    from beitcli.tokenizers.base import Tokenizer
    from beitcli.tokenizers.strided_dvae import StridedDVAE, StridedDVAEArchitecture

IS_WORD = False  # no published copy is known, so no name stands for it

_FIRST, _RESIDUAL = "encoder.0.0.weight", "encoder.1.net.0.weight"
_PLACE = re.compile(r"encoder\.(\d{1,3})\.(net\.)?0\.weight")
_GRID = 14  # tokens per side of the images that BEiT uses

Shapes = Mapping[str, tuple[int, ...]]


def _header(reference: str) -> WeightFile | None:
    """Returns the header of the file if it is such a tokenizer, and not in a run of this program."""
    from beitcli.models.checkpoints.locate import locate
    from beitcli.runtime.weight_files.reader import read_header

    if not Path(reference).exists():
        return None
    try:
        weights, config, _ = locate(reference)
        header = None if "beit" in config else read_header(weights)
    except BeitError:  # not such a file; whoever opens it says what it is
        return None
    return header if header is not None and _is_strided(header.shapes) else None


def _is_strided(shapes: Shapes) -> bool:
    return shapes.get(_FIRST, ())[1:] == (3, 4, 4) and len(shapes.get(_RESIDUAL, ())) == 4


def _has_decoder(shapes: Shapes) -> bool:
    return any(name.startswith("decoder.") for name in shapes)


def _architecture(header: WeightFile) -> StridedDVAEArchitecture:
    from beitcli.tokenizers.strided_dvae import StridedDVAEArchitecture

    shapes = header.shapes
    places = [match for match in map(_PLACE.fullmatch, shapes) if match]
    groups = sum(not match[2] for match in places)
    head = f"encoder.{len(places)}.weight"
    required = [head, "codebook.weight"] if _has_decoder(shapes) else [head]
    for name in required:
        if len(shapes.get(name, ())) < 2:
            raise _odd(header.path, f"{name} is missing or is no matrix")
    codebook = shapes.get("codebook.weight", ())
    try:
        return StridedDVAEArchitecture(
            vocab_size=shapes[head][0],
            code_width=codebook[1] if len(codebook) == 2 else 1,  # 1: an encoder alone has no codebook
            width=shapes[_FIRST][0],
            groups=groups,
            blocks_per_group=len(places) // groups - 1,
        )
    except UsageError as error:
        raise _odd(header.path, error.message.removesuffix(".")) from None


def _build(header: WeightFile) -> StridedDVAE:
    """Returns the network on the meta device. Raises StorageError if the file's tensors are not those of it."""

    from beitcli.tokenizers.strided_dvae import StridedDVAE

    with meta_device():
        model = StridedDVAE(_architecture(header), decoder=_has_decoder(header.shapes))
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name, shape in expected.items():
        if header.shapes.get(name) != shape:
            was = header.shapes.get(name)
            raise _odd(header.path, f"{name} is {was}, not {shape}" if was is not None else f"{name} is missing")
    unknown = sorted(set(header.shapes) - set(expected) - {"codebook.weight"})
    if unknown:
        raise _odd(header.path, f"it has {unknown[0]} too")
    return model


def _odd(path: Path, what: str) -> StorageError:
    return StorageError(
        f"'{path}' looks like BEiT's own dVAE, but {what}.", "Give the file as the release's DiscreteVAE wrote it."
    )


def _open(reference: str, on_progress: OnProgress | None) -> Tokenizer:
    from beitcli.runtime.weight_files.reader import read_tensors
    from beitcli.tokenizers.base import Tokenizer, sha256_of_tensors

    header = _header(reference)
    if header is None:  # it was there a moment ago
        raise StorageError(f"'{reference}' cannot be read.", "Check the file.")
    model = _build(header)
    found = read_tensors(header.path)
    tensors = {}
    for name in model.state_dict():
        tensor = found.get(name)
        if tensor is None or not tensor.is_floating_point():
            raise _odd(header.path, f"{name} holds no floats")
        tensors[name] = tensor.float().contiguous()
    model.load_state_dict(tensors, assign=True)
    encoder = {name: tensor for name, tensor in tensors.items() if name.startswith("encoder.")}
    return Tokenizer(reference, model, _GRID * model.downsample, sha256_of_tensors(encoder))


def _facts(reference: str, on_progress: OnProgress | None) -> TokenizerFacts | None:
    header = _header(reference)
    if header is None:
        return None
    model = _build(header)
    half = "" if model.can_decode else ", encoder"
    return TokenizerFacts(
        format="official",
        architecture={"name": f"BEiT's own dVAE{half}", **asdict(model.architecture)},
        vocab_size=model.vocab_size,
        size=_GRID * model.downsample,
        downsample=model.downsample,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        files=[header.path],
        shapes={name: list(shape) for name, shape in header.shapes.items()},
    )


def _recognizes(reference: str) -> bool:
    return _header(reference) is not None


TOKENIZER = PretrainedTokenizer(_recognizes, _open, _facts)
