"""The tokenizer that `beit pretrain` trains for itself on the same images (`--tokenizer own`), into RUN/tokenizer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from beitcli.config.pretrain import PretrainConfig
from beitcli.config.resolve import resolve
from beitcli.config.train_tokenizer import TrainTokenizerConfig
from beitcli.data.sources.base import Source
from beitcli.engine.events import Note, OnEvent
from beitcli.engine.tokenizer_loading import tokenizer_for
from beitcli.engine.train_tokenizer import TrainTokenizerReport, token_pixels, tokenizer_job
from beitcli.engine.trainer.job import Job
from beitcli.engine.trainer.run_job import report_job, train_job
from beitcli.engine.trainer.setup import open_run
from beitcli.engine.trainer.task import RunSession
from beitcli.runtime.compute.device import Compute
from beitcli.runtime.storage.checkpoint import newest_checkpoint
from beitcli.tokenizers.base import Tokenizer
from beitcli.tokenizers.kind import check_teacher

_PART = " of the tokenizer, before pretraining"


def own_tokenizer_config(config: PretrainConfig) -> TrainTokenizerConfig:
    """Returns the settings of the recipe's tokenizer, on the same data, device and seed, for the grid's longer side.

    A run that is resumed keeps the settings that its tokenizer began with, whatever the recipe says by now.
    """
    begun = Path(config.out or "") / "tokenizer"
    flags: dict[str, Any] = {"out": str(begun), "resume": True}
    if not config.resume or not (begun / "config.toml").is_file():
        flags = {"recipe": config.tokenizer_recipe, "split": config.split, "limit": config.limit}
        flags["data"] = list(config.data)
    own = resolve(TrainTokenizerConfig, flags).config
    check_teacher(own)
    patches = max(config.architecture.grid)
    return replace(
        own,
        data=config.data,
        size=patches * token_pixels(own),
        device=config.device,
        workers=config.workers,
        seed=config.seed,
        max_bad=config.max_bad,
        intensity_range=config.intensity_range,
        pages=config.pages,
        log_to=config.log_to,
        previews=config.previews,
        measure_share=config.measure_share,
        steps=config.tokenizer_steps or own.steps,
    )


def own_tokenizer_job(
    own: TrainTokenizerConfig, source: Source, compute: Compute, on_event: OnEvent
) -> Job[TrainTokenizerReport]:
    """Defines its training, in fp32 whatever the run's precision and the arithmetic of its steps."""
    return tokenizer_job(own, source, replace(compute, precision="fp32", steps=None), on_event)


def trained_own_tokenizer(
    config: PretrainConfig,
    own: TrainTokenizerConfig,
    source: Source,
    session: RunSession,
    compute: Compute,
    on_event: OnEvent,
) -> Tokenizer:
    """Trains a tokenizer into RUN/tokenizer, unless a finished one is there, and opens it on all ranks."""
    folder, world = session.run.path / "tokenizer", compute.world
    inner = open_run(replace(own, out=str(folder), resume=folder.exists()), world)
    if world.run_on_rank_zero(lambda: not (folder / "README.md").exists() or newest_checkpoint(folder) is None):
        first = f"No --tokenizer is given: training one on this data first, {own.steps:,} steps, into {folder}"
        shorter = "" if config.tokenizer_steps else " For a quick try: --tokenizer-steps 50."
        on_event(Note(f"{first}.{shorter}"))
        job = own_tokenizer_job(own, source, compute, on_event)
        report_job(job, train_job(job, replace(session, run=inner, config=own, part=_PART)))
    return world.rank_zero_first(lambda: tokenizer_for(str(folder), compute.device, on_event))
