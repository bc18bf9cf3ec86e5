"""DALL-E's tokenizer: `dall-e`, `hf://OWNER/NAME`, or a folder or file with its weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from beitcli.tokenizers.pretrained import PretrainedTokenizer, TokenizerFacts

if TYPE_CHECKING:
    from beitcli.runtime.hub.download import OnProgress
    from beitcli.tokenizers.base import Tokenizer
    from beitcli.tokenizers.dalle_cache import Opened

_WORD, _HUB = "dall-e", "hf://"


def _recognizes(reference: str) -> bool:
    from beitcli.runtime.storage.checkpoint import SUMS
    from beitcli.tokenizers.dalle import weight_files

    path = Path(reference)
    folder = path if path.is_dir() else path.parent
    ours = any((folder / name).is_file() for name in (SUMS, "trainer.json"))
    return reference == _WORD or reference.startswith(_HUB) or (path.exists() and not ours and bool(weight_files(path)))


def _halves(reference: str, on_progress: OnProgress | None) -> Opened:
    from beitcli.tokenizers.dalle_cache import open_files, open_hub, open_named

    if reference == _WORD:
        return open_named(on_progress)
    if reference.startswith(_HUB):
        repo, _, revision = reference.removeprefix(_HUB).partition("@")
        return open_hub(repo, revision or None, on_progress)
    return open_files(Path(reference))


def _open(reference: str, on_progress: OnProgress | None) -> Tokenizer:
    from beitcli.tokenizers.base import Tokenizer
    from beitcli.tokenizers.dalle import GRID, build

    encoder, decoder, notes = _halves(reference, on_progress)
    model = build(encoder, decoder)
    return Tokenizer(reference, model, GRID * model.downsample, encoder.sha256, notes=notes)


def _facts(reference: str, on_progress: OnProgress | None) -> TokenizerFacts | None:
    """Reads all weights: pickled modules have no header."""
    if reference != _WORD and not _has_halves(Path(reference)):
        return None
    encoder, decoder, notes = _halves(reference, on_progress)
    halves = [encoder, decoder] if decoder else [encoder]
    shape = encoder.architecture
    tensors = {f"{half.kind}.{name}": tensor for half in halves for name, tensor in half.tensors.items()}
    return TokenizerFacts(
        format="dall-e",
        architecture={
            "name": "DALL-E " + " and ".join(half.kind for half in halves),
            "vocab_size": shape.vocab_size,
            "width": shape.width,
            "groups": shape.groups,
        },
        vocab_size=shape.vocab_size,
        size=112,
        downsample=shape.downsample,
        parameters=sum(tensor.numel() for tensor in tensors.values()),
        files=[half.path for half in halves],
        shapes={name: list(tensor.shape) for name, tensor in tensors.items()},
        notes=notes,
    )


def _has_halves(path: Path) -> bool:
    """Whether `path` is, or contains, files named as in the release and in the cache."""
    files = path.glob("encoder.*") if path.is_dir() else [path] if path.is_file() else []
    return any(file.stem in ("encoder", "decoder") for file in files)


TOKENIZER = PretrainedTokenizer(_recognizes, _open, _facts, takes_any=True)
