"""`beit pretrain`: masked image modeling (paper section 2.3, Algorithm 1).

visual_tokens = tokenizer.encode(token_images)          (B, N) int64 in [0, V)
logits = model(images, mask)                            (M, V), hidden patches only
loss = cross_entropy(logits, visual_tokens[mask])
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from beitcli.config.intensity import parse_intensity
from beitcli.config.normalization import NORMALIZATIONS
from beitcli.config.pretrain import PretrainConfig
from beitcli.config.recipe_files import read_recipe
from beitcli.config.train_tokenizer import TrainTokenizerConfig
from beitcli.data.caches.token_cache import CachedTokenTransform, TokenCache
from beitcli.data.sources.base import Source
from beitcli.engine.events import Note, OnEvent, Warned, ignore
from beitcli.engine.mim.plan_rows import forward_flops_of, plan_rows
from beitcli.engine.mim.task import PretrainExtras, PretrainTask, residual_dtype, token_size, transform_and_masking
from beitcli.engine.mim.token_caching import open_token_cache
from beitcli.engine.own_tokenizer import own_tokenizer_config, own_tokenizer_job, trained_own_tokenizer
from beitcli.engine.probing.online_knn import OnlineProbe
from beitcli.engine.tokenizer_loading import prepared, token_precision, tokenizer_for
from beitcli.engine.trainer.arithmetic import with_step_arithmetic
from beitcli.engine.trainer.data import HeldOut, hold_out, measured_text, open_images
from beitcli.engine.trainer.dry_run import dry_run
from beitcli.engine.trainer.job import Finished, Job
from beitcli.engine.trainer.metric_log import check_writers
from beitcli.engine.trainer.model_card import pretraining_card
from beitcli.engine.trainer.preflight.check import Preflight
from beitcli.engine.trainer.preflight.findings import Finding
from beitcli.engine.trainer.preflight.given_tokenizer import given_tokenizer_findings
from beitcli.engine.trainer.preflight.schedule import mask_findings, own_tokenizer_findings
from beitcli.engine.trainer.run_job import run_job
from beitcli.engine.trainer.setup import make_plan, planned_steps
from beitcli.engine.trainer.task import RunSession
from beitcli.errors import StorageError, UsageError
from beitcli.masking import make_masking, num_masked_from
from beitcli.masking.base import MaskGenerator
from beitcli.runtime.compute.compile import compiles
from beitcli.runtime.compute.device import Compute, join_compute
from beitcli.runtime.storage.checkpoint import newest_checkpoint
from beitcli.runtime.storage.run_dir import RunFolder
from beitcli.tokenizers.base import Tokenizer
from beitcli.tokenizers.dalle_cache import DOWNLOAD, is_cached
from beitcli.tokenizers.kind import untrained

_FEW_IMAGES = 64


@dataclass(frozen=True)
class PretrainReport:
    """Report of a pretrained model, with metrics of the `measured_on` images; those of another target are None.

    Attributes:
        loss: On the predicted patches: cross entropy in nats, or mean squared error of normalized pixels. With patch
            aggregation it is a sum: `further` holds `masked_loss`, to compare with other runs and the baselines, and
            `aggregated_loss`.
        baseline_loss: For pixels: that of always predicting each channel's mean on the same patches.
        masked_accuracy: On hidden patches; on all patches without masking.
        baseline_accuracy: That of always predicting the most frequent token on the same patches.
        unigram_entropy: Of those tokens, in nats: the loss of a prediction that knows their frequencies alone.
        seconds: Spent on training.
        measuring_seconds: Spent on the images measured on, beside `seconds`.
        tokenizer_seconds: Spent on the tokenizer that the run trained for itself before, measured too; 0 without one.
        total_seconds: Of the whole run, all attempts together: the sum of its parts.
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
    measuring_seconds: float
    tokenizer_seconds: float
    total_seconds: float
    further: dict[str, float] = field(default_factory=dict)


def pretrain(config: PretrainConfig, on_event: OnEvent = ignore) -> PretrainReport | dict[str, Any]:
    """Pretrains a BEiT and returns the report; with `dry_run`, returns the plan as a dict instead."""
    masking = _masking(config)
    compute = join_compute(config)
    residual_dtype(config, compute)
    world, on_event = compute.world, compute.world.rank_zero_only(on_event)
    compute = with_step_arithmetic(
        config, compute, config.architecture, compiled=compiles(config.compile, compute.device), on_event=on_event
    )
    has_tokens, trains_own = config.target == "tokens", config.tokenizer == "own"
    own = own_tokenizer_config(config) if has_tokens and trains_own else None
    if own is not None and own.batch_size < world.size:
        raise UsageError(
            f"The tokenizer's batches of {own.batch_size:,} images leave some of {world.size} processes without one.",
            "Train it first: beit train-tokenizer DATA; then pass --tokenizer RUN.",
        )
    check_writers(config, world)
    if config.recipe == "base" and not config.resume:
        on_event(Note(_what_base_takes(config)))
    source = open_images(config, labelled=False, size=max(config.image_size), on_event=on_event, world=world)
    held = hold_out(source, config.holdout, config.seed, world)
    begun = _PretrainSetup(config, masking, source, held, compute, on_event)
    begun = replace(begun, findings=_preflight(begun, own))
    # an unusable one is reported before anything is written
    given = _given_tokenizer(config, compute, on_event) if has_tokens and not trains_own else None
    probe = None if config.dry_run else _probe(config, compute, on_event)

    def prepare(session: RunSession | None) -> Job[PretrainReport]:
        if session is None:
            return _dry_run_job(begun, given, own)
        tokenizer = given
        if own is not None:
            trained = trained_own_tokenizer(config, own, source, session, compute, on_event)
            tokenizer = _prepared(config, trained, compute, on_event)
        if tokenizer is not None:
            world.run_on_rank_zero(partial(_check_tokenizer, config, tokenizer, session.run, on_event))
        return _job(begun, tokenizer, _token_cache(begun, tokenizer), probe)

    return run_job(config, compute, on_event, prepare)


@dataclass(frozen=True)
class _PretrainSetup:
    """State of a job before its tokenizer is available.

    Attributes:
        masking: None without masking.
        source: All images.
        held: The same, divided into those to train on and those to measure on.
        findings: Those of the preflight.
    """

    config: PretrainConfig
    masking: MaskGenerator | None
    source: Source
    held: HeldOut
    compute: Compute
    on_event: OnEvent
    findings: list[dict[str, Any]] = field(default_factory=list)


def _what_base_takes(config: PretrainConfig) -> str:
    """Returns a line on what the default recipe asks for, before anything is downloaded, and on a smaller start."""
    length = f"{config.steps:,} steps" if config.steps else f"{config.epochs:g} epochs"
    tokenizer = ""
    if config.target == "tokens" and config.tokenizer == "dall-e":
        tokenizer = f", DALL-E's tokenizer ({'in the cache' if is_cached() else DOWNLOAD})"
    small = read_recipe("pretrain", "small")
    return (
        f"Recipe base: BEiT-{config.model}, {' x '.join(map(str, config.image_size))} pixels, {length} in batches "
        f"of {config.batch_size:,}{tokenizer}: days on several GPUs, for data like ImageNet. A smaller start: "
        f"--recipe small ({small['image_size']} x {small['image_size']} pixels, {small['epochs']} epochs, a tokenizer "
        "of its own), or --recipe tiny for minutes."
    )


def _preflight(begun: _PretrainSetup, own: TrainTokenizerConfig | None) -> list[dict[str, Any]]:
    config, held = begun.config, begun.held
    others: list[Finding] = []
    if own is not None and len(held.training):
        images = len(held.training)
        others += own_tokenizer_findings(images, own.batch_size, planned_steps(own, images))
    if own is None and config.target == "tokens":
        others += given_tokenizer_findings(config.tokenizer)
    if begun.masking is not None and config.masking == "blockwise":
        others += mask_findings(config.architecture.grid, begun.masking.num_masked, config.min_block)
    return Preflight(
        config=config,
        training=held.training,
        measured=held.measured,
        is_apart=held.is_apart,
        size=min(config.image_size),
        from_scratch=True,
        others=others,
    ).run(begun.compute.world, begun.on_event)


def _job(
    begun: _PretrainSetup,
    tokenizer: Tokenizer | None,
    cache: TokenCache | None = None,
    probe: OnlineProbe | None = None,
) -> Job[PretrainReport]:
    config, held, compute, on_event = begun.config, begun.held, begun.compute, begun.on_event
    plan = make_plan(config, held.training)
    extras = PretrainExtras(cache, probe, on_event)
    task = PretrainTask(config, plan, tokenizer, begun.masking, held.measured, compute, extras)
    transform, masks = transform_and_masking(config, tokenizer, begun.masking)

    def report(finished: Finished) -> PretrainReport:
        metrics = finished.metrics
        optional = ("baseline_loss", "masked_accuracy", "baseline_accuracy", "unigram_entropy")
        return finished.report(
            PretrainReport,
            target=config.target,
            measured_on=measured_text(held.name, len(task.left_out)),
            **{name: metrics.get(name) for name in optional},
        )

    return Job(
        title="Pretraining",
        config=config,
        compute=compute,
        on_event=on_event,
        data=held,
        transform=transform if cache is None else CachedTokenTransform(transform, cache),
        masking=masks,
        plan=plan,
        task=task,
        rows=plan_rows(task, plan),
        report=report,
        warnings=lambda report: _warnings(report, len(held.measured)),
        card=partial(_card, config, tokenizer),
        flops=3 * forward_flops_of(task),
    )


def _dry_run_job(
    begun: _PretrainSetup, given: Tokenizer | None, own: TrainTokenizerConfig | None
) -> Job[PretrainReport]:
    """Defines the job of a dry run. An own tokenizer gets a dry run first, and an untrained one stands in for it."""
    if own is None:
        return replace(_job(begun, given), document={"tokenizer": None, "preflight": begun.findings})
    before = dry_run(own_tokenizer_job(own, begun.source, begun.compute, begun.on_event))
    model = untrained(own).requires_grad_(False).eval().to(begun.compute.device)
    job = _job(begun, Tokenizer("own", model, own.size, ""))
    return replace(
        job, seconds_before=before["estimated_seconds"], document={"tokenizer": before, "preflight": begun.findings}
    )


def _card(config: PretrainConfig, tokenizer: Tokenizer | None, report: PretrainReport, hardware: str) -> str:
    return pretraining_card(config, report, tokenizer.reference if tokenizer else None, hardware)


def _probe(config: PretrainConfig, compute: Compute, on_event: OnEvent) -> OnlineProbe | None:
    if config.probe is None:
        return None
    normalization, intensity = NORMALIZATIONS[config.normalization], parse_intensity(config.intensity_range)
    return OnlineProbe(config.probe, config.image_size, normalization, config.seed, compute, on_event, intensity)


def _given_tokenizer(config: PretrainConfig, compute: Compute, on_event: OnEvent) -> Tokenizer:
    """Opens the tokenizer of `--tokenizer`; rank 0 downloads it if necessary."""
    tokenizer = compute.world.rank_zero_first(lambda: tokenizer_for(config.tokenizer, compute.device, on_event))
    learned, here = parse_intensity(tokenizer.intensity_range), parse_intensity(config.intensity_range)
    if learned != here:
        on_event(Warned(f"The tokenizer learned with --intensity-range {learned}, and this run has {here}."))
    return _prepared(config, tokenizer, compute, on_event)


def _prepared(config: PretrainConfig, tokenizer: Tokenizer, compute: Compute, on_event: OnEvent) -> Tokenizer:
    """Sets `--token-precision`; compiles the tokenizer if the model is compiled and the precision is not fp32."""
    size = token_size(config, tokenizer) if compiles(config.compile, compute.device) else None
    return prepared(tokenizer, token_precision(config.token_precision, compute.device), size, on_event)


def _token_cache(begun: _PretrainSetup, tokenizer: Tokenizer | None) -> TokenCache | None:
    """Opens the cache of `--token-cache`; None without it or without a tokenizer."""
    config, folder = begun.config, begun.config.token_cache
    if folder is None or tokenizer is None:
        return None
    transform, _ = transform_and_masking(config, tokenizer, begun.masking)
    grid, device = config.architecture.grid, begun.compute.device.type
    cache = begun.compute.world.rank_zero_first(
        lambda: open_token_cache(folder, tokenizer, begun.source, transform, grid, device)
    )
    begun.on_event(Note(f"Tokens are kept in {cache.folder}"))
    return cache


def _masking(config: PretrainConfig) -> MaskGenerator | None:
    if not config.mask:
        return None
    grid = config.architecture.grid
    return make_masking(config.masking, grid, num_masked_from(config.ratio, config.num_masked, grid), config.min_block)


def _warnings(report: PretrainReport, measured: int) -> Iterator[str]:
    """Warns if few images were measured."""
    if measured < _FEW_IMAGES:
        yield f"The metrics rest on {report.measured_on}: too few to compare runs by."


def _check_tokenizer(config: PretrainConfig, tokenizer: Tokenizer, run: RunFolder, on_event: OnEvent) -> None:
    """Raises StorageError if the run was started with another tokenizer: its targets would change midway."""
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
