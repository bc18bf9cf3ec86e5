"""Masked image modeling as a task of the training loop (paper section 2.3).

visual_tokens = tokenizer.encode(token_images)          (B, N) int64 in [0, V)
logits = model(images, mask)                            (M, V), hidden patches only
loss = cross_entropy(logits, visual_tokens[mask])

The ablations of Table 4 are settings: pixels as targets (`targets.py`), random masks, loss over all patches, no mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from beitcli.config.intensity import intensity_entry
from beitcli.config.normalization import NORMALIZATIONS
from beitcli.config.pretrain import PretrainConfig
from beitcli.data.caches.token_cache import CachedTokenTransform, TokenCache
from beitcli.data.loading.batch_datasets import Masking, Transform
from beitcli.data.sources.base import Source
from beitcli.data.transforms.base import FILTERS, PretrainingTransform, normalize
from beitcli.data.transforms.pretraining import FastPretrainingTransform
from beitcli.engine.events import OnEvent, ignore
from beitcli.engine.mim.objective import MaskedImageObjective
from beitcli.engine.mim.previews import (
    CenterViews,
    agreement_panels,
    first_images,
    guessed_pixels,
    guessed_tokens,
    reconstruction_panels,
)
from beitcli.engine.mim.targets import PixelTarget, TokenTarget, joined_metrics
from beitcli.engine.mim.token_caching import CachingTokenizer
from beitcli.engine.probing.online_knn import BATCH, OnlineProbe
from beitcli.engine.trainer.bad_images import Bad, joined
from beitcli.engine.trainer.plan import Plan
from beitcli.engine.trainer.task import Task, Tensors, never_stop
from beitcli.errors import UsageError
from beitcli.masking import keyed_mask
from beitcli.masking.base import MaskGenerator
from beitcli.models.networks.beit import MaskedImageModel
from beitcli.models.networks.patch_aggregation import PatchAggregationModel
from beitcli.runtime.compute.compile import compiles
from beitcli.runtime.compute.device import Compute
from beitcli.runtime.compute.lr_schedules import warmup_cosine
from beitcli.runtime.compute.optimizer import make_adamw, parameter_groups
from beitcli.tokenizers.base import Tokenizer
from beitcli.tokenizers.pretrained import words


@dataclass(frozen=True)
class PretrainExtras:
    """Optional parts of pretraining.

    Attributes:
        token_cache: Cache of `--token-cache`; the task closes it.
        probe: Probe of `--probe`.
        on_event: Receives a warning if the cache cannot be written.
    """

    token_cache: TokenCache | None = None
    probe: OnlineProbe | None = None
    on_event: OnEvent = ignore


class PretrainTask(Task):
    """Masked image modeling in the training loop.

    Args:
        tokenizer: None if the targets are pixels.
        masking: None without masking.

    Attributes:
        token_cache: Adds cached tokens to batches and caches new ones; None without `--token-cache`.
        probe: Probe of `--probe`, if given.
    """

    takes_padding = True
    name, kind = "pretrain", "masked-image-model"
    config: PretrainConfig
    model: MaskedImageModel

    def __init__(
        self,
        config: PretrainConfig,
        plan: Plan,
        tokenizer: Tokenizer | None,
        masking: MaskGenerator | None,
        held_out: Source,
        compute: Compute,
        extras: PretrainExtras = PretrainExtras(),
    ) -> None:
        self.config, self.plan, self.compute = config, plan, compute
        self.tokenizer, self.masking, self.held_out = tokenizer, masking, held_out
        self.target = TokenTarget(tokenizer, compute.device) if tokenizer else PixelTarget(config.patch_size)
        self.probe = extras.probe
        self.token_cache: CachingTokenizer | None = None
        cache = extras.token_cache
        if cache is not None and isinstance(self.target, TokenTarget):
            self.token_cache = CachingTokenizer(cache, self.target.encode, plan.micro_batch, extras.on_event)
        torch.manual_seed(config.seed)
        residual = residual_dtype(config, compute)
        self.model = make_model(config, self.target.outputs, residual)
        self.model.to(compute.device)
        queries = None
        if masking is not None:  # rows of the last block's attention
            queries = self.model.patch_embed.num_patches if config.predict == "all" else masking.num_masked
        self.attention = self.model.choose_attention(plan.micro_batch, compute, queries=queries)
        self.objective = MaskedImageObjective(
            self.model,
            self.target,
            NORMALIZATIONS[config.normalization],
            masking.num_masked if masking else None,
            config.predict == "all",
        ).to(compute.device)
        self.wrap_parallel(
            compute,
            self.objective,
            compile_step=compiles(config.compile, compute.device),
            all_used=config.mask,  # otherwise the mask token has no gradient
            sharded=config.shard,
            compression=config.grad_compression,
        )
        self.num_uniforms = 2 * len(self.model.all_blocks()) if config.drop_path else 0
        groups = parameter_groups(self.model, config.weight_decay, decay_bias_tables=config.decay_bias_tables)
        self.optimizer = make_adamw(groups, config.lr, (0.9, config.beta2), compute.device)

    def sharded_blocks(self) -> Iterable[nn.Module]:
        return self.model.all_blocks()

    def running(self) -> AbstractContextManager[Any]:
        """Writes the last new tokens to the cache at the end."""
        return closing(self.token_cache) if self.token_cache else nullcontext()

    def learning_rate(self, step: int) -> float:
        return warmup_cosine(self.config.lr, self.config.min_lr, step, self.plan.steps, self.plan.warmup_steps)

    def before_step(self, step: int, batch: Tensors) -> Tensors:
        return self.token_cache.fill_tokens(batch) if self.token_cache else batch

    def inputs(self, batch: Tensors) -> Tensors:
        """Returns the arguments of the objective; encodes the visual tokens unless the cache has provided them."""
        inputs: Tensors = {name: batch[name] for name in ("images", "mask", "color", "valid") if name in batch}
        if isinstance(self.target, TokenTarget):
            tokens = batch.get("visual_tokens")
            inputs["visual_tokens"] = self.target.encode(batch) if tokens is None else tokens
        return inputs | ({"uniforms": batch["uniforms"]} if "uniforms" in batch else {})

    def forward_with_targets(self, batch: Tensors) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        """Calls that of the objective, eagerly: evaluation has other shapes than training."""
        return self.objective.forward_with_targets(**self.inputs(batch))

    def loss(self, batch: Tensors) -> tuple[torch.Tensor, Tensors]:
        forward = self.forward if self.model.training else self.objective
        return forward(**self.inputs(batch))

    @contextmanager
    def trial(self) -> Iterator[None]:
        with super().trial(), self.target.uncounted():
            yield

    def log_metrics(self) -> dict[str, float]:
        """Returns the baseline that knows only the token frequencies of the data seen so far."""
        return self.target.running_metrics(self.compute.world)

    def measuring_cost(self) -> float:
        return (len(self.held_out) + (0 if self.probe is None else self.probe.images)) / 2

    @torch.no_grad()
    def evaluate(self, check_stop: Callable[[], None] = never_stop) -> dict[str, float]:
        """Returns metrics of held-out images, with the transforms and masks of epoch 0."""
        predictions, world = 1 if self.config.aggregation is None else 2, self.compute.world
        accumulators = [self.target.accumulator() for _ in range(predictions)]
        transform: Transform
        transform, masking = transform_and_masking(self.config, self.tokenizer, self.masking)
        if self.token_cache:
            transform = CachedTokenTransform(transform, self.token_cache.cache)
        batching = self.batching(min(128, self.plan.micro_batch), check_stop)
        if self.token_cache:  # whose later passes find the tokens there
            batching = replace(batching, kept=None)
        bad: list[list[Bad]] = []
        for batch, moved in batching.on_device(self.held_out, transform, masking):
            bad.append(batch.bad)
            if not len(batch):
                for accumulator in accumulators:
                    accumulator.update_empty()
                continue
            tensors = self.before_step(0, moved)
            with self.compute.autocast():
                outputs, targets = self.forward_with_targets(tensors)
            for accumulator, each in zip(accumulators, outputs, strict=True):
                accumulator.update(each, targets, self.objective.metric_mask(tensors.get("mask")), len(batch))
        self.leave_out(joined(world.gather_interleaved(bad)), len(self.held_out))
        last, *aggregated = (accumulator.compute(world) for accumulator in accumulators)
        return joined_metrics(last, *aggregated) if aggregated else last

    @torch.no_grad()
    def preview(self, images: int) -> Image.Image | None:
        """Draws the first held-out images, their masks of epoch 0 and what the model makes of them; None unmasked."""
        config, grid = self.config, self.config.architecture.grid
        _, masking = transform_and_masking(config, self.tokenizer, self.masking)
        if masking is None:
            return None
        views = CenterViews(config.image_size, token_size(config, self.tokenizer), FILTERS[config.token_filter])
        batch = first_images(self.held_out, views, masking, images)
        if batch is None:
            return None
        tensors = batch.to(self.compute.device)
        view, mask, how = tensors["images"], tensors["mask"], NORMALIZATIONS[config.normalization]
        with self.compute.autocast():
            outputs = self.model(normalize(view, *how), mask)
        outputs = outputs[0] if isinstance(outputs, tuple) else outputs
        masks = batch.tensors["mask"].view(-1, *grid).numpy()
        if not isinstance(self.target, TokenTarget):
            guesses = guessed_pixels(view, mask, outputs, config.architecture, how)
            return reconstruction_panels(batch.tensors["images"], masks, guesses)
        tokens = self.target.encode(tensors).view(len(batch), -1)
        if self.target.tokenizer.model.can_decode:
            guesses = guessed_tokens(self.target.tokenizer, tokens, mask, outputs, grid)
            return reconstruction_panels(batch.tensors["images"], masks, guesses)
        right = torch.zeros_like(mask)
        right[mask] = outputs.argmax(dim=1) == tokens[mask]
        return agreement_panels(batch.tensors["images"], masks, right.view(-1, *grid).cpu().numpy())

    def probe_metrics(self) -> dict[str, float]:
        return {} if self.probe is None else {"probe_top1": self.probe.top1(self.model, self.at_once(BATCH))}

    def checkpoint_config(self) -> dict[str, Any]:
        """`tokenizer` and `token_size` are None if the targets are pixels, `masking` is None without masking.

        `aggregation` is there with patch aggregation only, `token_filter` if it is not `lanczos`.
        """
        tokenizer, masking, aggregation = self.tokenizer, self.masking, self.config.aggregation
        reference = (
            "own" if self.config.tokenizer == "own" else absolute_reference(tokenizer.reference if tokenizer else "")
        )
        size = token_size(self.config, tokenizer)
        hidden = {"name": self.config.masking, "min_block": self.config.min_block, "seed": self.config.seed}
        return {
            "architecture": self.model.architecture.as_dict(),
            "outputs": self.target.outputs,
            "mean": NORMALIZATIONS[self.config.normalization][0],
            "std": NORMALIZATIONS[self.config.normalization][1],
            **intensity_entry(self.config),
            "target": self.config.target,
            "tokenizer": {"reference": reference, "sha256": tokenizer.sha256} if tokenizer else None,
            "token_size": list(size) if size else None,
            "masking": hidden | {"num_masked": masking.num_masked} if masking else None,
            **({"aggregation": aggregation.as_dict()} if aggregation else {}),
            **({"token_filter": self.config.token_filter} if self.config.token_filter != "lanczos" else {}),
        }

    def extra_tensors(self) -> Tensors:
        return self.target.state()

    def load_extra_tensors(self, tensors: Tensors) -> None:
        self.target.load_state(tensors)


def make_model(config: PretrainConfig, outputs: int, residual: torch.dtype | None) -> MaskedImageModel:
    """Builds the network that a run trains, with `outputs` per patch; `residual` as of `residual_dtype`."""
    if config.aggregation is None:
        return MaskedImageModel(config.architecture, outputs, config.drop_path, residual)
    return PatchAggregationModel(config.architecture, outputs, config.aggregation, config.drop_path, residual)


def absolute_reference(reference: str) -> str:
    """Makes a path absolute, so that it holds in any working directory; other references are returned as they are."""
    is_word = reference in words() or reference.startswith("hf://")
    return str(Path(reference).resolve()) if not is_word and Path(reference).exists() else reference


def residual_dtype(config: PretrainConfig, compute: Compute) -> torch.dtype | None:
    """Returns the dtype of the residual stream; None for fp32.

    Raises:
        UsageError: bf16 is requested, but the run has another precision.
    """
    if config.residual == "fp32":
        return None
    if compute.precision != "bf16":
        raise UsageError(
            f"--residual bf16 needs --precision bf16; this run computes in {compute.precision}.",
            "Add --precision bf16, or leave --residual out.",
        )
    return torch.bfloat16


def token_size(config: PretrainConfig, tokenizer: Tokenizer | None) -> tuple[int, int] | None:
    """Returns (H, W) of the tokenizer's image, so that every patch has one token; None without a tokenizer."""
    if tokenizer is None:
        return None
    rows, columns = config.architecture.grid
    return rows * tokenizer.model.downsample, columns * tokenizer.model.downsample


def transform_and_masking(
    config: PretrainConfig, tokenizer: Tokenizer | None, masking: MaskGenerator | None
) -> tuple[FastPretrainingTransform | PretrainingTransform, Masking | None]:
    """Returns the keyed transform and the keyed mask generator of an image; the latter is None without masking."""
    kind = FastPretrainingTransform if config.views == "fast" else PretrainingTransform
    transform = kind(
        seed=config.seed,
        image_size=config.image_size,
        token_size=token_size(config, tokenizer),
        color_jitter=config.color_jitter,
        min_crop=config.min_crop,
        token_filter=config.token_filter,
    )
    return transform, partial(keyed_mask, masking, config.seed) if masking is not None else None
