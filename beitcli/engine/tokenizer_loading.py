"""Opens tokenizers for jobs: download, warnings, precision, compilation."""

from __future__ import annotations

import torch

from beitcli.engine.events import Note, OnEvent, Warned, downloads, warn
from beitcli.models.checkpoints.handle import CheckpointHandle
from beitcli.tokenizers.base import Precision, Tokenizer
from beitcli.tokenizers.open import open_tokenizer, open_tokenizer_of


def tokenizer_for(reference: str, device: torch.device, on_event: OnEvent) -> Tokenizer:
    """Opens the TOKENIZER of an option; downloads it if necessary."""
    return _announced(open_tokenizer(reference, device, downloads(on_event)), on_event)


def tokenizer_of(checkpoint: CheckpointHandle, device: torch.device, on_event: OnEvent) -> Tokenizer:
    """Opens the tokenizer that a masked image model was pretrained with."""
    return _announced(open_tokenizer_of(checkpoint, device, downloads(on_event)), on_event)


def prepared(
    tokenizer: Tokenizer, precision: Precision, compile_for: tuple[int, int] | None, on_event: OnEvent
) -> Tokenizer:
    """Returns the tokenizer in a precision, compiled if requested; never in fp32, whose tokens are the reference.

    A kind that does not support the precision stays in fp32: the tokens are right, but come slower.

    Args:
        compile_for: (H, W) of the images to compile for; None to not compile.
    """
    if precision not in tokenizer.model.precisions:
        on_event(Note(f"Tokenizer '{tokenizer.reference}' computes in fp32: its kind has no {precision}"))
        precision = "fp32"
    tokenizer = tokenizer.in_precision(precision)
    if compile_for is None or precision == "fp32":
        return tokenizer
    tokenizer, failure = tokenizer.compiled(compile_for)
    if failure:
        on_event(Warned(f"The tokenizer is not compiled: {failure}. Its tokens are right, but come slower."))
    return tokenizer


def token_precision(requested: str, device: torch.device) -> Precision:
    """Returns pretraining's tokenizer precision. `auto`: fp16 on CUDA, closest to fp32 (0.26% others); else fp32."""
    if requested == "auto":
        return "fp16" if device.type == "cuda" else "fp32"
    return requested  # type: ignore[return-value]


def _announced(tokenizer: Tokenizer, on_event: OnEvent) -> Tokenizer:
    warn((*tokenizer.warnings, *tokenizer.notes), on_event)
    return tokenizer
