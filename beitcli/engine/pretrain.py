"""`beit pretrain`: masked image modeling (paper section 2.3, Algorithm 1).

visual_tokens = tokenizer.encode(token_images)          (B, N) int64 in [0, V)
logits = model(images, mask)                            (M, V), hidden patches only
loss = cross_entropy(logits, visual_tokens[mask])
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from beitcli.config.resolve import resolve
from beitcli.config.training import PretrainConfig, TrainTokenizerConfig
from beitcli.data.loader import Batch
from beitcli.data.sources.base import Source
from beitcli.engine.cards import pretraining_card
from beitcli.engine.events import Note, OnEvent, Planned, Warned, ignore, warn_of_damage
from beitcli.engine.masked_image_modeling import PretrainTask, token_size, views_and_masks
from beitcli.engine.preparation import (
    checkpoint_bytes,
    describe_plan,
    hold_out,
    make_plan,
    open_images,
    open_run,
    rehearse,
    stream,
)
from beitcli.engine.train_tokenizer import rehearse_tokenizer, tokenizer_architecture, train_tokenizer_on
from beitcli.engine.training import Plan, train
from beitcli.errors import StorageError
from beitcli.masking import MaskGenerator, make_masking, num_masked_from
from beitcli.models.beit import forward_flops
from beitcli.runtime.checkpoint import newest_checkpoint
from beitcli.runtime.device import Compute, choose_compute, describe
from beitcli.runtime.run_folder import RunFolder
from beitcli.runtime.signals import StopRequest
from beitcli.tokenizers import Tokenizer, open_tokenizer
from beitcli.tokenizers.dvae import DiscreteVAE


@dataclass(frozen=True)
class PretrainReport:
    """What was made. Loss and accuracies are of hidden patches of the `measured_on` images."""

    run: str
    checkpoint: str
    step: int
    epoch: float
    images_seen: int
    loss: float
    masked_accuracy: float
    baseline_accuracy: float
    unigram_entropy: float
    measured_on: str
    images_per_second: float
    seconds: float


def pretrain(config: PretrainConfig, on_event: OnEvent = ignore) -> PretrainReport | dict[str, Any]:
    """Pretrains a BEiT; with `dry_run`, a dict of the plan instead."""
    grid = config.architecture.grid
    masking = make_masking(
        config.masking, grid, num_masked_from(config.ratio, config.num_masked, grid), config.min_block
    )
    compute = choose_compute(config.device, config.precision)
    if config.tokenizer == "own":
        _own_tokenizer_config(config)
    else:
        open_tokenizer(config.tokenizer)  # a wrong one is refused before anything is made
    source = open_images(config, labelled=False, size=config.image_size, on_event=on_event)
    if config.dry_run:
        return _rehearse(config, masking, source, compute, on_event)
    run = open_run(config)
    with StopRequest() as stop:
        command = f"Go on with: beit pretrain --out {run.path} --resume"
        tokenizer = _tokenizer(config, source, run, compute, on_event, stop, command)
        held = hold_out(source, config.holdout, config.seed)
        plan = make_plan(config, held.training)
        task = PretrainTask(config, plan, tokenizer, masking, held.measured, compute)
        on_event(Planned("Pretraining", plan_rows(task, plan)))
        view, masks = views_and_masks(config, tokenizer, masking)
        batches = partial(stream, config, held.training, view, compute, masking=masks)
        state = train(task, plan, batches, run, compute, on_event, stop, command, held.bad)
    figures = state.figures or {}
    report = PretrainReport(
        run=str(run.path),
        checkpoint=str(run.checkpoints / f"step-{state.step:07d}"),
        step=state.step,
        epoch=plan.epoch(state.step),
        images_seen=state.step * plan.batch_size,
        loss=figures["loss"],
        masked_accuracy=figures["masked_accuracy"],
        baseline_accuracy=figures["baseline_accuracy"],
        unigram_entropy=figures["unigram_entropy"],
        measured_on=held.name,
        images_per_second=state.images_per_second,
        seconds=state.seconds,
    )
    run.write_text("README.md", pretraining_card(config, report, tokenizer.reference, describe(compute)))
    return report


def _own_tokenizer_config(config: PretrainConfig) -> TrainTokenizerConfig:
    """The recipe's tokenizer, on the same data, device and seed."""
    flags = {"recipe": config.tokenizer_recipe, "data": list(config.data), "split": config.split, "limit": config.limit}
    own = resolve(TrainTokenizerConfig, flags).config
    patches = config.architecture.grid[0]
    return replace(
        own,
        size=patches * 2 ** (own.groups - 1),
        device=config.device,
        workers=config.workers,
        seed=config.seed,
        max_bad=config.max_bad,
        steps=config.tokenizer_steps or own.steps,
    )


def _tokenizer(
    config: PretrainConfig,
    source: Source,
    run: RunFolder,
    compute: Compute,
    on_event: OnEvent,
    stop: StopRequest,
    resume_command: str,
) -> Tokenizer:
    """The given tokenizer, or one trained on the same images into RUN/tokenizer."""
    if config.tokenizer != "own":
        tokenizer = _same_as_before(run, open_tokenizer(config.tokenizer, compute.device))
        warn_of_damage(tokenizer.warnings, on_event)
        side = token_size(config, tokenizer)
        if side != tokenizer.size:
            on_event(Warned(f"The tokenizer learned from {tokenizer.size}-pixel images; this grid gives it {side}."))
        return tokenizer
    folder = run.path / "tokenizer"
    own = replace(_own_tokenizer_config(config), out=str(folder), resume=folder.exists())
    inner = open_run(own)
    newest = newest_checkpoint(folder)
    if not (folder / "README.md").exists() or newest is None:
        on_event(Note(f"No --tokenizer is given: training one on this data first, into {folder}"))
        fp32 = Compute(compute.device, "fp32")
        train_tokenizer_on(own, source, inner, fp32, on_event, stop, resume_command)
    return _same_as_before(run, open_tokenizer(str(folder), compute.device))


def _same_as_before(run: RunFolder, tokenizer: Tokenizer) -> Tokenizer:
    """Refuses a tokenizer that is not the one the run began with: its targets would change midway."""
    newest = newest_checkpoint(run.path)
    if newest is not None and newest.config["tokenizer"]["sha256"] != tokenizer.sha256:
        raise StorageError(
            f"Tokenizer '{tokenizer.reference}' is not the one that run '{run.path}' was trained with.",
            "Put the former one back, or start a new run with another --out.",
        )
    return tokenizer


def plan_rows(task: PretrainTask, plan: Plan) -> dict[str, str]:
    architecture, masking = task.model.architecture, task.masking
    parameters = sum(parameter.numel() for parameter in task.model.parameters())
    predicted = architecture.num_patches if task.config.predict == "all" else masking.num_masked
    flops = forward_flops(architecture, predicted, task.tokenizer.vocab_size)
    side = architecture.image_size[0]
    return {
        "model": f"BEiT {task.config.model}, {parameters:,} parameters, {architecture.positions} positions",
        "images of": f"{side} x {side} pixels, {architecture.grid[0]} x {architecture.grid[1]} patches",
        "hidden": f"{masking.num_masked} of {architecture.num_patches} patches, {task.config.masking}",
        "tokenizer": f"{task.tokenizer.reference}, {task.tokenizer.vocab_size} codes",
        "compute": f"{flops / 1e9:.3g} GFLOP an image forward, {3 * flops / 1e9:.3g} forward and backward",
        **describe_plan(plan, task.config),
        "checkpoint size": f"{checkpoint_bytes(task) / 1e6:.1f} MB",
        "hardware": describe(task.compute),
    }


def _rehearse(
    config: PretrainConfig, masking: MaskGenerator, source: Source, compute: Compute, on_event: OnEvent
) -> dict[str, Any]:
    before: dict[str, Any] = {}
    if config.tokenizer == "own":
        own = _own_tokenizer_config(config)
        before = rehearse_tokenizer(own, source, compute, on_event)
        untrained = DiscreteVAE(tokenizer_architecture(own)).requires_grad_(False).eval().to(compute.device)
        tokenizer = Tokenizer("own", untrained, own.size, "")
    else:
        tokenizer = open_tokenizer(config.tokenizer, compute.device)
    held = hold_out(source, config.holdout, config.seed)
    plan = make_plan(config, held.training)
    task = PretrainTask(config, plan, tokenizer, masking, held.measured, compute)
    view, masks = views_and_masks(config, tokenizer, masking)

    def batches_of(size: int, steps: int) -> Iterator[Batch]:
        return stream(config, held.training, view, compute, 0, steps, masking=masks, batch_size=size)

    document = rehearse(task, plan, config, plan_rows(task, plan), batches_of, compute, on_event)
    document["estimated_seconds"] += before.get("estimated_seconds", 0.0)
    return document | {"tokenizer": before or None}
