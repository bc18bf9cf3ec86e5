"""A tokenizer opened for a job, which tells what its opening found."""

from __future__ import annotations

import torch

from beitcli.engine.events import OnEvent, Warned, downloads, warn
from beitcli.models.checkpoints.handle import CheckpointHandle
from beitcli.tokenizers.base import Tokenizer
from beitcli.tokenizers.mixed_precision import Precision
from beitcli.tokenizers.open import open_tokenizer, open_tokenizer_of


def tokenizer_for(reference: str, device: torch.device, on_event: OnEvent) -> Tokenizer:
    """The TOKENIZER of an option, downloaded where it must be."""
    return _announced(open_tokenizer(reference, device, downloads(on_event)), on_event)


def tokenizer_of(checkpoint: CheckpointHandle, device: torch.device, on_event: OnEvent) -> Tokenizer:
    """The one that a masked image model learned from."""
    return _announced(open_tokenizer_of(checkpoint, device, downloads(on_event)), on_event)


def prepared(
    tokenizer: Tokenizer, precision: Precision, compile_for: tuple[int, int] | None, on_event: OnEvent
) -> Tokenizer:
    """In its working precision, and compiled where that is asked for; fp32 never is: its tokens are the reference.

    Args:
        compile_for: (H, W) of the images to come; None leaves it as it is.
    """
    tokenizer = tokenizer.in_precision(precision)
    if compile_for is None or precision == "fp32":
        return tokenizer
    tokenizer, failure = tokenizer.compiled(compile_for)
    if failure:
        on_event(Warned(f"The tokenizer is not compiled: {failure}. Its tokens are right, but come slower."))
    return tokenizer


def token_precision(asked: str, device: torch.device) -> Precision:
    """Of pretraining's tokenizer. `auto`: fp32; on CUDA fp16, whose tokens are nearest to fp32's (0.26% others)."""
    if asked == "auto":
        return "fp16" if device.type == "cuda" else "fp32"
    return asked  # type: ignore[return-value]


def _announced(tokenizer: Tokenizer, on_event: OnEvent) -> Tokenizer:
    warn((*tokenizer.warnings, *tokenizer.notes), on_event)
    return tokenizer
