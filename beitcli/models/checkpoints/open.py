"""Opens a checkpoint of any program: locate its files, read the header of its weights, describe it (`describe.py`).

Checkpoints of this program are first verified by their hashes; of a run, the newest undamaged one is opened.
`open_unverified` reads the same without checking hashes, and without importing torch unless it is a plain ViT.
"""

from __future__ import annotations

import os
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from beitcli.config.architecture import Architecture, kind_in_words
from beitcli.config.recipe_files import recipe_names
from beitcli.config.tasks import DEFAULT_TASK, TASKS, TaskDefinition, task_of_kind
from beitcli.errors import StorageError
from beitcli.escaping import shell_word
from beitcli.models.checkpoints.config_readers import check_section
from beitcli.models.checkpoints.describe import describe
from beitcli.models.checkpoints.handle import CheckpointHandle
from beitcli.models.checkpoints.locate import WEIGHTS, Json, is_timm_name, locate, read_beside, split_part
from beitcli.models.checkpoints.network_root import find_network
from beitcli.models.checkpoints.plain_vit import is_plain_vit
from beitcli.models.checkpoints.timm_references import names_timm_model, random_init_base, timm_random_config
from beitcli.runtime.storage.own_files import not_permitted
from beitcli.runtime.storage.regular_files import read_regular
from beitcli.runtime.storage.safe_json import parse_json
from beitcli.runtime.weight_files.reader import WeightFile, is_safetensors, read_header

if TYPE_CHECKING:
    from beitcli.runtime.hub.download import OnProgress
    from beitcli.runtime.storage.checkpoint import CheckpointFolder

_MADE_BY = {"masked-image-model": "pretrain", "tokenizer": "train-tokenizer"}


def open_model(reference: str, on_progress: OnProgress | None = None, seed: int = 0) -> CheckpointHandle:
    """Opens any BEiT, of this program or another, or a vision Transformer of timm.

    Args:
        seed: Seed of random weights (`MODEL@random`, `random`).

    Raises:
        StorageError: There is nothing of that name, it is not such a model, is damaged, or cannot be downloaded.
    """
    base = random_init_base(reference)
    if base is not None:
        return _random_init(reference, base, on_progress, seed)
    if reference == "random":
        return CheckpointHandle(reference=reference, format="none", kind="backbone", backbone=Architecture(), seed=seed)
    if _our_folder(Path(reference)) is not None:
        return open_checkpoint(reference)
    weights, config, preprocessing = locate(reference, on_progress)
    header = read_header(weights, split_part(reference)[1])
    checkpoint = describe(reference, header, config, preprocessing, settings={})
    if checkpoint.format == "dall-e":
        refuse_tokenizer(checkpoint)
    return checkpoint


def open_checkpoint(reference: str) -> CheckpointHandle:
    """Opens a checkpoint of this program; of a run, the newest undamaged one.

    Raises:
        StorageError: There is nothing of that name, it holds no checkpoint of this program, or only damaged ones.
    """
    folder = _verified_folder(Path(reference))
    if folder is None:
        weights, _, _ = locate(reference)  # raises StorageError if there is nothing
        raise StorageError(f"'{weights}' was not written by this program.", "Give a run or its checkpoint.")
    settings = folder.config
    check_section(settings, reference)
    weights, config, preprocessing = read_beside(folder.path / "model.safetensors")
    return describe(reference, read_header(weights), config, preprocessing, settings=settings, folder=folder)


def open_unverified(reference: str, on_progress: OnProgress | None = None) -> CheckpointHandle:
    """Reads the header and configs of any checkpoint, tokenizers included. Checks no hash.

    Raises:
        StorageError: There is nothing of that name, it is not a known model.
    """
    weights, config, preprocessing = locate(reference, on_progress)
    return _unverified(reference, read_header(weights, split_part(reference)[1]), config, preprocessing)


def open_without_torch(reference: str) -> CheckpointHandle | None:
    """As `open_unverified`; None for a pickle and for a plain ViT, of which nothing is told without torch.

    Raises:
        OSError: The weights cannot be read.
    """
    weights, config, preprocessing = locate(reference)
    if not is_safetensors(weights) or names_timm_model(config):
        return None
    header = read_header(weights, split_part(reference)[1])
    if "beit" not in config and is_plain_vit(find_network(header.shapes, reference, header.part).keys):
        return None
    return _unverified(reference, header, config, preprocessing)


def _unverified(reference: str, header: WeightFile, config: Json, preprocessing: Json) -> CheckpointHandle:
    if "beit" in config:
        check_section(config["beit"], reference)
    return describe(reference, header, config, preprocessing, settings=config.get("beit", {}))


def open_pretrained(reference: str, on_progress: OnProgress | None = None, seed: int = 0) -> CheckpointHandle:
    """Opens a checkpoint as initialization: anything but a tokenizer, for which it raises StorageError."""
    checkpoint = open_model(reference, on_progress, seed)
    refuse_tokenizer(checkpoint)
    return checkpoint


def refuse_tokenizer(checkpoint: CheckpointHandle) -> None:
    """Raises StorageError for a tokenizer."""
    if checkpoint.format == "dall-e":
        raise StorageError(f"'{checkpoint.reference}' is DALL-E's tokenizer, not a BEiT.", "Pass it as --tokenizer.")
    if checkpoint.kind == "tokenizer":
        expect(checkpoint, "masked-image-model", "classifier")


def expect_tokenizer(checkpoint: CheckpointHandle) -> None:
    """Raises StorageError if a checkpoint of this program neither is a tokenizer nor names the one it learned from."""
    if checkpoint.kind not in ("tokenizer", "masked-image-model"):
        raise StorageError(
            f"'{checkpoint.reference}' is {kind_in_words(checkpoint.kind)}, not a tokenizer.",
            "Give a run of `beit train-tokenizer`, or of `beit pretrain`.",
        )


def expect(checkpoint: CheckpointHandle, *kinds: str, or_else: str = "") -> None:
    """Raises StorageError if the checkpoint is of another kind.

    Args:
        or_else: A sentence for the hint: what else the user can do.
    """
    if checkpoint.kind not in kinds:
        made_by = _MADE_BY | {task.kind: task.command for task in TASKS.entries().values()}
        needed = " or ".join(dict.fromkeys(f"`beit {made_by[kind]}`" for kind in kinds))
        raise StorageError(
            f"'{checkpoint.reference}' is {kind_in_words(checkpoint.kind)}.",
            f"Give a checkpoint as made by {needed}. {or_else}".strip(),
        )


def expect_finetuned(checkpoint: CheckpointHandle, or_else: str = "") -> TaskDefinition:
    """Returns the task that the checkpoint was finetuned for. Raises StorageError if there is none; see `expect`."""
    task = task_of_kind(checkpoint.kind)
    if task is None and checkpoint.kind in ("masked-image-model", "backbone"):
        others = " or ".join(f"--task {name}" for name in TASKS.entries() if name != DEFAULT_TASK)
        raise StorageError(
            f"'{checkpoint.reference}' is {kind_in_words(checkpoint.kind)}: it knows no classes.",
            f"Make a classifier of it, with `beit finetune DATA {_same_recipe(checkpoint)}--init "
            f"{shell_word(checkpoint.reference)}` (or add {others}), and give that run. {or_else}".strip(),
        )
    if task is None:
        expect(checkpoint, *(task.kind for task in TASKS.entries().values()), or_else=or_else)
    assert task is not None
    return task


def _same_recipe(checkpoint: CheckpointHandle) -> str:
    """Returns the option for the recipe of a run, if `finetune` has one of that name: its default may take days."""
    step = checkpoint.weights.parent  # of RUN/checkpoints/step-N/model.safetensors
    if not checkpoint.settings or step.parent.name != "checkpoints" or not step.name.startswith("step-"):
        return ""
    run = step.parent.parent
    try:
        recipe = tomllib.loads(read_regular(run / "config.toml").decode()).get("recipe")
    except (OSError, ValueError, RecursionError):
        return ""
    return f"--recipe {recipe} " if recipe in recipe_names("finetune") else ""


def _random_init(reference: str, base: str, on_progress: OnProgress | None, seed: int) -> CheckpointHandle:
    """Returns a handle with the architecture of `base` and random weights from `seed`, without head and classes."""
    if is_timm_name(base):
        config, shapes = timm_random_config(reference, base)
        header = WeightFile(Path(), "torch", shapes, {}, 0)
        checkpoint = replace(describe(reference, header, config, {}, settings={}), warnings=())
    else:
        checkpoint = open_model(base, on_progress)
    return replace(
        checkpoint,
        reference=reference,
        format="none",
        kind="backbone",
        settings={},
        backbone=checkpoint.architecture,  # refuses a tokenizer
        key_mapping=None,
        outputs=0,
        classes=(),
        names_classes=True,
        problem="single-label",
        head=None,
        aggregation=None,
        segmenter=None,
        assumed=(),
        seed=seed,
    )


def _our_folder(path: Path) -> Path | None:
    """Returns the checkpoint folder or run of this program at `path`; None if there is none.

    A checkpoint is recognized by the `beit` section of its config.json, a damaged one by its location in a run.

    Raises:
        StorageError: A folder or file of it may not be read.
    """
    try:
        if path.is_file():
            return path.parent if path.name == "model.safetensors" and _is_ours(path.parent) else None
        if any((path / name).is_file() for name in WEIGHTS) or _is_ours(path):
            return path if _is_ours(path) else None
        if path.name == "checkpoints":
            path = path.parent
        folder = path / "checkpoints"
        is_run = folder.is_dir() and any(name.startswith("step-") for name in os.listdir(folder))
        return path if is_run else None
    except PermissionError as error:
        raise not_permitted(error.filename or path) from None


def _is_ours(folder: Path) -> bool:
    try:
        return "beit" in parse_json(read_regular(folder / "config.json"))
    except PermissionError:
        raise
    except (OSError, ValueError, TypeError):
        from beitcli.runtime.storage.checkpoint import SUMS  # imports torch

        return (folder / SUMS).is_file() and folder.parent.name == "checkpoints"


def _verified_folder(path: Path) -> CheckpointFolder | None:
    from beitcli.runtime.storage.checkpoint import newest_checkpoint, verified_checkpoint  # imports torch

    folder = _our_folder(path)
    if folder is None:
        return None
    is_run = (folder / "checkpoints").is_dir()
    return newest_checkpoint(folder, weights_only=True) if is_run else verified_checkpoint(folder, weights_only=True)
