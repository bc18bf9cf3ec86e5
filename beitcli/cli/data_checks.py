"""DATA opened and its labels looked for before torch is loaded: by listing, no image is decoded.

Only what lies on this disk is looked at: stdin can be read once, and what is on the hub may have to be downloaded. The
engine opens it again, a large folder or tar from its index. What has no index and takes long is left to it: the pages
of `--pages all`, long lists, tables and patterns, the label columns of much parquet.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from beitcli.config.data_formats import is_data_word
from beitcli.config.tasks import TASKS, TaskDefinition, task_of_kind

if TYPE_CHECKING:
    from beitcli.data.sources.base import Source
    from beitcli.data.sources.format import Request, Role
    from beitcli.engine.events import Event, OnEvent
    from beitcli.models.checkpoints.handle import CheckpointHandle

_DRAWN = "sample"  # the word of DATA that opens at once
_MOST_PATHS = 1_000  # of patterns
_MOST_BYTES = {".txt": 4e6, ".tsv": 4e6, ".csv": 4e6, ".parquet": 4e9}  # of all files that end so: up to about 0.2 s


@dataclass(frozen=True)
class OpenedInputs:
    """The images of a command that writes something for each of them.

    Attributes:
        source: None if they are not looked at.
        query: The image of `embed --query`; None without.
        model: The header of the command's MODEL; None if it is not known.
    """

    source: Source | None = None
    query: Source | None = None
    model: CheckpointHandle | None = None


def check_data(config: Any, model: CheckpointHandle | None, on_event: OnEvent) -> OpenedInputs:
    """Opens the command's DATA.

    Args:
        model: The header of its MODEL, if that is known.

    Raises:
        BeitError: The engine's, for data that is missing, empty, or without what is to be learned or measured.
    """
    from beitcli.engine.events import Progress

    if getattr(config, "pages", "first") == "all":  # which are counted in each file
        return OpenedInputs(model=model)

    def progress(event: Event) -> None:  # the engine's opening tells what there is to say
        if isinstance(event, Progress):
            on_event(event)

    if config.command in ("pretrain", "train-tokenizer", "finetune"):
        _training(config, progress)
    elif config.command == "eval":
        _evaluation(config, model, progress)
    elif config.command in ("attn-map", "embed", "mask-preview", "predict", "tokenize"):
        return replace(_inputs(config, progress), model=model)
    return OpenedInputs()


def _training(config: Any, on_event: OnEvent) -> None:
    from beitcli.data.sources.open_data import open_data

    request = _request(config, on_event, vectors=getattr(config, "problem", None) == "multi-label")
    if config.command != "finetune":
        if _opens_soon(config.data):
            open_data(config.data, request)
        return
    task = TASKS.entries()[config.task]
    if _opens_soon(config.data):
        task.check_data(config.data, request)
    if config.val is not None and _opens_soon([config.val]):
        task.check_data([config.val], replace(request, split=None, role="eval", nul_separated=False))


def _evaluation(config: Any, model: CheckpointHandle | None, on_event: OnEvent) -> None:
    from beitcli.data.sources.open_data import open_data
    from beitcli.engine.io.eval_arguments import models_and_data
    from beitcli.engine.probing.training_images import training_source

    data = models_and_data(config).data
    if not _opens_soon(data):
        return
    request = _request(config, on_event, role="eval")
    if config.protocol == "head":
        task = None if model is None else task_of_kind(model.kind)
        if task is not None:
            _check_task(task, model, data, request)
        return
    labelled = config.protocol != "elbo"
    source = open_data(data, replace(request, labelled=labelled))
    if labelled and (config.train is None or _opens_soon([config.train])):
        training_source(replace(config, data=data), source.splits, request.sample_size, on_event)


def _check_task(task: TaskDefinition, model: Any, data: tuple[str, ...], request: Request) -> None:
    if model.problem != "regression":  # whose columns have any numbers
        task.check_data(data, replace(request, vectors=model.problem == "multi-label"))


def _inputs(config: Any, on_event: OnEvent) -> OpenedInputs:
    if config.command == "tokenize" and config.decode:
        return OpenedInputs()
    from beitcli.engine.io.inputs import open_inputs, open_query

    query = getattr(config, "query", None)
    opened = OpenedInputs(query=open_query(config, 64, None, on_event) if query and _opens_soon([query]) else None)
    if not config.inputs or not _opens_soon(config.inputs):
        return opened
    if query and len(config.inputs) == 1:
        from beitcli.engine.io.features.formats import is_feature_file

        if is_feature_file(config.inputs[0]):
            return opened
    role: Role = "train" if config.command == "mask-preview" else "eval"
    return replace(opened, source=open_inputs(config, role=role, sample_size=64, on_event=on_event))


def _request(config: Any, on_event: OnEvent, **others: Any) -> Request:
    from beitcli.data.sources.format import Request
    from beitcli.engine.events import openings

    return Request.of(config, on_progress=openings(on_event), **others)


def _opens_soon(references: Iterable[str]) -> bool:
    """Whether all are files and folders of this disk that take a moment to open, or drawn: no pipe, read once.

    Raises:
        DataError: One is missing.
    """
    from beitcli.data.sources.open_data import matches

    paths: list[str] = []
    for reference in references:
        if is_data_word(reference):
            if reference != _DRAWN:
                return False
            continue
        found = list(islice(matches(reference), _MOST_PATHS + 1))
        if len(found) > _MOST_PATHS or not all(os.path.isfile(path) or os.path.isdir(path) for path in found):
            return False
        paths += found
    return _are_small(paths)


def _are_small(paths: Iterable[str]) -> bool:
    """Whether the files of paths, and the parquet in folders, are few bytes of each kind that is read in full."""
    from beitcli.data.sources.formats._shards_below import shard_files

    left = dict(_MOST_BYTES)
    for path in paths:
        inside = (os.path.join(path, file) for file in shard_files(path)) if os.path.isdir(path) else (path,)
        for file in inside:
            suffix = os.path.splitext(file)[1].lower()
            if suffix in left:
                left[suffix] -= os.path.getsize(file)
    return min(left.values()) >= 0
