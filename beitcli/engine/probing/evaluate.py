"""`beit eval --protocol knn|linear`: classification accuracy of a model's frozen features, per layer.

    --train DATA --> features of the requested layers (cached)  \\
                                                                  knn: neighbours vote; linear: one head per layer
    DATA         --> the same                                   /
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from beitcli.config.evaluate import EvalConfig
from beitcli.data.caches.feature_cache import Features
from beitcli.data.loading.sampler import select_limit
from beitcli.data.sources.base import Source
from beitcli.data.sources.format import Request
from beitcli.data.sources.open_data import open_data
from beitcli.data.sources.splits import canonical
from beitcli.data.sources.subset import Subset
from beitcli.engine.events import Note, OnEvent, Warned, downloads, ignore, openings, warn
from beitcli.engine.io.inputs import open_inputs
from beitcli.engine.probing.feature_extraction import FeatureExtractor
from beitcli.engine.probing.knn import Counts, Vote, knn_counts
from beitcli.engine.probing.linear_probe import ProbeTraining, probe_counts, train_probes
from beitcli.engine.trainer.distributed_eval import finish_on_rank_zero
from beitcli.engine.trainer.evaluation import warn_bad
from beitcli.engine.trainer.reports import Evaluated
from beitcli.errors import DataError, UsageError
from beitcli.models.checkpoints.build import open_backbone, preprocessing
from beitcli.models.networks.pooled_features import weights_digest
from beitcli.runtime.compute.device import choose_workers, join_compute
from beitcli.runtime.hub.client import cache_folder


@dataclass(frozen=True)
class ProbeReport(Evaluated):
    """Report of a probe; metrics are fractions in 0-1.

    Attributes:
        train_images: Number of training images.
        classes: Number of their classes.
        layer: Layer of `top1` and `top5`, from 1; in a sweep the best one by top-1 on `data` itself.
        k: Number of neighbours; None for `linear`.
        layers: Metrics of a sweep, `{"layer", "top1", "top5"}` each; None otherwise.
    """

    top1: float
    top5: float
    layer: int
    k: int | None
    pool: str
    standardized: bool
    train: str
    train_images: int
    classes: int
    layers: list[dict[str, Any]] | None


def probe(config: EvalConfig, on_event: OnEvent = ignore) -> ProbeReport:
    """Evaluates the frozen features of any model that can be opened.

    Raises:
        UsageError: A layer that the model does not have, or no `--train`.
        DataError: No labels, no class in common, or too many bad images.
    """
    model, checkpoint = open_backbone(config.model, config.size, downloads(on_event), seed=config.seed)
    checkpoint = checkpoint.normalized(config.normalization)
    compute = join_compute(config, checkpoint.compute(config.device, config.precision))
    world, on_event = compute.world, compute.world.rank_zero_only(on_event)
    warn(checkpoint.warnings, on_event)
    layers = chosen_layers(config.layer, model.architecture.depth)
    size = max(model.architecture.image_size)
    val = world.rank_zero_first(lambda: open_inputs(config, sample_size=size, labelled=True, on_event=on_event))
    train, named = world.rank_zero_first(lambda: training_source(config, val.splits, size, on_event))
    model.to(compute.device)
    extractor = FeatureExtractor(
        model=model,
        transform=preprocessing(checkpoint, model),
        compute=compute,
        weights=weights_digest(model),
        layers=layers,
        pool=config.pool,
        cache=Path(config.feature_cache) if config.feature_cache else cache_folder() / "features",
        batch_size=config.batch_size,
        workers=choose_workers(config.workers, compute.device, world.local_size),
        on_event=on_event,
    )
    found = [extractor.features(source) for source in (train, val)]
    here = [features for features in found if features is not None]
    sources = _Sources(train, val, named)
    return finish_on_rank_zero(lambda: _report(config, sources, here, layers, compute.device, on_event), world)


@dataclass(frozen=True)
class _Sources:
    """Training and validation images; `named` is the name of the former, for the report."""

    train: Source
    val: Source
    named: str


def chosen_layers(layer: str, depth: int) -> list[int]:
    """Returns the requested blocks, counted from 1; all of them for `sweep`.

    Raises:
        UsageError: The model has no such block.
    """
    if layer == "sweep":
        return list(range(1, depth + 1))
    number = int(layer)
    if not 1 <= abs(number) <= depth:
        raise UsageError(
            f"--layer {layer}: the model has {depth} blocks.", f"Give 1 to {depth}, -1 to -{depth}, or sweep."
        )
    return [number if number > 0 else depth + 1 + number]


def training_source(
    config: EvalConfig, splits: frozenset[str], size: int, on_event: OnEvent, *, labelled: bool = True
) -> tuple[Source, str]:
    """Returns the training images, cut to `--limit`, and their name.

    They are `--train`, or the train split of DATA if another split of it is evaluated.

    Args:
        splits: Splits of DATA.
        labelled: Whether every image must have a label.

    Raises:
        UsageError: There are none.
    """
    references = config.data if config.train is None else (config.train,)
    if config.train is not None:
        split, named = None, config.train
    elif "train" in splits and canonical(config.split or "val") != "train":
        split, named = "train", f"{' '.join(config.data)}, split train"
    else:
        needs = "learns from labelled images" if labelled else "fits the variance of pixels to training images"
        raise UsageError(f"--protocol {config.protocol} {needs}, and none are given.", "Add --train DATA.")
    request = Request(split=split, labelled=labelled, sample_size=size, on_progress=openings(on_event))
    source = open_data(references, request)
    if config.limit is not None and config.limit < len(source):
        source = Subset(source, np.sort(select_limit(source, config.limit, config.seed)))
    return source, named


def _report(
    config: EvalConfig,
    sources: _Sources,
    found: Sequence[Features],
    layers: Sequence[int],
    device: torch.device,
    on_event: OnEvent,
) -> ProbeReport:
    """Evaluates the features of both sources on rank 0, which alone has them."""
    train, val = sources.train, sources.val
    for features, source in zip(found, (train, val), strict=True):
        warn_bad(config, features.bad, len(source), on_event)
    if config.standardize:
        standard = {layer: found[0].moments(layer) for layer in layers}
        found = [replace(each, standard=standard) for each in found]
    targets = _columns(train, val, found[0], found[1], on_event)
    how = _Protocol(config, layers, len(train.classes or ()), device)
    counts = _measure(how, found[0], found[1], targets, on_event)
    best = max(layers, key=lambda layer: (counts[layer].right1, counts[layer].right5))
    per_layer = [{"layer": n, "top1": counts[n].top1, "top5": counts[n].top5} for n in layers]
    return ProbeReport(
        model=config.model,
        data=" ".join(config.data),
        task="classify",
        protocol=config.protocol,
        images=counts[best].images,
        bad=len(found[1].bad),
        top1=counts[best].top1,
        top5=counts[best].top5,
        layer=best,
        k=min(config.k, len(found[0])) if config.protocol == "knn" else None,
        pool=config.pool,
        standardized=config.standardize,
        train=sources.named,
        train_images=len(found[0]),
        classes=len(np.unique(found[0].readable_labels)),
        layers=per_layer if config.layer == "sweep" else None,
    )


def _columns(train: Source, val: Source, seen: Features, asked: Features, on_event: OnEvent) -> torch.Tensor:
    """Returns (n,) int64: the training label of each readable image of `val`, by class name; -1 if there is none.

    Raises:
        DataError: No class in common.
    """
    names = train.classes or ()
    present = {names[label] for label in np.unique(seen.readable_labels)}
    column = {name: number for number, name in enumerate(names) if name in present}
    of_val = np.array([column.get(name, -1) for name in val.classes or ()], dtype=np.int64)
    targets = of_val[asked.readable_labels]
    lost = (targets < 0).sum()
    if lost == len(targets):
        first = (val.classes or ("none",))[0]
        raise DataError(
            f"No class of '{val.name}' (first: '{first}') is one of the {len(present)} in --train '{train.name}'.",
            "Name the class folders alike.",
        )
    if lost:
        missing = sorted({(val.classes or ())[label] for label in asked.readable_labels[targets < 0]})
        on_event(
            Warned(
                f"{len(missing)} classes of DATA have no image in --train (first: '{missing[0]}'): their {lost} images "
                "count as wrong."
            )
        )
    return torch.from_numpy(targets)


@dataclass(frozen=True)
class _Protocol:
    """How features are evaluated: on `device`, with `classes` as the number of classes."""

    config: EvalConfig
    layers: Sequence[int]
    classes: int
    device: torch.device


def _measure(
    how: _Protocol, train: Features, val: Features, targets: torch.Tensor, on_event: OnEvent
) -> dict[int, Counts]:
    """Returns counts by layer."""
    config, layers, classes, device = how.config, how.layers, how.classes, how.device
    on_event(Note(f"{config.protocol}: {len(train):,} training images, {len(val):,} to measure on"))
    if config.protocol == "linear":
        training = ProbeTraining(
            epochs=config.probe_epochs, lr=config.probe_lr, batch_size=config.probe_batch_size, seed=config.seed
        )
        probes = train_probes(train, layers, classes, training, device, on_event)
        return probe_counts(probes, val, layers, targets, device)
    if config.k > len(train):
        on_event(Warned(f"--k is {config.k}, but there are {len(train)} training images: all of them vote."))
    vote = Vote(config.k, classes, config.temperature, device)
    return {layer: knn_counts(train, val, targets, layer, vote) for layer in layers}
