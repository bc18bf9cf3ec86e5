"""Tokenizers of other projects, one module each, which defines `TOKENIZER`.

--tokenizer accepts the module's name, unless the module says `IS_WORD = False`: such weights are opened by path only.
"""

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
    """Facts that `beit inspect` reports about a tokenizer.

    Attributes:
        size: Side of the training images in pixels.
        downsample: Side of a token in pixels.
        shapes: Shapes of the tensors by name.
        notes: Sentences for the user.
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
    """Opens references to weights of another project. Its module must import torch only inside functions.

    Attributes:
        recognizes: Whether `open` handles a reference.
        open: Returns the tokenizer on the CPU. Raises StorageError.
        facts: Facts for `beit inspect`; None if the reference may be another model.
        takes_any: Whether it takes files and repositories by form, without looking into them: it is asked last.
    """

    recognizes: Callable[[str], bool]
    open: Callable[[str, OnProgress | None], Tokenizer]
    facts: Callable[[str, OnProgress | None], TokenizerFacts | None]
    takes_any: bool = False


def in_order() -> list[PretrainedTokenizer]:
    """Returns the entries in the order in which they are asked, those of other packages first."""
    installed_first = [*PRETRAINED.entries().values()][::-1]
    return sorted(installed_first, key=lambda entry: entry.takes_any)


def words() -> tuple[str, ...]:
    """Returns the TOKENIZER references that are not paths."""
    return (*(name for name in PRETRAINED.names() if PRETRAINED.literal(name, "IS_WORD", True)), "pixels")
