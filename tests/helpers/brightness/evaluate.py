"""`beit eval` of a photometer."""

from __future__ import annotations

from dataclasses import dataclass

from brightness import TASK
from brightness.finetune import Error, mean_error
from brightness.network import photometer_of

from beitcli.config.evaluate import EvalConfig
from beitcli.engine.events import OnEvent
from beitcli.engine.io.inputs import open_inputs
from beitcli.engine.trainer.evaluation import evaluated, join_evaluation
from beitcli.engine.trainer.reports import Evaluated
from beitcli.models.checkpoints.handle import CheckpointHandle


@dataclass(frozen=True)
class BrightnessEvalReport(Error, Evaluated):
    pass


def evaluate(config: EvalConfig, checkpoint: CheckpointHandle, on_event: OnEvent) -> BrightnessEvalReport:
    model, checkpoint = photometer_of(checkpoint, config.size)
    batching = join_evaluation(config, checkpoint, on_event)
    source = open_inputs(config, sample_size=max(model.architecture.image_size), on_event=on_event)
    error, images = mean_error(model, source, checkpoint.normalization, batching)
    return evaluated(config, TASK, BrightnessEvalReport, images, [], mean_error=error)
