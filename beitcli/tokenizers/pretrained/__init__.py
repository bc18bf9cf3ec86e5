"""Tokenizers that others trained: a file each, with its `TOKENIZER`; --tokenizer takes the file's name as a word."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from beitcli.config.registry import Registry

if TYPE_CHECKING:
    from beitcli.runtime.hub.download import OnProgress
    from beitcli.tokenizers.base import Tokenizer

PRETRAINED = Registry("beitcli.tokenizers.pretrained", "TOKENIZER", "tokenizer")


@dataclass(frozen=True)
class TokenizerFacts:
    """What `beit inspect` says of a tokenizer.

    Attributes:
        format: Whose it is.
        size: Side in pixels of the images it was trained on.
        downsample: Pixels a token stands for, along each side.
        shapes: Of its tensors, by name.
    """

    format: str
    architecture: dict[str, Any]
    vocab_size: int
    size: int
    downsample: int
    parameters: int
    files: list[Path]
    shapes: dict[str, list[int]]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class PretrainedTokenizer:
    """How references to others' weights are opened. Its module imports torch inside functions only.

    Attributes:
        recognizes: Whether `open` is to be asked for a reference.
        open: The tokenizer, on the CPU. Raises StorageError.
        facts: For `beit inspect`; None where a reference is not surely of this tokenizer.
    """

    recognizes: Callable[[str], bool]
    open: Callable[[str, OnProgress | None], Tokenizer]
    facts: Callable[[str, OnProgress | None], TokenizerFacts | None]


def words() -> tuple[str, ...]:
    """References that name no file."""
    return (*PRETRAINED.names(), "pixels")
