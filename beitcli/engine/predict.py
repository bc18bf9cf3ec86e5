"""`beit predict`: predictions of a finetuned model for its task."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

from beitcli.config.intensity import with_models_intensity
from beitcli.config.predict import PredictConfig
from beitcli.data.sources.base import Source
from beitcli.engine.events import Note, OnEvent, Warned, downloads, ignore
from beitcli.engine.io.documents import UnreadableImages
from beitcli.engine.io.output_paths import is_stream, make_folder
from beitcli.engine.io.prediction_outputs import predicted_task
from beitcli.engine.io.write_output import write_output
from beitcli.engine.report.record import read_measured
from beitcli.engine.report.verdict import verdict_of
from beitcli.errors import UsageError
from beitcli.models.checkpoints.handle import CheckpointHandle
from beitcli.models.checkpoints.open import expect_finetuned, open_model
from beitcli.runtime.compute.device import Compute
from beitcli.runtime.metric_text import counted
from beitcli.runtime.storage.safe_json import dump_json


def predict(
    config: PredictConfig, on_event: OnEvent = ignore, stdin: BinaryIO | None = None
) -> Iterator[dict[str, Any]]:
    """Yields one document per image, in input order: `{"path", ...}`, depending on the task, or `{"path", "error"}`.

    With an output file, of a task whose documents go there, they are written and not yielded.

    Raises:
        UsageError: A setting has no effect on this model, or the output is not what its task writes, or exists.
        DataError: After the last image, if some could not be read.
        StorageError: The model is not finetuned, so it predicts nothing.
    """
    checkpoint = open_model(config.model, downloads(on_event))
    config = with_models_intensity(config, checkpoint.settings)
    task = predicted_task(config, checkpoint)
    if config.output is not None and task.output == "lines" and not is_stream(Path(config.output)):
        make_folder(Path(os.path.realpath(config.output)).parent)
    _tell_verdict(checkpoint, on_event)
    found = task.run("predict", config, checkpoint, on_event, stdin)
    if config.output in (None, "-") or task.output != "lines":
        yield from found
    else:
        _write_lines(config, found, on_event)


def _tell_verdict(checkpoint: CheckpointHandle, on_event: OnEvent) -> None:
    """Warns of a model of which its own run says that it is not shown to be better than guessing."""
    if checkpoint.folder is None:
        return
    with suppress(OSError, ValueError, OverflowError, RecursionError):  # no run, or one with damaged files
        step = int(checkpoint.folder.path.name.rpartition("-")[2])
        verdict = verdict_of(read_measured(checkpoint.run, step))
        if not verdict.beats_guessing:
            on_event(Warned(f"Doubt what '{checkpoint.reference}' predicts, by the record of its run. {verdict.text}"))


def _write_lines(config: PredictConfig, found: Iterator[dict[str, Any]], on_event: OnEvent) -> None:
    """Writes the documents as JSON Lines, whole or not at all; of unreadable images too, before that is raised."""
    path, number = Path(config.output or ""), 0
    failure: UnreadableImages | None = None

    def write(file: BinaryIO) -> None:
        nonlocal number, failure
        try:
            for document in found:
                file.write(dump_json(document).encode() + b"\n")
                number += 1
        except UnreadableImages as error:
            failure = error

    write_output(path, write)
    on_event(Note(f"Made '{path}': {counted(number, 'image')}."))
    if failure is not None:
        raise failure


def predict_images(
    config: PredictConfig, checkpoint: CheckpointHandle, model: Any, compute: Compute, source: Source
) -> Iterator[dict[str, Any]]:
    """Yields the documents of `predict` for opened images, from the checkpoint's model on its device.

    Raises:
        UsageError: The task's package has no `predictions`, so that it reads files only.
    """
    task = expect_finetuned(checkpoint)
    module = import_module(f"{task.engine}.predict")
    if not hasattr(module, "predictions"):
        raise UsageError(f"The task {task.name} predicts of files only.", "Call beitcli.predict(MODEL, paths).")
    yield from module.predictions(config, checkpoint, model, compute, source)
