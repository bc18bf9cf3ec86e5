"""`beit eval --protocol knn|linear`: classification accuracy of a model's frozen features, per layer.

    --train DATA --> features of the requested layers (cached)  \\
                                                                  knn: neighbours vote; linear: one head per layer
    DATA         --> the same                                   /

With `--augment` the heads learn from features of new views in each epoch (`augmented.py`), which are not kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from beitcli.config.evaluate import EvalConfig
from beitcli.config.intensity import with_models_intensity
from beitcli.data.caches.feature_cache import Bad, Features
from beitcli.data.sources.base import Source
from beitcli.engine.events import Note, OnEvent, Warned, downloads, ignore, warn
from beitcli.engine.io.inputs import open_inputs
from beitcli.engine.probing.augmented import Moments, train_augmented
from beitcli.engine.probing.feature_extraction import FeatureExtractor
from beitcli.engine.probing.forms import ProbeForm, form_of
from beitcli.engine.probing.knn import Counts, Vote, knn_counts
from beitcli.engine.probing.linear_probe import LinearProbes, ProbeTraining, probe_counts, train_probes
from beitcli.engine.probing.training_images import training_source
from beitcli.engine.report.intervals import commonest_share, share_interval
from beitcli.engine.trainer.distributed_eval import finish_on_rank_zero
from beitcli.engine.trainer.evaluation import warn_bad
from beitcli.engine.trainer.reports import Evaluated
from beitcli.errors import DataError, UsageError
from beitcli.models.checkpoints.build import open_backbone, preprocessing
from beitcli.models.networks.pooled_features import has_class_token, weights_digest
from beitcli.runtime.compute.device import choose_workers, join_compute
from beitcli.runtime.storage.cache_folder import cache_folder


@dataclass(frozen=True)
class ProbeReport(Evaluated):
    """Report of a probe; metrics are fractions in 0-1.

    Attributes:
        train_images: Number of training images.
        classes: Number of their classes.
        layer: Layer of `top1` and `top5`, from 1; in a sweep the best one by top-1 on `data` itself.
        k: Number of neighbours; None for `linear`.
        form: Form of the probe, `paper` or `release`; None for `knn`.
        pool: What a feature is: `mean`, `class` or `class+mean`.
        normed: Whether each token was normed before.
        augmented: Whether the heads learned from new crops and flips in each epoch.
        top1_interval: Wilson's, of 95%; None of a sweep, whose best layer was chosen on these images.
        baseline_accuracy: Top-1 of always guessing the most frequent class of `data`.
        layers: Metrics of a sweep, `{"layer", "top1", "top5"}` each; None otherwise.
    """

    top1: float
    top5: float
    top1_interval: tuple[float, float] | None
    baseline_accuracy: float
    layer: int
    k: int | None
    form: str | None
    pool: str
    normed: bool
    standardized: bool
    augmented: bool
    train: str
    train_images: int
    classes: int
    layers: list[dict[str, Any]] | None


def probe(config: EvalConfig, on_event: OnEvent = ignore) -> ProbeReport:
    """Evaluates the frozen features of any model that can be opened.

    Raises:
        UsageError: A layer or a class token that the model does not have, or no `--train`.
        DataError: No labels, no class in common, or too many bad images.
    """
    model, checkpoint = open_backbone(config.model, config.size, downloads(on_event), seed=config.seed)
    checkpoint = checkpoint.normalized(config.normalization)
    config = with_models_intensity(config, checkpoint.settings)
    compute = join_compute(config, checkpoint.compute(config.device, config.precision))
    world, on_event = compute.world, compute.world.rank_zero_only(on_event)
    warn(checkpoint.warnings, on_event)
    layers, form = chosen_layers(config.layer, model.architecture.depth), form_of(config)
    if "class" in form.pool and not has_class_token(model):
        reader = f"--pool {config.pool}" if config.pool else f"--probe-form {config.probe_form}"
        raise UsageError(f"'{config.model}' has no class token, which {reader} reads.", "Give --pool mean.")
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
        pool=form.pool,
        norm=form.norm,
        named=config.model,
        cache=Path(config.feature_cache) if config.feature_cache else cache_folder() / "features",
        batch_size=config.batch_size,
        workers=choose_workers(config.workers, compute.device, world),
        on_event=on_event,
    )
    sources = _Sources(train, val, named)
    learned = _learn(config, form, extractor, sources, on_event)
    val_features = extractor.features(val, "measured image")
    return finish_on_rank_zero(
        lambda: _report(_Protocol(config, form, layers, compute.device, on_event), sources, learned, val_features),
        world,
    )


@dataclass(frozen=True)
class _Sources:
    """Training and validation images; `named` is the name of the former, for the report."""

    train: Source
    val: Source
    named: str


@dataclass(frozen=True)
class _Learned:
    """What the training images gave, on rank 0.

    Attributes:
        features: Of the center crops; None if the heads are trained on augmented images.
        bad: The unreadable images.
        standard: Moments of `--standardize`; empty without.
        probes: Heads that are trained already.
    """

    features: Features | None
    bad: Sequence[Bad]
    standard: Moments = field(default_factory=dict)
    probes: LinearProbes | None = None


def _learn(
    config: EvalConfig, form: ProbeForm, extractor: FeatureExtractor, sources: _Sources, on_event: OnEvent
) -> _Learned:
    """Computes the features of the training images or, with augmentation, trains the heads; on all ranks."""
    train, layers = sources.train, extractor.layers
    augmented = config.protocol == "linear" and form.augment
    features = extractor.features(train, "training image") if config.standardize or not augmented else None
    standard: Moments = {}
    if features is not None and config.standardize:
        standard = {layer: features.moments(layer) for layer in layers}
    if not augmented:
        return _Learned(features, features.bad if features is not None else [], standard)
    on_event(Note(f"linear: {len(train):,} training images, in new views in each of {form.epochs} epochs"))

    def check(bad: Sequence[Bad]) -> None:
        warn_bad(config, bad, len(train), on_event, "training image")

    probes, bad = train_augmented(extractor, train, training_of(config, form), standard, check)
    return _Learned(None, bad, standard, probes)


def training_of(config: EvalConfig, form: ProbeForm) -> ProbeTraining:
    return ProbeTraining(
        epochs=form.epochs,
        lr=config.probe_lr,
        batch_size=config.probe_batch_size,
        seed=config.seed,
        weight_std=form.weight_std,
        decays_bias=form.decays_bias,
        anneals_by_epoch=form.anneals_by_epoch,
    )


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


@dataclass(frozen=True)
class _Protocol:
    """How features are evaluated, on rank 0."""

    config: EvalConfig
    form: ProbeForm
    layers: Sequence[int]
    device: torch.device
    on_event: OnEvent


def _report(how: _Protocol, sources: _Sources, learned: _Learned, val_features: Features | None) -> ProbeReport:
    """Evaluates the features of both sources on rank 0, which alone has them."""
    assert val_features is not None
    config, layers, linear = how.config, how.layers, how.config.protocol == "linear"
    is_sweep = config.layer == "sweep"
    if learned.probes is None:
        warn_bad(config, learned.bad, len(sources.train), how.on_event, "training image")
    warn_bad(config, val_features.bad, len(sources.val), how.on_event, "measured image")
    labels = _readable_labels(sources.train, learned)
    targets = _columns(sources, labels, val_features, how.on_event)
    counts = _measure(how, sources, learned, replace(val_features, standard=learned.standard), targets)
    best = max(layers, key=lambda layer: (counts[layer].right1, counts[layer].right5))
    per_layer = [{"layer": n, "top1": counts[n].top1, "top5": counts[n].top5} for n in layers]
    return ProbeReport(
        model=config.model,
        data=" ".join(config.data),
        task="classify",
        protocol=config.protocol,
        images=counts[best].images,
        bad=len(val_features.bad),
        top1=counts[best].top1,
        top5=counts[best].top5,
        top1_interval=None if is_sweep else share_interval(counts[best].top1, counts[best].images),
        baseline_accuracy=commonest_share(val_features.readable_labels.tolist()),
        layer=best,
        k=None if linear else min(config.k, len(labels)),
        form=config.probe_form if linear else None,
        pool=how.form.pool,
        normed=how.form.norm,
        standardized=config.standardize,
        augmented=learned.probes is not None,
        train=sources.named,
        train_images=len(labels),
        classes=len(np.unique(labels)),
        layers=per_layer if is_sweep else None,
    )


def _readable_labels(train: Source, learned: _Learned) -> np.ndarray:
    """Returns the labels of the readable training images, (n,) int64."""
    if learned.features is not None:
        return learned.features.readable_labels
    unreadable = {index for index, _, _ in learned.bad}
    return np.array([train.label(i) for i in range(len(train)) if i not in unreadable], dtype=np.int64)


def _columns(sources: _Sources, labels: np.ndarray, val_features: Features, on_event: OnEvent) -> torch.Tensor:
    """Returns (n,) int64: the training label of each readable image of `val`, by class name; -1 if there is none.

    Args:
        labels: (n,) of the readable training images.

    Raises:
        DataError: No class in common.
    """
    train, val = sources.train, sources.val
    names = train.classes or ()
    present = {names[label] for label in np.unique(labels)}
    column = {name: number for number, name in enumerate(names) if name in present}
    of_val = np.array([column.get(name, -1) for name in val.classes or ()], dtype=np.int64)
    targets = of_val[val_features.readable_labels]
    lost = (targets < 0).sum()
    if lost == len(targets):
        first = (val.classes or ("none",))[0]
        raise DataError(
            f"No class of '{val.name}' (first: '{first}') is one of the {len(present)} in --train '{train.name}'.",
            "Name the class folders alike.",
        )
    if lost:
        missing = sorted({(val.classes or ())[label] for label in val_features.readable_labels[targets < 0]})
        on_event(
            Warned(
                f"{len(missing):,} classes of DATA have no image in --train (first: '{missing[0]}'): their {lost:,} "
                "images count as wrong."
            )
        )
    return torch.from_numpy(targets)


def _measure(
    how: _Protocol, sources: _Sources, learned: _Learned, val: Features, targets: torch.Tensor
) -> dict[int, Counts]:
    """Returns counts by layer."""
    config, layers, device, on_event = how.config, how.layers, how.device, how.on_event
    classes = len(sources.train.classes or ())
    if learned.probes is not None:
        return probe_counts(learned.probes, val, layers, targets, device)
    assert learned.features is not None
    train = replace(learned.features, standard=learned.standard)
    on_event(Note(f"{config.protocol}: {len(train):,} training images, {len(val):,} to measure on"))
    if config.protocol == "linear":
        probes = train_probes(train, layers, classes, training_of(config, how.form), device, on_event)
        return probe_counts(probes, val, layers, targets, device)
    if config.k > len(train):
        on_event(Warned(f"--k is {config.k}, but there are {len(train):,} training images: all of them vote."))
    vote = Vote(config.k, classes, config.temperature, device)
    return {layer: knn_counts(train, val, targets, layer, vote) for layer in layers}
