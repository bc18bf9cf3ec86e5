"""What `beit eval MODEL... DATA...` is about: which arguments are MODELs, which are DATA, what a MODEL can do."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from beitcli.config.evaluate import EvalConfig
from beitcli.config.fields import refuse_unused_by
from beitcli.config.tasks import TaskDefinition
from beitcli.errors import StorageError, UsageError
from beitcli.models.checkpoints.handle import CheckpointHandle
from beitcli.models.checkpoints.locate import names_a_model
from beitcli.models.checkpoints.open import expect, expect_finetuned

_OTHERS = "--protocol knn or linear measures the features of any model, elbo the bound of a pretrained run."

_KEPT = "_told_apart"  # no field: another config, such as one of `dataclasses.replace`, has none


@dataclass(frozen=True)
class Arguments:
    """The arguments of a command line, told apart.

    Attributes:
        could_differ: Whether a reader could tell them apart differently: there are several models, or DATA that looks
            like a MODEL.
    """

    models: tuple[str, ...]
    data: tuple[str, ...]
    could_differ: bool


def models_and_data(config: EvalConfig) -> Arguments:
    """Splits the arguments into MODELs and DATA.

    The first is a MODEL and the last is DATA, whatever they look like. Those between are MODELs as long as their form
    or the file they name says so (`names_a_model`); from the first that is not, all are DATA. The config keeps the
    answer: a folder of DATA, which is listed for it, may have a million files.

    Raises:
        UsageError: There are only MODELs.
    """
    kept: Arguments | None = vars(config).get(_KEPT)
    if kept is None:
        kept = vars(config)[_KEPT] = _told_apart(config)
    return kept


def _told_apart(config: EvalConfig) -> Arguments:
    look_like_models = [names_a_model(each) for each in config.data]
    leading = len(list(takewhile(bool, look_like_models[:-1])))
    data, last = config.data[leading:], config.data[-1]
    if look_like_models[-1] and not Path(last).is_dir():
        raise UsageError(
            f"{', '.join(repr(each) for each in (config.model, *config.data))} are MODELs, and DATA is missing.",
            "Name labelled images behind them: beit eval MODEL... DATA...",
        )
    return Arguments((config.model, *config.data[:leading]), data, any(look_like_models))


def evaluated_task(config: EvalConfig, checkpoint: CheckpointHandle) -> TaskDefinition:
    """Returns the task of a checkpoint, whose weights need not be read.

    Raises:
        UsageError: A setting has no effect on this model.
        StorageError: The model is not finetuned, so it has no metrics of its own.
    """
    task = expect_finetuned(checkpoint, or_else=_OTHERS)
    refuse_unused_by(config, (task.name,), task.article_kind)
    return task


def expect_tokens(checkpoint: CheckpointHandle) -> None:
    """Raises StorageError if a checkpoint is none of masked image modeling with visual tokens, which have a bound."""
    expect(checkpoint, "masked-image-model", or_else="--protocol elbo is for pretrained runs.")
    if checkpoint.settings.get("target", "tokens") != "tokens":
        raise StorageError(
            f"'{checkpoint.reference}' learned from pixels: without visual tokens there is no bound.",
            "Give a run of `beit pretrain` with a tokenizer.",
        )
