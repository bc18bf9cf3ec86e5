"""How many images a second the loader gives, and what of the synthetic speed training from JPEGs keeps."""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from beitcli.data.caches.token_cache import CachedTokenTransform, TokenCache
from beitcli.data.loading.batch_datasets import StreamPart
from beitcli.data.loading.batches import Batch, training_batches
from beitcli.data.sources.base import Source
from beitcli.data.sources.open_data import open_data
from beitcli.data.transforms.pretraining import FastPretrainingTransform
from beitcli.engine.events import ignore
from beitcli.engine.mim.targets import TokenTarget
from beitcli.engine.mim.token_caching import CachingTokenizer
from beitcli.engine.tokenizer_loading import prepared, token_precision
from beitcli.engine.trainer.optimizer_step import optimizer_step
from beitcli.engine.trainer.prefetch import on_device
from beitcli.masking import keyed_mask
from beitcli.tokenizers.base import Tokenizer
from gpu_steps.context import Context
from gpu_steps.dalle import random_tokenizer
from gpu_steps.jpegs import make_jpegs
from gpu_steps.setups import Setup, make_setup, masking_of, pretrain_config, speed, vocabulary


class Data:
    """The JPEGs and how they are read.

    Attributes:
        steps: Batches that tokens are kept for.
    """

    def __init__(self, context: Context, source: Source) -> None:
        self.context, self.source = context, source
        self.config = pretrain_config(context, "base")
        self.batch_size = 4 if context.small else 256
        self.steps = 6 if context.small else 160
        self.transform = FastPretrainingTransform(
            seed=context.seed,
            image_size=self.config.image_size,
            token_size=tuple(8 * side for side in self.config.architecture.grid),  # type: ignore[arg-type]
            color_jitter=self.config.color_jitter or 0.4,
            min_crop=self.config.min_crop,
        )

    def batches(self, transform: Any, workers: int) -> Iterator[Batch]:
        part = StreamPart(seed=self.context.seed, batch_size=self.batch_size, images_seen=0, steps=self.steps)
        return training_batches(
            self.source,
            transform,
            part,
            workers=workers,
            masking=partial(keyed_mask, masking_of(self.config), self.context.seed),
            pin_memory=self.context.is_cuda,
        )


def run(context: Context) -> None:
    cores = len(os.sched_getaffinity(0))
    size, count = ((64, 48), 16) if context.small else ((500, 375), 512)
    start = time.perf_counter()
    mean = make_jpegs(context.scratch / "jpegs", count, context.seed, size, min(16, cores))
    seconds = time.perf_counter() - start
    context.record("jpegs", {"count": count, "size": size, "mean_bytes": mean, "made_in_seconds": seconds})
    data = Data(context, open_data([str(context.scratch / "jpegs")]))
    rates: dict[str, Any] = {"cores": cores}
    without_tokens = replace(data.transform, token_size=None)
    most = 1 if context.small else 15
    for workers in (1,) if context.small else (15, 8):
        with context.attempt(f"{workers} workers"):
            rates[f"{workers} workers"] = loader_rate(data, without_tokens, workers)
            context.record("images_per_second", rates)
    with context.attempt("with the tokenizer's images"):
        rates[f"{most} workers, tokenizer's images too"] = loader_rate(data, data.transform, most)
        context.record("images_per_second", rates)
    with context.attempt("training"):
        train_from_jpegs(context, data, most)


def loader_rate(data: Data, transform: Any, workers: int) -> float:
    """Images a second, from whole rounds of the workers, the first of which warms up."""
    enough = 0.2 if data.context.small else 3.0
    counted, taken = 0, 0.0
    with closing(data.batches(transform, workers)) as batches:  # type: ignore[type-var]
        for number, _ in enumerate(batches, start=1):
            if number == workers:
                start = time.perf_counter()
            elif number > workers and number % workers == 0:
                counted, taken = number - workers, time.perf_counter() - start
                if taken > enough:
                    break
    return counted * data.batch_size / taken


def train_from_jpegs(context: Context, data: Data, workers: int) -> None:
    """The engine's step from synthetic tensors, from JPEGs with kept tokens, and with the tokenizer in the step."""
    training: dict[str, Any] = {"workers": workers}
    tokenizer: Tokenizer | None = None
    with context.attempt("tokenizer"):  # before the task, as `beit pretrain` does
        tokenizer = online_tokenizer(context, data, training)
    setup = make_setup(context, "base", data.batch_size, compile_model=True)
    target = setup.task.target
    assert isinstance(target, TokenTarget)
    training["synthetic"] = speed(context, setup)["images_per_second"]["median"]
    context.record("training", training)

    def record(name: str, rate: float) -> None:
        training.update({name: rate, f"share: {name}": rate / training["synthetic"]})
        context.record("training", training)

    with context.attempt("kept tokens"):
        cache = filled_cache(context, data)
        setup.task.token_cache = CachingTokenizer(cache, target.encode, data.batch_size, ignore)
        record("kept tokens", training_rate(context, data, setup, CachedTokenTransform(data.transform, cache), workers))
        setup.task.token_cache.close()
        training["tokens_not_kept"] = cache.written
        context.record("training", training)
    setup.task.token_cache = None
    if tokenizer is None:
        return
    with context.attempt("online tokens"):
        target.tokenizer = tokenizer
        record("online tokens, fp16", training_rate(context, data, setup, data.transform, workers))


def online_tokenizer(context: Context, data: Data, training: dict[str, Any]) -> Tokenizer:
    """DALL-E's encoder as `beit pretrain` prepares it by default: on CUDA in fp16 and compiled."""
    size = data.transform.token_size if context.is_cuda else None
    tokenizer = prepared(random_tokenizer(context), token_precision("auto", context.device), size, ignore)
    training["tokenizer"] = f"{tokenizer.precision}, {'compiled' if tokenizer.is_compiled else 'not compiled'}"
    return tokenizer


def filled_cache(context: Context, data: Data) -> TokenCache:
    """Random tokens for every view that the run will ask for."""
    tokens = data.config.architecture.num_patches
    cache = TokenCache(context.scratch / "tokens", {"of": "benchmark"}, tokens, vocabulary(context))
    rng = np.random.default_rng(context.seed)
    sums = [zlib.crc32(data.source.pixels(index).tobytes()) for index in range(len(data.source))]
    for epoch in range(-(-data.steps * data.batch_size // len(sums))):
        for index, pixels in enumerate(sums):
            row = rng.integers(0, vocabulary(context), tokens)
            cache.add(epoch, data.source.global_index(index), pixels, row)
    cache.written = 0
    return cache


def training_rate(context: Context, data: Data, setup: Setup, transform: Any, workers: int) -> float:
    """Images a second of the loop's own order of work, behind a warm-up."""
    warm, seconds = (1, 0.2) if context.small else (2 * workers, 7.0)
    sums: dict[str, torch.Tensor] = {}
    start, done = 0.0, 0
    with closing(data.batches(transform, workers)) as batches:  # type: ignore[type-var]
        for number, (_, tensors) in enumerate(on_device(batches, context.device)):
            if number == warm:
                context.wait()
                start = time.perf_counter()
            if setup.task.num_uniforms:
                tensors["uniforms"] = setup.batch["uniforms"]
            tensors = setup.task.before_step(number, tensors)
            optimizer_step(setup.task, setup.plan, tensors, setup.compute, setup.scaler, sums)
            done = number + 1 - warm
            if number > warm and time.perf_counter() - start > seconds:
                break
    context.wait()
    return done * data.batch_size / (time.perf_counter() - start)
