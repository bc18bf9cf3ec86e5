"""What `-o` and its like name, refused before torch is loaded: it exists, is an input, or cannot be made.

Nothing is made here. The engine plans the same files again, with what may have changed meanwhile. Left to it alone are
a folder that a command left unfinished, as settings of MODEL tell whether it was this one, and what may be replaced,
for which every input is looked at.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from beitcli.cli.data_checks import OpenedInputs
from beitcli.config.attn_map import ATTENTION_SUFFIXES, ONE_OF_ALL
from beitcli.config.tasks import TASKS, task_of_kind

if TYPE_CHECKING:
    from beitcli.engine.io.protected_inputs import ProtectedInputs

_OUTPUTS = ("output", "map", "codebook", "reconstruct")


def check_outputs(config: Any, opened: OpenedInputs) -> None:
    """Raises the engine's error for an output that cannot be written.

    Args:
        opened: The images that outputs are named after, and that none may replace.
    """
    check = _CHECKS.get(config.command)
    if check is None or _replaces(config):
        return
    from beitcli.engine.io.protected_inputs import ProtectedInputs

    query = [] if opened.query is None else [opened.query.path(0)]
    check(config, opened, ProtectedInputs(config, opened.source, images=query))


def _replaces(config: Any) -> bool:
    """Whether outputs of a command that compares them with each image are there, and may be replaced."""
    if config.command == "export" or not (config.overwrite or getattr(config, "resume", False)):
        return False
    named = [getattr(config, name, None) for name in _OUTPUTS]
    return any(os.path.lexists(output) for output in named if output)


def _is_unfinished(folder: str) -> bool:
    from beitcli.engine.io.unfinished_outputs import is_unfinished

    return is_unfinished(folder)


def _attention(config: Any, opened: OpenedInputs, inputs: ProtectedInputs) -> None:
    if config.output is None or opened.source is None or _is_unfinished(config.output):
        return
    from beitcli.engine.io.outputs import output_files

    formats, of_all = ATTENTION_SUFFIXES, ONE_OF_ALL
    output_files(config.output, opened.source, formats, inputs, overwrite=config.overwrite, of_all=of_all, makes=False)


def _features(config: Any, opened: OpenedInputs, inputs: ProtectedInputs) -> None:
    if config.output != "-":
        from beitcli.engine.io.feature_files import require_writable_features

        require_writable_features(config, inputs)


def _exported(config: Any, opened: OpenedInputs, inputs: ProtectedInputs) -> None:
    from beitcli.engine.io.export_target import require_free_target, require_packages

    require_packages(config)
    require_free_target(config)


def _masks(config: Any, opened: OpenedInputs, inputs: ProtectedInputs) -> None:
    if not config.output or config.animate:
        return
    from beitcli.engine.io.output_paths import is_stdout
    from beitcli.engine.io.picture_outputs import picture_file, picture_outputs

    if config.stats:
        picture_file(config.output, "-o", inputs, overwrite=config.overwrite, makes=False)
    elif config.limit is not None and config.seed is None:  # then the seed of the run selects the images
        return
    elif opened.source is not None and not is_stdout(config.output) and not _is_unfinished(config.output):
        picture_outputs(config.output, "-o", opened.source, inputs, overwrite=config.overwrite, makes=False)


def _predictions(config: Any, opened: OpenedInputs, inputs: ProtectedInputs) -> None:
    task = None if opened.model is None else task_of_kind(opened.model.kind)
    if config.output is None or opened.source is None or task is None or _is_unfinished(config.output):
        return
    if task.output != "folder" or not TASKS.is_ours(task.name):  # another package names its pictures itself
        return
    from beitcli.engine.io.prediction_outputs import PredictedPictures

    PredictedPictures.of(config, opened.source)


def _tokens(config: Any, opened: OpenedInputs, inputs: ProtectedInputs) -> None:
    from beitcli.engine.io.output_paths import require_folder
    from beitcli.engine.io.picture_outputs import picture_file, picture_outputs
    from beitcli.engine.io.token_files import require_writable_tokens
    from beitcli.engine.reconstructed_pictures import ReconstructedPictures

    if config.decode:
        require_folder(Path("decoded" if config.output == "-" else config.output))
        return
    how: dict[str, Any] = {"overwrite": config.overwrite, "makes": False}
    if config.output != "-" and config.stats:
        picture_file(config.output, "-o", inputs, **how)
    elif config.output != "-":
        require_writable_tokens(config, inputs)
    if config.codebook:
        picture_file(config.codebook, "--codebook", inputs, **how)
    if opened.source is None:
        return
    if config.map and not _is_unfinished(config.map):
        picture_outputs(config.map, "--map", opened.source, inputs, **how)
    # With `resume` images that FILE holds keep their pictures.
    if config.reconstruct and not config.resume and not _is_unfinished(config.reconstruct):
        pictures = ReconstructedPictures.of(config, opened.source)
        assert pictures is not None
        pictures.require_free(config, inputs)


_CHECKS: dict[str, Callable[[Any, OpenedInputs, ProtectedInputs], None]] = {
    "attn-map": _attention,
    "embed": _features,
    "export": _exported,
    "mask-preview": _masks,
    "predict": _predictions,
    "tokenize": _tokens,
}
