"""`beit pretrain`: masked image modeling (paper section 2.3, Algorithm 1).

visual_tokens = tokenizer.encode(token_images)          (B, N) int64 in [0, V)
logits = model(images, mask)                            (M, V), hidden patches only
loss = cross_entropy(logits, visual_tokens[mask])
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from beitcli.config.normalization import NORMALIZATIONS
from beitcli.config.resolve import resolve
from beitcli.config.training import PretrainConfig, TrainTokenizerConfig
from beitcli.data.loader import Batch
from beitcli.data.sources.base import Source
from beitcli.data.token_cache import CachedView
from beitcli.data.views import TwoSizes
from beitcli.engine.cached_tokens import CachedTokens, open_token_cache
from beitcli.engine.cards import TARGETS, pretraining_card
from beitcli.engine.events import Note, OnEvent, Planned, Warned, ignore
from beitcli.engine.masked_image_modeling import PretrainTask, token_size, views_and_masks
from beitcli.engine.online_probe import OnlineProbe
from beitcli.engine.opened_tokenizer import prepared, token_precision, tokenizer_for
from beitcli.engine.preparation import (
    checkpoint_bytes,
    describe_plan,
    hold_out,
    make_plan,
    open_images,
    open_run,
    rehearse,
    resume_command,
    stream,
)
from beitcli.engine.targets import TokenTarget
from beitcli.engine.train_tokenizer import rehearse_tokenizer, tokenizer_architecture, train_tokenizer_on
from beitcli.engine.training import Plan, train
from beitcli.errors import StorageError, UsageError
from beitcli.masking import MaskGenerator, make_masking, num_masked_from
from beitcli.models.beit import forward_flops
from beitcli.runtime.checkpoint import newest_checkpoint
from beitcli.runtime.compiled import compiles
from beitcli.runtime.device import Compute, describe, join_compute
from beitcli.runtime.metric_text import further_metrics
from beitcli.runtime.run_folder import RunFolder
from beitcli.runtime.signals import StopRequest
from beitcli.tokenizers import Tokenizer
from beitcli.tokenizers.dvae import DiscreteVAE

_FEW_IMAGES = 64


@dataclass(frozen=True)
class PretrainReport:
    """What was made, and figures of the `measured_on` images; those of another target are None.

    Attributes:
        loss: Of the predicted patches: cross entropy in nats, or mean squared error of normalised pixels.
        baseline_loss: For pixels: of always guessing each channel's mean on the same patches.
        masked_accuracy: Of hidden patches; of all where none are hidden.
        baseline_accuracy: Of always guessing the commonest token on the same patches.
        unigram_entropy: Of those tokens, in nats: the loss of the best guess that ignores the image.
        further: Metrics that have no field of their own.
    """

    run: str
    checkpoint: str
    step: int
    epoch: float
    images_seen: int
    target: str
    loss: float
    baseline_loss: float | None
    masked_accuracy: float | None
    baseline_accuracy: float | None
    unigram_entropy: float | None
    measured_on: str
    images_per_second: float
    seconds: float
    further: dict[str, float] = field(default_factory=dict)


def pretrain(config: PretrainConfig, on_event: OnEvent = ignore) -> PretrainReport | dict[str, Any]:
    """Pretrains a BEiT; with `dry_run`, a dict of the plan instead."""
    masking = _masking(config)
    compute = join_compute(config)
    world, on_event = compute.world, compute.world.spoken(on_event)
    has_tokens, trains_own = config.target == "tokens", config.tokenizer == "own"
    own = _own_tokenizer_config(config) if has_tokens and trains_own else None
    if own is not None and own.batch_size < world.size:
        raise UsageError(
            f"The tokenizer's batches of {own.batch_size} images leave some of {world.size} processes without one.",
            "Train it first: beit train-tokenizer DATA; then pass --tokenizer RUN.",
        )
    source = open_images(config, labelled=False, size=max(config.image_size), on_event=on_event, world=world)
    # a wrong one is refused before anything is made
    given = _given_tokenizer(config, compute, on_event) if has_tokens and not trains_own else None
    if config.dry_run:
        return _rehearse(config, masking, source, given, own, compute, on_event)
    probe = _probe(config, compute, on_event)
    run = open_run(config, world)
    with StopRequest() as stop:
        command = resume_command(config, run.path)
        tokenizer = given
        if own is not None:
            trained = _trained_tokenizer(own, source, run, compute, on_event, stop, command)
            tokenizer = _prepared(config, trained, compute, on_event)
        if tokenizer is not None:
            world.first(partial(_check_tokenizer, config, tokenizer, run, on_event))
        held = hold_out(source, config.holdout, config.seed, world)
        plan = make_plan(config, held.training)
        task = PretrainTask(config, plan, tokenizer, masking, held.measured, compute)
        task.probe = probe
        view, masks = views_and_masks(config, tokenizer, masking)
        planned = Planned("Pretraining", plan_rows(task, plan))
        with _token_cache(config, task, source, view, on_event) as task.known:
            seen = CachedView(view, task.known.cache) if task.known else view
            batches = partial(stream, config, held.training, seen, compute, masking=masks)
            path_of = held.training.path
            state = train(task, plan, batches, run, compute, on_event, stop, command, planned, held.bad, path_of)
    figures = state.figures or {}
    report = PretrainReport(
        run=str(run.path),
        checkpoint=str(run.checkpoints / f"step-{state.step:07d}"),
        step=state.step,
        epoch=plan.epoch(state.step),
        images_seen=state.step * plan.batch_size,
        target=config.target,
        loss=figures["loss"],
        baseline_loss=figures.get("baseline_loss"),
        masked_accuracy=figures.get("masked_accuracy"),
        baseline_accuracy=figures.get("baseline_accuracy"),
        unigram_entropy=figures.get("unigram_entropy"),
        measured_on=held.name,
        images_per_second=state.images_per_second,
        seconds=state.seconds,
        further=further_metrics(figures, PretrainReport.__annotations__),
    )
    _warn_of_figures(report, len(held.measured), on_event)
    card = pretraining_card(config, report, tokenizer.reference if tokenizer else None, describe(compute))
    run.write_text("README.md", card)
    return report


def _probe(config: PretrainConfig, compute: Compute, on_event: OnEvent) -> OnlineProbe | None:
    if config.probe is None:
        return None
    return OnlineProbe(
        config.probe, config.image_size, NORMALIZATIONS[config.normalization], config.seed, compute, on_event
    )


def _given_tokenizer(config: PretrainConfig, compute: Compute, on_event: OnEvent) -> Tokenizer:
    """Downloaded by the first process, where it must be."""
    opened = compute.world.first_then_others(lambda: tokenizer_for(config.tokenizer, compute.device, on_event))
    return _prepared(config, opened, compute, on_event)


def _prepared(config: PretrainConfig, tokenizer: Tokenizer, compute: Compute, on_event: OnEvent) -> Tokenizer:
    """In `--token-precision`; compiled where the model is and it is not fp32."""
    size = token_size(config, tokenizer) if compiles(config.compile, compute.device) else None
    return prepared(tokenizer, token_precision(config.token_precision, compute.device), size, on_event)


@contextmanager
def _token_cache(
    config: PretrainConfig, task: PretrainTask, source: Source, view: TwoSizes, on_event: OnEvent
) -> Iterator[CachedTokens | None]:
    """What completes the task's batches from `--token-cache`, and keeps the last ones at the end; None without."""
    if config.token_cache is None or not isinstance(task.target, TokenTarget):
        yield None
        return
    tokenizer, grid = task.target.tokenizer, config.architecture.grid
    folder, device = config.token_cache, task.compute.device.type
    cache = task.compute.world.first_then_others(
        lambda: open_token_cache(folder, tokenizer, source, view, grid, device)
    )
    on_event(Note(f"Tokens are kept in {cache.folder}"))
    with closing(CachedTokens(cache, task.target.encode, task.plan.micro_batch, on_event)) as known:
        yield known


def _masking(config: PretrainConfig) -> MaskGenerator | None:
    if not config.mask:
        return None
    grid = config.architecture.grid
    return make_masking(config.masking, grid, num_masked_from(config.ratio, config.num_masked, grid), config.min_block)


def _warn_of_figures(report: PretrainReport, measured: int, on_event: OnEvent) -> None:
    """Says where a model knows no more than the data's frequencies, and where the figures rest on few images."""
    if report.baseline_loss is not None and report.loss >= report.baseline_loss:
        on_event(
            Warned(
                f"The loss, {report.loss:.4f}, is not below {report.baseline_loss:.4f}, that of always guessing the "
                "mean colour: the model has learned nothing of use yet. Train longer, or on more images."
            )
        )
    accuracy, baseline = report.masked_accuracy, report.baseline_accuracy
    if accuracy is not None and baseline is not None and accuracy <= baseline:
        on_event(
            Warned(
                f"The accuracy, {accuracy:.4f}, is not above {baseline:.4f}, that of always guessing the commonest "
                "token: the model has learned nothing of use yet. Train longer, or on more images."
            )
        )
    if measured < _FEW_IMAGES:
        on_event(Warned(f"The figures rest on {report.measured_on}: too few to compare runs by."))


def _own_tokenizer_config(config: PretrainConfig) -> TrainTokenizerConfig:
    """The recipe's tokenizer, on the same data, device and seed; its squares are as long as the grid's longer side."""
    flags = {"recipe": config.tokenizer_recipe, "data": list(config.data), "split": config.split, "limit": config.limit}
    own = resolve(TrainTokenizerConfig, flags).config
    patches = max(config.architecture.grid)
    return replace(
        own,
        size=patches * 2 ** (own.groups - 1),
        device=config.device,
        workers=config.workers,
        seed=config.seed,
        max_bad=config.max_bad,
        steps=config.tokenizer_steps or own.steps,
    )


def _trained_tokenizer(
    own: TrainTokenizerConfig,
    source: Source,
    run: RunFolder,
    compute: Compute,
    on_event: OnEvent,
    stop: StopRequest,
    resume_command: str,
) -> Tokenizer:
    """One trained on the same images into RUN/tokenizer, or found there."""
    folder = run.path / "tokenizer"
    world = compute.world
    inner = open_run(replace(own, out=str(folder), resume=folder.exists()), world)
    if world.first(lambda: not (folder / "README.md").exists() or newest_checkpoint(folder) is None):
        on_event(Note(f"No --tokenizer is given: training one on this data first, into {folder}"))
        fp32 = replace(compute, precision="fp32")
        train_tokenizer_on(own, source, inner, fp32, on_event, stop, resume_command)
    return world.first_then_others(lambda: tokenizer_for(str(folder), compute.device, on_event))


def _check_tokenizer(config: PretrainConfig, tokenizer: Tokenizer, run: RunFolder, on_event: OnEvent) -> None:
    """Refuses a tokenizer that is not the one the run began with: its targets would change midway."""
    newest = newest_checkpoint(run.path)
    if newest is not None and newest.config["tokenizer"]["sha256"] != tokenizer.sha256:
        raise StorageError(
            f"Tokenizer '{tokenizer.reference}' is not the one that run '{run.path}' was trained with.",
            "Put the former one back, or start a new run with another --out.",
        )
    height, width = token_size(config, tokenizer) or (0, 0)
    if max(height, width) != tokenizer.size:
        size = f"{height} x {width}"
        on_event(Warned(f"The tokenizer learned from {tokenizer.size}-pixel images; this grid gives it {size}."))


def _forward_flops(task: PretrainTask) -> float:
    """Of one image, head included."""
    architecture, hidden = task.model.architecture, task.masking.num_masked if task.masking else 0
    predicted = architecture.num_patches if task.config.predict == "all" else hidden
    return forward_flops(architecture, predicted, task.target.outputs)


def plan_rows(task: PretrainTask, plan: Plan) -> dict[str, str]:
    architecture, masking, tokenizer = task.model.architecture, task.masking, task.tokenizer
    parameters = sum(parameter.numel() for parameter in task.model.parameters())
    hidden = masking.num_masked if masking else 0
    flops = _forward_flops(task)
    height, width = architecture.image_size
    how = f", {task.config.masking}" if masking else ""
    return {
        "model": f"BEiT {task.config.model}, {parameters:,} parameters, {architecture.positions} positions",
        "images of": f"{height} x {width} pixels, {architecture.grid[0]} x {architecture.grid[1]} patches",
        "hidden": f"{hidden} of {architecture.num_patches} patches{how}",
        "target": f"{TARGETS[task.config.target]} of {task.config.predict} patches",
        "tokenizer": f"{tokenizer.reference}, {tokenizer.vocab_size} codes" if tokenizer else "none",
        "compute": f"{flops / 1e9:.3g} GFLOP an image forward, {3 * flops / 1e9:.3g} forward and backward",
        **describe_plan(plan, task.config),
        "checkpoint size": f"{checkpoint_bytes(task) / 1e6:.1f} MB",
        "hardware": describe(task.compute),
    }


def _rehearse(
    config: PretrainConfig,
    masking: MaskGenerator | None,
    source: Source,
    given: Tokenizer | None,
    own: TrainTokenizerConfig | None,
    compute: Compute,
    on_event: OnEvent,
) -> dict[str, Any]:
    before: dict[str, Any] = {}
    tokenizer = given
    if own is not None:
        before = rehearse_tokenizer(own, source, compute, on_event)
        untrained = DiscreteVAE(tokenizer_architecture(own)).requires_grad_(False).eval().to(compute.device)
        tokenizer = Tokenizer("own", untrained, own.size, "")
    held = hold_out(source, config.holdout, config.seed, compute.world)
    plan = make_plan(config, held.training)
    task = PretrainTask(config, plan, tokenizer, masking, held.measured, compute)
    view, masks = views_and_masks(config, tokenizer, masking)

    def batches_of(size: int, steps: int) -> Iterator[Batch]:
        return stream(config, held.training, view, compute, 0, steps, masking=masks, batch_size=size)

    first, flops = before.get("estimated_seconds", 0.0), 3 * _forward_flops(task)
    document = rehearse(task, plan, config, plan_rows(task, plan), batches_of, compute, on_event, first, flops)
    return document | {"tokenizer": before or None}
