"""The task of `beit predict`, and what `-o` may name: a file of the documents, or a folder of pictures."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from beitcli.config.fields import refuse_unused_by
from beitcli.config.output_formats import require_folder_name
from beitcli.config.predict import PredictConfig
from beitcli.config.tasks import DEFAULT_TASK, TaskDefinition
from beitcli.data.sources.base import Source
from beitcli.engine.io.output_paths import is_stream, require_folder
from beitcli.engine.io.outputs import OutputNames, require_writable_outputs
from beitcli.engine.io.protected_inputs import ProtectedInputs
from beitcli.engine.io.unfinished_outputs import UnfinishedOutputs
from beitcli.errors import UsageError
from beitcli.escaping import shell_word
from beitcli.models.checkpoints.handle import CheckpointHandle
from beitcli.models.checkpoints.open import expect_finetuned

_LINES = ".jsonl"
_OVERLAY = "-overlay"


def predicted_task(config: PredictConfig, checkpoint: CheckpointHandle) -> TaskDefinition:
    """Returns the task of a checkpoint, whose weights need not be read.

    Raises:
        UsageError: A setting has no effect on this model, or the output is not what its task writes, or exists.
        StorageError: The model is not finetuned, or the folder of the output cannot be made.
    """
    task = expect_finetuned(checkpoint)
    kinds = (task.name, checkpoint.problem) if task.name == DEFAULT_TASK else (task.name,)
    refuse_unused_by(config, kinds, f"{task.article_kind}, {kinds[1]}" if len(kinds) > 1 else task.article_kind)
    _require_output(config, task)
    return task


def _require_output(config: PredictConfig, task: TaskDefinition) -> None:
    """Raises UsageError if `-o` is missing, is not what the task writes, or is a file of lines that exists.

    Raises StorageError if the folder of a file of lines cannot be made.
    """
    if config.output is None and task.predicts_into_folder:
        written = f"'{config.model}' is {task.article_kind}: it writes {task.predicts_into_folder}."
        raise UsageError(written, "Give a folder for them: -o DIR.")
    if config.output is None or task.output is None or (config.output == "-" and task.output == "lines"):
        return
    path = Path(config.output)
    if task.output == "folder":
        if config.output == "-":
            raise UsageError(f"'{config.model}' is {task.article_kind}: its pictures need a folder.", "Give -o DIR.")
        if path.suffix.lower() == _LINES and not path.is_dir():
            raise UsageError(
                f"'{config.model}' is {task.article_kind}: -o '{path}' would be a folder of pictures.",
                f"Give -o DIR; the documents go to stdout: > {shell_word(path)}",
            )
        require_folder_name(config.output)
        return
    if path.suffix.lower() != _LINES and not is_stream(path):
        raise UsageError(
            f"'{config.model}' is {task.article_kind}, which writes lines of JSON: -o '{path}' is another format.",
            f"Give a name that ends in {_LINES}.",
        )
    require_writable_outputs([path], f"-o '{path}'", ProtectedInputs(config), overwrite=config.overwrite, follows=True)
    if not is_stream(path):
        require_folder(Path(os.path.realpath(path)).parent)


@dataclass(frozen=True)
class PredictedPictures:
    """The pictures of each image in the folder of `-o`.

    Attributes:
        pictures: One for each image, in order.
        overlays: Beside them, with `--overlay`; else empty.
        log: Notes what is written.
    """

    pictures: list[Path]
    overlays: list[Path]
    log: UnfinishedOutputs

    @classmethod
    def of(cls, config: PredictConfig, source: Source) -> PredictedPictures:
        """Names the pictures.

        Raises:
            UsageError: One exists, or is an input.
            StorageError: The folder cannot be made.
        """
        folder = Path(config.output or "")
        placed = OutputNames(folder, ".png", (_OVERLAY,) if config.overlay else ())
        pictures = [placed.path(source.path(index)) for index in range(len(source))]
        overlays = [_beside(picture) for picture in pictures] if config.overlay else []
        log, inputs = UnfinishedOutputs(folder, config), ProtectedInputs(config, source)
        require_writable_outputs(
            [*pictures, *overlays], f"-o '{config.output}'", inputs, overwrite=config.overwrite, own=log.holds
        )
        require_folder(folder)
        return cls(pictures, overlays, log)


def _beside(picture: Path) -> Path:
    return picture.with_name(f"{picture.stem}{_OVERLAY}.png")
