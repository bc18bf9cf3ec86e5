"""The kind of MODEL and TOKENIZER, told from the header of their weights before torch is loaded.

Only runs and safetensors of this disk are looked at, as a pickle's header is read with torch. What cannot be opened
here is left to the engine, which verifies hashes and may take an earlier checkpoint.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from beitcli.errors import BeitError
from beitcli.tokenizers.pretrained import words

if TYPE_CHECKING:
    from beitcli.models.checkpoints.handle import CheckpointHandle

_WORDS = ("random", "own")  # MODELs that are not paths, beside the words of tokenizers


def model_words() -> tuple[str, ...]:
    """Returns the MODELs and TOKENIZERs that are no paths, also where a folder has such a name."""
    return (*_WORDS, *words())


def check_models(config: Any) -> CheckpointHandle | None:
    """Returns the header of the command's MODEL; None if it has none, or several, or it is not on this disk.

    Raises:
        BeitError: The engine's, for a MODEL or TOKENIZER of another kind than the command needs.
    """
    tokenizer = _header(getattr(config, "tokenizer", None))
    if tokenizer is not None and tokenizer.settings:  # weights of others are told by the modules that open them
        from beitcli.models.checkpoints.open import expect_tokenizer

        expect_tokenizer(tokenizer)
    model = _header(_reference(config))
    if model is not None:
        _CHECKS[config.command](config, model)
    return model


def _reference(config: Any) -> str | None:
    """Returns the one MODEL of a command."""
    if config.command not in _CHECKS:
        return None
    if config.command == "eval":
        from beitcli.engine.io.eval_arguments import models_and_data

        models = models_and_data(config).models
        return models[0] if len(models) == 1 else None  # of several, one that fails costs only its own report
    if config.command == "finetune":
        return None if config.resume else config.init
    reference: str | None = config.teacher if config.command == "train-tokenizer" else config.model
    return reference


def _header(reference: str | None) -> CheckpointHandle | None:
    if not reference or reference in model_words():
        return None
    from beitcli.models.checkpoints.locate import split_part
    from beitcli.models.checkpoints.open import open_without_torch
    from beitcli.models.checkpoints.timm_references import random_init_base

    if random_init_base(reference) is not None:
        return None
    if not os.path.exists(split_part(reference)[0]):
        return None
    try:
        return open_without_torch(reference)
    except (BeitError, OSError):
        return None


def _any(config: Any, model: CheckpointHandle) -> None:
    from beitcli.models.checkpoints.open import refuse_tokenizer

    refuse_tokenizer(model)


def _exported(config: Any, model: CheckpointHandle) -> None:
    from beitcli.engine.io.export_target import refuse_kind

    _any(config, model)
    refuse_kind(config, model.kind)


def _masked(config: Any, model: CheckpointHandle) -> None:
    from beitcli.models.checkpoints.open import expect

    expect(model, "masked-image-model")


def _predicted(config: Any, model: CheckpointHandle) -> None:
    from beitcli.engine.io.prediction_outputs import predicted_task

    predicted_task(config, model)


def _evaluated(config: Any, model: CheckpointHandle) -> None:
    from beitcli.engine.io.eval_arguments import evaluated_task, expect_tokens

    if config.protocol == "head":
        evaluated_task(config, model)
    elif config.protocol == "elbo":
        expect_tokens(model)
    else:
        _any(config, model)


_CHECKS: dict[str, Callable[[Any, CheckpointHandle], None]] = {
    "attn-map": _any,
    "embed": _any,
    "eval": _evaluated,
    "export": _exported,
    "finetune": _any,
    "mask-preview": _masked,
    "predict": _predicted,
    "train-tokenizer": _any,
}
