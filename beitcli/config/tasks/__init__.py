"""Finetuning tasks, one file each: the part of a task that is needed before torch is imported.

A new task is one file here, and the engine package that it names. Other packages add tasks under the entry-point group
`beitcli.config.tasks`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

from beitcli.config.registry import Registry

DEFAULT_TASK = "classify"


@dataclass(frozen=True, kw_only=True)
class TaskDefinition:
    """A finetuning task. Functions that need torch are given by dotted name and imported when called.

    Attributes:
        name: Name of its file.
        kind: `kind` of its checkpoints in config.json.
        engine: Package with `finetune.finetune`, `evaluate.evaluate` and `predict.predict`.
        opener: `module:function` that maps a CheckpointHandle and an optional size to the model and the handle.
        recipe: The default recipe; None for that of the command.
        default_head: Name of the default head.
        heads: Registry of heads; None if the default head, which is part of the backbone's class, is the only one.
        prefix: Prefix of the head's state-dict keys; empty if the head is part of the backbone's class.
        classifier: Key of the tensor with one row per class; a head may override it with `CLASSIFIER`.
        background: Number of rows of that tensor that are not classes.
        shards: Whether `--shard` is supported.
        predicts_into_folder: What `predict` writes into the folder of `-o`, without which it does nothing; else empty.
        data: `module:function` that checks, before torch is imported, that DATA (references, Request) has what the task
            learns from, and raises DataError; empty if that is not known before.
        eval_options: Options to add to `beit eval RUN DATA` where it is proposed.
        output: What `predict -o` names: a file of the documents, or a folder of pictures; None: its package says.
        predict_options: Options to add to `beit predict RUN photo.jpg` where it is proposed.
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
    output: Literal["lines", "folder"] | None = None
    predicts_into_folder: str = ""
    data: str = ""
    eval_options: tuple[str, ...] = ()
    predict_options: tuple[str, ...] = ()

    @property
    def article_kind(self) -> str:
        """`a segmenter`, for messages."""
        return f"{'an' if self.kind[:1] in 'aeiou' else 'a'} {self.kind}"

    @property
    def command(self) -> str:
        """The command that trains its checkpoints, without `beit`."""
        return "finetune" if self.name == DEFAULT_TASK else f"finetune --task {self.name}"

    def head_names(self) -> tuple[str, ...]:
        """Returns the names of its heads, the default first."""
        return tuple(dict.fromkeys((self.default_head, *(self.heads.names() if self.heads else ()))))

    def check_data(self, references: Sequence[str], request: Any) -> None:
        """Raises DataError if DATA has not what the task learns from, where `data` can tell; imports no torch."""
        if self.data:
            module, _, function = self.data.partition(":")
            getattr(import_module(module), function)(references, request)

    def run(self, command: str, *arguments: Any) -> Any:
        """Imports and calls its `finetune`, `evaluate` or `predict`."""
        return getattr(import_module(f"{self.engine}.{command}"), command)(*arguments)

    def open_model(self, checkpoint: Any) -> Any:
        """Builds the network of an opened checkpoint (CheckpointHandle), in evaluation mode."""
        module, _, function = self.opener.partition(":")
        return getattr(import_module(module), function)(checkpoint)[0]


class TaskRegistry(Registry):
    """The registry of tasks: checkpoints tell them apart by kind and by prefix, so no other package may take ours."""

    def load(self, name: str) -> TaskDefinition:
        task = super().load(name)
        if self.is_ours(name):
            return task
        if not isinstance(task, TaskDefinition):
            raise self.unusable(name, "it is no TaskDefinition")
        for ours in (super(TaskRegistry, self).load(other) for other in self.names() if self.is_ours(other)):
            if task.kind == ours.kind or (task.prefix and task.prefix == ours.prefix):
                raise self.unusable(name, f"its kind or prefix is that of {ours.name}")
        return task


TASKS = TaskRegistry("beitcli.config.tasks", "TASK", "task")


def task_of_kind(kind: str) -> TaskDefinition | None:
    """Returns the task whose checkpoints have this kind; None for pretraining, tokenizers and backbones."""
    return next((task for task in TASKS.entries().values() if task.kind == kind), None)


def task_of_head(names: Iterable[str]) -> TaskDefinition | None:
    """Returns the task whose head has some of these state-dict keys; None if there is none."""
    names, tasks = tuple(names), TASKS.entries().values()
    return next((task for task in tasks if task.prefix and any(name.startswith(task.prefix) for name in names)), None)


def all_heads() -> tuple[str, ...]:
    """Returns the names of the heads of all tasks."""
    return tuple(dict.fromkeys(head for task in TASKS.entries().values() for head in task.head_names()))
