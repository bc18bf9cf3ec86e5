"""`beit eval`: metrics of a finetuned model for its task, of frozen features, or the bound of a pretrained run.

`beit eval A B C DATA` evaluates several models on the same data, with one report each.

With one process, a model that fails costs only its own report. In distributed evaluation the first failure ends all:
the other ranks may not have failed, and would wait for this one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from beitcli.config.evaluate import EvalConfig
from beitcli.config.intensity import with_models_intensity
from beitcli.engine.events import Note, OnEvent, Warned, downloads, ignore
from beitcli.engine.io.eval_arguments import evaluated_task, models_and_data
from beitcli.engine.mim.evaluate_elbo import elbo
from beitcli.engine.probing.evaluate import probe
from beitcli.errors import BeitError, DistributedError, Stopped
from beitcli.models.checkpoints.open import open_model
from beitcli.runtime.distributed.rank_env import rank_info_from_env


def evaluate(config: EvalConfig, on_event: OnEvent = ignore) -> Any:
    """Evaluates `config.model` on `config.data`; returns the report of its task or protocol.

    Raises:
        UsageError: A setting has no effect on this model.
        StorageError: The model is not finetuned, so it has no metrics of its own.
    """
    if config.protocol == "elbo":
        return elbo(config, on_event)
    if config.protocol != "head":
        return probe(config, on_event)
    checkpoint = open_model(config.model, downloads(on_event))
    task = evaluated_task(config, checkpoint)
    return task.run("evaluate", with_models_intensity(config, checkpoint.settings), checkpoint, on_event)


@dataclass(frozen=True)
class Failed:
    """Replaces the report of a model that failed.

    Attributes:
        error: The error message, one line.
    """

    model: str
    data: str
    protocol: str
    error: str


@dataclass(frozen=True)
class Comparison:
    """Reports in the order of the models.

    Attributes:
        failure: The first error, with the number of failed models; None if all were evaluated.
    """

    reports: list[Any]
    failure: BeitError | None


def compare(config: EvalConfig, on_event: OnEvent = ignore) -> Comparison:
    """Evaluates each MODEL of the arguments on all of their DATA.

    With a single model, or in distributed evaluation, it raises what `evaluate` raises.
    """
    arguments = models_and_data(config)
    models, data = arguments.models, arguments.data
    if arguments.could_differ:
        on_event(Note(f"Read as: models {', '.join(models)}; data {', '.join(data)}."))
    if len(models) == 1:
        return Comparison([evaluate(config, on_event)], None)
    reports: list[Any] = []
    failures: list[BeitError] = []
    for number, model in enumerate(models, start=1):
        on_event(Note(f"Model {number} of {len(models)}: {model}"))
        try:
            reports.append(evaluate(replace(config, model=model, data=data), on_event))
        except (Stopped, DistributedError):
            raise
        except Exception as error:
            if rank_info_from_env() is not None:  # the other ranks may not have failed
                raise
            failure = error if isinstance(error, BeitError) else BeitError(f"{type(error).__name__}: {error}")
            failures.append(failure)
            reports.append(Failed(model, " ".join(data), config.protocol, failure.message))
            on_event(Warned(f"'{model}' is not measured: {failure.message}"))
    if not failures:
        return Comparison(reports, None)
    first = failures[0]
    said = f"{len(failures)} of {len(models)} models could not be measured, the first: {first.message}"
    return Comparison(reports, type(first)(said, first.hint))
