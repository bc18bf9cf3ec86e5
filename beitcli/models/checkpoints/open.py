"""Opens a checkpoint of any program: locate, read the header, map the keys, read the configs, build the handle.

Checkpoints of this program are first verified by their hashes; of a run, the newest undamaged one is opened.
`open_unverified` reads the same without checking hashes and without importing torch.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from beitcli.config.architecture import Architecture
from beitcli.config.tasks import TASKS, TaskDefinition, task_of_kind
from beitcli.config.tasks.segment import TASK as SEGMENT
from beitcli.errors import StorageError
from beitcli.models.checkpoints.config_readers import DeclaredConfig, check_section, read_config
from beitcli.models.checkpoints.handle import CheckpointHandle
from beitcli.models.checkpoints.key_mapping import KeyMapping, by_block, detect_key_mapping
from beitcli.models.checkpoints.locate import WEIGHTS, format_of, is_timm_name, locate, read_beside
from beitcli.models.checkpoints.metadata import (
    STATISTICS,
    choose_normalization,
    choose_pooling,
    kind_outputs_head,
    mapped_shapes,
    name_classes,
    read_aggregation,
    read_architecture,
)
from beitcli.models.checkpoints.plain_vit import is_plain_vit, timm_key_mapping, vit_arguments, vit_key_mapping
from beitcli.models.checkpoints.segmenter_settings import SegmenterSettings, segmenter_settings
from beitcli.models.checkpoints.timm_references import (
    check_vit_shapes,
    random_init_base,
    timm_architecture,
    timm_model_of,
    timm_normalization,
    timm_random_config,
)
from beitcli.runtime.storage.safe_json import parse_json
from beitcli.runtime.weight_files.reader import WeightFile, read_header

if TYPE_CHECKING:
    from beitcli.runtime.hub.download import OnProgress
    from beitcli.runtime.storage.checkpoint import CheckpointFolder

_MADE_BY = {"masked-image-model": "pretrain", "tokenizer": "train-tokenizer"}


def open_model(reference: str, on_progress: OnProgress | None = None, seed: int = 0) -> CheckpointHandle:
    """Opens any BEiT, of this program or another, or a vision Transformer of timm.

    Args:
        seed: Seed of random weights (`MODEL@random`, `random`).

    Raises:
        UsageError: There is nothing of that name.
        StorageError: It is not such a model, is damaged, or cannot be downloaded.
    """
    base = random_init_base(reference)
    if base is not None:
        return _random_init(reference, base, on_progress, seed)
    if reference == "random":
        return CheckpointHandle(reference=reference, format="none", kind="backbone", backbone=Architecture(), seed=seed)
    if _our_folder(Path(reference)) is not None:
        return open_checkpoint(reference)
    weights, config, preprocessing = locate(reference, on_progress)
    checkpoint = describe(reference, read_header(weights), config, preprocessing, settings={})
    if checkpoint.format == "dall-e":
        raise StorageError(f"'{reference}' is DALL-E's tokenizer, not a BEiT.", "Pass it as --tokenizer.")
    return checkpoint


def open_checkpoint(reference: str) -> CheckpointHandle:
    """Opens a checkpoint of this program; of a run, the newest undamaged one.

    Raises:
        UsageError: There is nothing of that name.
        StorageError: It holds no checkpoint of this program, or only damaged ones.
    """
    folder = _verified_folder(Path(reference))
    if folder is None:
        weights, _, _ = locate(reference)  # raises UsageError if there is nothing
        raise StorageError(f"'{weights}' was not written by this program.", "Give a run or its checkpoint.")
    settings = folder.config
    check_section(settings, reference)
    weights, config, preprocessing = read_beside(folder.path / "model.safetensors")
    return describe(reference, read_header(weights), config, preprocessing, settings=settings, folder=folder)


def open_unverified(reference: str, on_progress: OnProgress | None = None) -> CheckpointHandle:
    """Reads the header and configs of any checkpoint, tokenizers included. Checks no hash and imports no torch.

    Raises:
        UsageError: There is nothing of that name.
        StorageError: It is not a known model.
    """
    weights, config, preprocessing = locate(reference, on_progress)
    return describe(reference, read_header(weights), config, preprocessing, settings=config.get("beit", {}))


def open_pretrained(reference: str, on_progress: OnProgress | None = None, seed: int = 0) -> CheckpointHandle:
    """Opens a checkpoint as initialization: anything but a tokenizer, for which it raises StorageError."""
    checkpoint = open_model(reference, on_progress, seed)
    if checkpoint.kind == "tokenizer":
        expect(checkpoint, "masked-image-model", "classifier")
    return checkpoint


def expect(checkpoint: CheckpointHandle, *kinds: str, or_else: str = "") -> None:
    """Raises StorageError if the checkpoint is of another kind.

    Args:
        or_else: A sentence for the hint: what else the user can do.
    """
    if checkpoint.kind not in kinds:
        made_by = _MADE_BY | {task.kind: task.command for task in TASKS.entries().values()}
        needed = " or ".join(dict.fromkeys(f"`beit {made_by[kind]}`" for kind in kinds))
        article = "an" if checkpoint.kind[0] in "aeiou" else "a"
        raise StorageError(
            f"'{checkpoint.reference}' is {article} {checkpoint.kind}.",
            f"Give a checkpoint as made by {needed}. {or_else}".strip(),
        )


def expect_finetuned(checkpoint: CheckpointHandle, or_else: str = "") -> TaskDefinition:
    """Returns the task that the checkpoint was finetuned for. Raises StorageError if there is none; see `expect`."""
    task = task_of_kind(checkpoint.kind)
    if task is None:
        expect(checkpoint, *(task.kind for task in TASKS.entries().values()), or_else=or_else)
    assert task is not None
    return task


def describe(
    reference: str,
    header: WeightFile,
    config: dict[str, Any],
    preprocessing: dict[str, Any],
    *,
    settings: dict[str, Any],
    folder: CheckpointFolder | None = None,
) -> CheckpointHandle:
    """Builds the handle from the header of the weights and the config files beside it.

    Args:
        config: config.json; empty if there is none.
        preprocessing: Hugging Face's preprocessor_config.json; empty if there is none.
        settings: The `beit` section of config.json; empty if it is not trusted.

    Raises:
        StorageError: The tensors are not a BEiT, or contradict each other or the config files.
        UsageError: The config file names a timm model that is not supported.
    """
    own_tokenizer = settings.get("kind") == "tokenizer"
    timm_model = timm_model_of(config, reference)
    key_mapping = None if own_tokenizer else _map_keys(header, reference, of_timm=timm_model is not None)
    if own_tokenizer or (key_mapping and key_mapping.naming == "dall-e"):
        return CheckpointHandle(
            reference=reference,
            format="beit" if own_tokenizer else "dall-e",
            kind="tokenizer",
            header=header,
            settings=settings,
            folder=folder,
            warnings=folder.damaged if folder else (),
        )
    declared = read_config(config, preprocessing, header.about)
    shapes = mapped_shapes(key_mapping, header.shapes, reference) if key_mapping else header.shapes
    assumed: list[str] = []
    kind, outputs, head = kind_outputs_head(key_mapping, shapes, header.shapes, declared)
    if timm_model is None and key_mapping is not None and not key_mapping.is_beit:
        timm_model = vit_arguments(shapes, key_mapping, header.about, declared, reference, assumed)
    if timm_model:
        architecture, pooling = timm_architecture(*timm_model, declared)
        if key_mapping is not None and key_mapping.naming != "timm":
            check_vit_shapes(architecture, outputs, shapes, reference, has_task_head=bool(key_mapping.head))
        elif declared.normalization is None:
            declared = replace(declared, default_normalization=timm_normalization(timm_model[0]))
    else:
        architecture = read_architecture(shapes, declared, reference, assumed)
        pooling = choose_pooling(kind, shapes, declared, reference)
    normalization = choose_normalization(declared, key_mapping, architecture, assumed)
    segmenter = None
    if key_mapping and kind == SEGMENT.kind:
        segmenter = _segmenter(head, declared, key_mapping, header, architecture, reference, assumed)
    classes, names_classes = name_classes(kind, outputs, declared, assumed)
    of_head = key_mapping.head.values() if key_mapping else ()
    learned = [name for name in of_head if not name.endswith(STATISTICS)]
    return CheckpointHandle(
        reference=reference,
        format=format_of(reference, key_mapping, header, config),
        kind=kind,
        header=header,
        settings=settings,
        folder=folder,
        backbone=architecture,
        key_mapping=key_mapping,
        parameters=sum(map(math.prod, (*shapes.values(), *(header.shapes[name] for name in learned)))),
        outputs=outputs,
        classes=classes,
        names_classes=names_classes,
        pooling=pooling,
        normalization=normalization,
        crop_pct=declared.crop_pct,
        head=head,
        aggregation=read_aggregation(shapes, declared),
        segmenter=segmenter,
        assumed=tuple(assumed),
        warnings=folder.damaged if folder else _remarks(reference, key_mapping, header, architecture, assumed),
    )


def _segmenter(
    head: str | None,
    declared: DeclaredConfig,
    key_mapping: KeyMapping,
    header: WeightFile,
    architecture: Architecture,
    reference: str,
    assumed: list[str],
) -> SegmenterSettings:
    shapes = {ours: header.shapes[name] for ours, name in key_mapping.head.items()}
    settings = segmenter_settings(declared.segmenter, head, shapes, architecture.depth, reference)
    if key_mapping.naming == "hf" and not declared.segmenter.states_blocks:
        blocks = ", ".join(map(str, settings.out_indices))
        assumed.append(f"the head takes the outputs of blocks {blocks} (from 0), as in the release")
    return settings


def _map_keys(header: WeightFile, reference: str, *, of_timm: bool) -> KeyMapping | None:
    """Maps the keys of the file to ours; None for a model of timm that keeps its own keys.

    Args:
        of_timm: Whether config.json names a model of timm that is no BEiT.
    """
    if of_timm:
        return timm_key_mapping(header.shapes, reference)
    if is_plain_vit(header.shapes):
        return vit_key_mapping(header.shapes, reference)
    return detect_key_mapping(header.shapes, reference)


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
        head=None,
        aggregation=None,
        segmenter=None,
        assumed=(),
        seed=seed,
    )


def _remarks(
    reference: str, key_mapping: KeyMapping | None, header: WeightFile, architecture: Architecture, assumed: list[str]
) -> tuple[str, ...]:
    """Returns warnings for the user about a checkpoint of another program."""
    said = [f"'{reference}' does not say it; assumed: {what}." for what in assumed]
    if key_mapping is None:
        return tuple(said)
    if key_mapping.dropped:
        names = ", ".join(by_block(key_mapping.dropped))
        place = "BEiT" if key_mapping.is_beit else "a vision Transformer"
        said.append(f"'{reference}' has tensors without a place in {place}, left out: {names}.")
    if header.about.get("student"):
        said.append(f"'{reference}' holds a student too; the teacher is taken.")
    if "averaged" in header.about:
        said.append(f"'{reference}' holds averaged weights too ({header.about['averaged']}); the raw ones are taken.")
    height, width = architecture.image_size
    if key_mapping.naming == "hf" and height != width and architecture.positions != "absolute":
        said.append(f"'{reference}' takes {height} x {width} pixels, where transformers mixes up its bias tables.")
    return tuple(said)


def _our_folder(path: Path) -> Path | None:
    """Returns the checkpoint folder or run of this program at `path`; None if there is none.

    A checkpoint is recognized by the `beit` section of its config.json, a damaged one by its location in a run.
    """
    if path.is_file():
        return path.parent if path.name == "model.safetensors" and _is_ours(path.parent) else None
    if any((path / name).is_file() for name in WEIGHTS) or _is_ours(path):
        return path if _is_ours(path) else None
    if path.name == "checkpoints":
        path = path.parent
    return path if any((path / "checkpoints").glob("step-*")) else None


def _is_ours(folder: Path) -> bool:
    try:
        return "beit" in parse_json((folder / "config.json").read_bytes())
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
