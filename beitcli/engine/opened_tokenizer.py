"""A tokenizer opened for a job, which tells what its opening found."""

from __future__ import annotations

import torch

from beitcli.engine.events import OnEvent, downloads, warn
from beitcli.models.references import OpenedModel
from beitcli.tokenizers import Tokenizer, open_tokenizer, open_tokenizer_of


def tokenizer_for(reference: str, device: torch.device, on_event: OnEvent) -> Tokenizer:
    """The TOKENIZER of an option, downloaded where it must be."""
    return _announced(open_tokenizer(reference, device, downloads(on_event)), on_event)


def tokenizer_of(opened: OpenedModel, device: torch.device, on_event: OnEvent) -> Tokenizer:
    """The one that a masked image model learned from."""
    return _announced(open_tokenizer_of(opened, device, downloads(on_event)), on_event)


def _announced(tokenizer: Tokenizer, on_event: OnEvent) -> Tokenizer:
    warn((*tokenizer.warnings, *tokenizer.notes), on_event)
    return tokenizer
