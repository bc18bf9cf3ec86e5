"""`beit finetune`: finetunes a BEiT, pretrained or from scratch. A new task is a file of `config/tasks`."""

from __future__ import annotations

from typing import Any

from beitcli.config.finetune import FinetuneConfig
from beitcli.config.tasks import TASKS
from beitcli.engine.events import OnEvent, ignore


def finetune(config: FinetuneConfig, on_event: OnEvent = ignore) -> Any:
    """Finetunes for `config.task`.

    Returns:
        The report of the task; with `dry_run`, the plan as a dict instead.
    """
    return TASKS.load(config.task).run("finetune", config, on_event)
