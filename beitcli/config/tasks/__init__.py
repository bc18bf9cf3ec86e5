"""Tasks of finetuning, a file each: the part of a task that is needed before torch is loaded.

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
    """A task. Functions that need torch are given by dotted name, and imported when called.

    Attributes:
        name: As of its file.
        kind: `kind` of its checkpoints, in config.json.
        engine: Package of `finetune.finetune`, `evaluate.evaluate` and `predict.predict`.
        opener: `module:function` from an checkpoint checkpoint and a size to the model and what was checkpoint.
        recipe: The default recipe; None for the command's.
        default_head: Name of the default head.
        heads: None if the default, a part of the backbone's class, is the only one.
        prefix: Prefix of the keys of the head; empty for a head of the backbone.
        classifier: Key of the tensor with one row per class; a head may override it with `CLASSIFIER`.
        background: Number of its rows that are no class.
        shards: Whether `--shard` is supported.
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
        """Command that makes its checkpoints, without `beit`."""
        return "finetune" if self.name == DEFAULT_TASK else f"finetune --task {self.name}"

    def head_names(self) -> tuple[str, ...]:
        """Names of its heads, the default first."""
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
    """Names of the heads of all tasks."""
    return tuple(dict.fromkeys(head for task in TASKS.entries().values() for head in task.head_names()))
