"""`beit finetune`: a pretrained BEiT, or one from scratch, learns a task. A new task is a new file and a line here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from beitcli.config.finetune import FinetuneConfig
from beitcli.engine.classification.finetune import finetune_classifier
from beitcli.engine.detection.finetune import finetune_detector
from beitcli.engine.events import OnEvent, ignore
from beitcli.engine.segmentation.finetune import finetune_segmenter
from beitcli.engine.trainer.metric_log import make_writers

_TASKS: dict[str, Callable[[FinetuneConfig, OnEvent], Any]] = {
    "classify": finetune_classifier,
    "segment": finetune_segmenter,
    "detect": finetune_detector,
}


def finetune(config: FinetuneConfig, on_event: OnEvent = ignore) -> Any:
    """Finetunes for `config.task`.

    Returns:
        The task's report; with `dry_run`, a dict of the plan instead.
    """
    make_writers(config)  # one that is missing is told before anything is opened
    return _TASKS[config.task](config, on_event)
