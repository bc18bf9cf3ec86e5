"""Builds the handle of a checkpoint from the header of its weights and its config files. Imports no torch for a BEiT.

Map the keys, read the configs, derive kind, architecture and normalization, note what nothing says.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from beitcli.config.architecture import Architecture, Kind, Pooling, default_out_indices
from beitcli.config.normalization import Normalization
from beitcli.config.problem import Problem
from beitcli.config.tasks.segment import TASK as SEGMENT
from beitcli.errors import StorageError
from beitcli.models.checkpoints.config_readers import HF_NORM_EPS, DeclaredConfig, read_config
from beitcli.models.checkpoints.foreign_folders import newest_weights
from beitcli.models.checkpoints.handle import CheckpointHandle
from beitcli.models.checkpoints.key_mapping import KeyMapping, by_block, detect_key_mapping
from beitcli.models.checkpoints.locate import WEIGHTS, format_of
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
from beitcli.models.checkpoints.network_root import PATCHES, find_network, roots_of
from beitcli.models.checkpoints.plain_vit import (
    is_known_root,
    is_plain_vit,
    timm_key_mapping,
    vit_arguments,
    vit_key_mapping,
)
from beitcli.models.checkpoints.segmenter_settings import SegmenterSettings, segmenter_settings
from beitcli.models.checkpoints.timm_references import (
    check_vit_shapes,
    timm_architecture,
    timm_model_of,
    timm_normalization,
)
from beitcli.runtime.weight_files import choices
from beitcli.runtime.weight_files.reader import WeightFile

if TYPE_CHECKING:
    from beitcli.runtime.storage.checkpoint import CheckpointFolder

TimmModel = tuple[str, dict[str, Any]]  # name and arguments of a vision Transformer of timm


@dataclass(frozen=True)
class _Found:
    """What a checkpoint holds and states.

    Attributes:
        key_mapping: None for timm models that keep their own keys.
        shapes: Shapes by our keys.
    """

    reference: str
    header: WeightFile
    key_mapping: KeyMapping | None
    shapes: Mapping[str, tuple[int, ...]]
    declared: DeclaredConfig


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
    given: dict[str, Any] = {"reference": reference, "header": header, "settings": settings, "folder": folder}
    if own_tokenizer or (key_mapping and key_mapping.naming == "dall-e"):
        warnings = folder.damaged if folder else ()
        format_ = "beit" if own_tokenizer else "dall-e"
        return CheckpointHandle(**given, format=format_, kind="tokenizer", warnings=warnings)
    shapes = mapped_shapes(key_mapping, header.shapes, reference) if key_mapping else header.shapes
    declared = read_config(config, preprocessing, header.about)
    found = _Found(reference, header, key_mapping, shapes, declared)
    assumed: list[str] = []
    kind, outputs, head = kind_outputs_head(key_mapping, shapes, header.shapes, found.declared)
    architecture, pooling = _architecture(found, kind, outputs, timm_model, assumed)
    declared = replace(found.declared, default_normalization=_default_normalization(found, timm_model))
    normalization = choose_normalization(declared, key_mapping, architecture, assumed)
    segmenter = _segmenter(found, head, architecture, assumed) if kind == SEGMENT.kind else None
    classes, names_classes = name_classes(kind, outputs, declared, assumed)
    return CheckpointHandle(
        **given,
        format=format_of(reference, key_mapping, header, config),
        kind=kind,
        backbone=architecture,
        key_mapping=key_mapping,
        parameters=_parameters(found),
        outputs=outputs,
        classes=classes,
        names_classes=names_classes,
        pooling=pooling,
        normalization=normalization,
        crop=declared.crop,
        problem=_problem(kind, outputs, declared, assumed),
        head=head,
        aggregation=read_aggregation(shapes, declared),
        segmenter=segmenter,
        assumed=tuple(assumed),
        warnings=folder.damaged if folder else _remarks(found, architecture, segmenter, assumed),
    )


def _map_keys(header: WeightFile, reference: str, *, of_timm: bool) -> KeyMapping | None:
    """Maps the keys of the file to ours; None for a model of timm that keeps its own keys.

    Args:
        of_timm: Whether config.json names a model of timm that is no BEiT.
    """
    if of_timm:
        return timm_key_mapping(header.shapes, reference)
    keys = [header.key, *header.others] if header.others else []
    of_key = header.part and choices.named(keys or [header.key], header.part) == header.key
    origin = reference.removesuffix(f"#{header.part}") if header.part else reference
    network = find_network(header.shapes, origin, "" if of_key else header.part, keys)
    if not is_plain_vit(network.keys):
        return network.in_file(detect_key_mapping(network.keys, reference))
    if not header.part and is_known_root(network.root) and f"{network.root}{PATCHES}" in header.shapes:
        return vit_key_mapping(header.shapes, reference)
    return network.in_file(vit_key_mapping(network.keys, reference))


def _architecture(
    found: _Found, kind: Kind, outputs: int, timm_model: TimmModel | None, assumed: list[str]
) -> tuple[Architecture, Pooling]:
    """Derives architecture and pooling and compares the tensors with them; a timm model's own keys are left to timm."""
    mapping, declared = found.key_mapping, found.declared
    if declared.norm_eps is None and mapping is not None and mapping.naming == "hf":
        declared = replace(declared, norm_eps=HF_NORM_EPS)
        assumed.append(f"layer norms with an epsilon of {HF_NORM_EPS:g}, transformers' default")
    if timm_model is None and mapping is not None and not mapping.is_beit:
        timm_model = vit_arguments(found.shapes, mapping, found.header.about, declared, found.reference, assumed)
    if timm_model is None:
        architecture = read_architecture(found.shapes, declared, found.reference, assumed)
        return architecture, choose_pooling(kind, found.shapes, declared, found.reference)
    architecture, pooling = timm_architecture(*timm_model, declared)
    if mapping is not None and mapping.naming != "timm":
        check_vit_shapes(architecture, outputs, found.shapes, found.reference, has_task_head=bool(mapping.head))
    return architecture, pooling


def _problem(kind: Kind, outputs: int, declared: DeclaredConfig, assumed: list[str]) -> Problem:
    """Returns what the outputs mean; a single one is a number, as the softmax of one class is always 1."""
    if kind != "classifier" or declared.problem is not None:
        return declared.problem or "single-label"
    if outputs > 1:
        return "single-label"
    assumed.append("its one output is a number (regression), as transformers trains it")
    return "regression"


def _default_normalization(found: _Found, timm_model: TimmModel | None) -> Normalization | None:
    """Returns what the library takes for such a model where nothing declares it: for timm's names, timm's own."""
    keeps_names = found.key_mapping is None or found.key_mapping.naming == "timm"
    if timm_model is None or not keeps_names or found.declared.normalization is not None:
        return found.declared.default_normalization
    return timm_normalization(timm_model[0])


def _segmenter(found: _Found, head: str | None, architecture: Architecture, assumed: list[str]) -> SegmenterSettings:
    mapping, declared = found.key_mapping, found.declared.segmenter
    assert mapping is not None  # its head has keys
    shapes = {ours: found.header.shapes[name] for ours, name in mapping.head.items()}
    settings = segmenter_settings(declared, head, shapes, architecture.depth, found.reference)
    if not mapping.is_beit and min(settings.out_indices) < 0:
        raise StorageError(
            f"'{found.reference}' states block -1, the embeddings, which a segmenter over timm's models does not take.",
            "Take another checkpoint of the run.",
        )
    if mapping.naming == "hf" and not declared.states_blocks:
        blocks = ", ".join(map(str, settings.out_indices))
        assumed.append(f"the head takes the outputs of blocks {blocks} (from 0), as in the release")
    return settings


def _other_networks(reference: str, header: WeightFile) -> list[str]:
    """Says which other state dicts the file holds, unless one was chosen by name."""
    if not header.others or header.part:
        return []
    ways = ", ".join(f"'{reference}#{key}'" for key in header.others)
    if header.key == "teacher" and "student" in header.others:
        return [f"'{reference}' holds a student too; the teacher is taken. The others: {ways}."]
    if any(choices.is_average(key) for key in header.others):
        averaged = ", ".join(key for key in header.others if choices.is_average(key))
        return [f"'{reference}' holds averaged weights too ({averaged}); the raw ones are taken. The others: {ways}."]
    return [f"'{reference}' holds other weights too; those of '{header.key}' are taken. The others: {ways}."]


def _parameters(found: _Found) -> int:
    """Returns the number of elements of all tensors that are used, without statistics of batch norm."""
    of_head = found.key_mapping.head.values() if found.key_mapping else ()
    learned = [found.header.shapes[name] for name in of_head if not name.endswith(STATISTICS)]
    return sum(map(math.prod, (*found.shapes.values(), *learned)))


def _remarks(
    found: _Found, architecture: Architecture, segmenter: SegmenterSettings | None, assumed: list[str]
) -> tuple[str, ...]:
    """Returns warnings for the user about a checkpoint of another program."""
    reference, mapping = found.reference, found.key_mapping
    said = [f"'{reference}' does not say it; assumed: {what}." for what in assumed]
    if Path(reference).is_dir() and newest_weights(Path(reference), WEIGHTS) == found.header.path:
        said.append(f"Of '{reference}' the newest weights are taken: {found.header.path}.")
    if mapping is None:
        return tuple(said)
    if mapping.dropped:
        names = ", ".join(by_block(mapping.dropped))
        place = "BEiT" if mapping.is_beit else "a vision Transformer"
        said.append(f"'{reference}' has tensors without a place in {place}, left out: {names}.")
    said += _other_networks(reference, found.header)
    roots = [] if found.header.part else roots_of(found.header.shapes)
    if len(roots) > 1:
        ways = " or ".join(f"'{reference}#{root.rstrip('.')}'" for root in roots if root)
        said.append(f"'{reference}' holds {len(roots)} networks; name another one by {ways}.")
    height, width = architecture.image_size
    if mapping.naming == "hf" and height != width and architecture.positions != "absolute":
        said.append(f"'{reference}' takes {height} x {width} pixels, where transformers mixes up its bias tables.")
    released = list(default_out_indices(architecture.depth))
    stated = found.declared.segmenter
    if segmenter is not None and stated.hidden_states == released and not stated.is_data2vec:
        seen = ", ".join(map(str, segmenter.out_indices))
        said.append(
            f"'{reference}' states out_indices = {released}, which as transformers counts are the outputs of blocks "
            f"{seen} (from 0). The release's segmenters take blocks {', '.join(map(str, released))}: if it was "
            "converted from one, its .pth gives the release's masks."
        )
    return tuple(said)
