"""The tasks of finetuning, a file each: what is known of one before torch is loaded.

A new task is a new file here and the package that it names. Other packages add theirs under the entry-point group
`beitcli.config.tasks`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from beitcli.config.registry import Registry

TASKS = Registry("beitcli.config.tasks", "TASK", "task")
DEFAULT_TASK = "classify"


@dataclass(frozen=True, kw_only=True)
class TaskDefinition:
    """One task. What computes is named by its module, and imported where it is used.

    Attributes:
        name: As of its file.
        kind: Of its checkpoints, in their config.json.
        engine: Package of `finetune.finetune`, `evaluate.evaluate` and `predict.predict`.
        opener: `module:function` from an checkpoint checkpoint and a size to the model and what was checkpoint.
        recipe: Where none is named; None for that of the command.
        default_head: The one that is taken where none is named.
        heads: Empty where there is the default alone, which belongs to the backbone.
        prefix: Of the names of the head's tensors; empty for a head of the backbone.
        classifier: Name of the tensor with a row for each class; a head's file may give another as `CLASSIFIER`.
        background: Rows of it that stand for no class.
        shards: Whether its model may be divided over processes.
    """

    name: str
    kind: str
    engine: str
    opener: str
    recipe: str | None = None
    default_head: str
    heads: Registry | None = None
    prefix: str = ""
    classifier: str = ""
    background: int = 0
    shards: bool = False

    @property
    def command(self) -> str:
        """What makes its checkpoints, behind `beit`."""
        return "finetune" if self.name == DEFAULT_TASK else f"finetune --task {self.name}"

    def head_names(self) -> tuple[str, ...]:
        """The default first."""
        return tuple(dict.fromkeys((self.default_head, *(self.heads.names() if self.heads else ()))))

    def run(self, command: str, *arguments: Any) -> Any:
        """Calls its `finetune`, `evaluate` or `predict`."""
        return getattr(import_module(f"{self.engine}.{command}"), command)(*arguments)

    def open_model(self, checkpoint: Any) -> Any:
        """The network of an checkpoint checkpoint, in evaluation mode."""
        module, _, function = self.opener.partition(":")
        return getattr(import_module(module), function)(checkpoint)[0]


def task_of_kind(kind: str) -> TaskDefinition | None:
    """The task that checkpoints of this kind come from; None for pretraining, tokenizers and bare backbones."""
    return next((task for task in TASKS.entries().values() if task.kind == kind), None)


def task_of_head(names: Iterable[str]) -> TaskDefinition | None:
    """The task whose head has tensors of these names; None where there is no such head."""
    names, tasks = tuple(names), TASKS.entries().values()
    return next((task for task in tasks if task.prefix and any(name.startswith(task.prefix) for name in names)), None)


def all_heads() -> tuple[str, ...]:
    """Of every task."""
    return tuple(dict.fromkeys(head for task in TASKS.entries().values() for head in task.head_names()))
