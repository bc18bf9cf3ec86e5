"""Masked image modeling as a task of the training loop (paper section 2.3).

visual_tokens = tokenizer.encode(token_images)          (B, N) int64 in [0, V)
logits = model(images, mask)                            (M, V), hidden patches only
loss = cross_entropy(logits, visual_tokens[mask])

The ablations of Table 4 are its settings: pixels for tokens (`targets.py`), random masks, all patches, no mask.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

from beitcli.config.normalization import NORMALIZATIONS
from beitcli.config.training import PretrainConfig
from beitcli.data.color import apply_color
from beitcli.data.fast_view import FastPretrainingView
from beitcli.data.loader import Masking, ordered_batches
from beitcli.data.sources.base import Source
from beitcli.data.token_cache import CachedView
from beitcli.data.views import PretrainingView, normalize
from beitcli.engine.cached_tokens import CachedTokens
from beitcli.engine.online_probe import OnlineProbe
from beitcli.engine.rounds import in_rounds
from beitcli.engine.targets import PixelTarget, TokenTarget
from beitcli.engine.training import Plan, Task, Tensors
from beitcli.masking import MaskGenerator, keyed_mask
from beitcli.models.beit import MaskedImageModel
from beitcli.runtime.device import Compute, choose_workers
from beitcli.runtime.optim import make_adamw, parameter_groups
from beitcli.runtime.schedules import warmup_cosine
from beitcli.tokenizers import WORDS, Tokenizer


class PretrainTask(Task):
    """Masked image modeling in the training loop.

    Args:
        tokenizer: None where pixels are predicted.
        masking: None where nothing is hidden.

    Attributes:
        known: Where there is a token cache: what completes batches from it.
        probe: Where `--probe` asks for one.
    """

    known: CachedTokens | None = None
    probe: OnlineProbe | None = None
    name, kind = "pretrain", "masked-image-model"
    model: MaskedImageModel

    def __init__(
        self,
        config: PretrainConfig,
        plan: Plan,
        tokenizer: Tokenizer | None,
        masking: MaskGenerator | None,
        held_out: Source,
        compute: Compute,
    ) -> None:
        self.config, self.plan, self.compute = config, plan, compute
        self.tokenizer, self.masking, self.held_out = tokenizer, masking, held_out
        self.target = TokenTarget(tokenizer, compute.device) if tokenizer else PixelTarget(config.patch_size)
        torch.manual_seed(config.seed)
        self.model = MaskedImageModel(config.architecture, self.target.outputs, config.drop_path).to(compute.device)
        self.model.choose_attention(plan.micro_batch, compute)
        all_used = config.mask  # or the mask token rests
        self.share_gradients(
            compute,
            compile_model=config.compile,
            all_used=all_used,
            sharded=config.shard,
            compression=config.grad_compression,
        )
        self.draws = 2 * self.model.architecture.depth if config.drop_path else 0
        groups = parameter_groups(self.model, config.weight_decay)
        self.optimizer = make_adamw(groups, config.lr, (0.9, config.beta2), compute.device)

    def learning_rate(self, step: int) -> float:
        return warmup_cosine(self.config.lr, self.config.min_lr, step, self.plan.steps, self.plan.warmup_steps)

    def before_step(self, step: int, batch: Tensors) -> Tensors:
        return self.known.complete(batch) if self.known else batch

    def outputs_and_wanted(self, batch: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
        """What the head says of the M patches to predict, (M, outputs), and what it should, (M, ...)."""
        normalization = NORMALIZATIONS[self.config.normalization]
        if "color" in batch:
            images = apply_color(batch["images"], batch["color"], *normalization)
        else:
            images = normalize(batch["images"], *normalization)
        wanted, mask = self.target.wanted(batch, images), batch.get("mask")
        forward = self.forward if self.model.training else self.model  # a measurement has other shapes
        if mask is None or self.masking is None:
            return forward(images, None, None), wanted
        if self.config.predict == "all":
            return forward(images, mask, torch.arange(mask.shape[1], device=mask.device).expand_as(mask)), wanted
        places = torch.nonzero_static(mask.flatten(), size=len(mask) * self.masking.num_masked).squeeze(1)
        predicted = (places % mask.shape[1]).view(len(mask), -1)
        return forward(images, mask, predicted), wanted.index_select(0, places)

    def counted(self, batch: Tensors) -> torch.Tensor | None:
        """(M,) bool, the hidden ones of the patches to predict; None where those are all."""
        return batch["mask"].flatten() if self.config.predict == "all" and "mask" in batch else None

    def loss(self, batch: Tensors) -> tuple[torch.Tensor, Tensors]:
        self.model.draws = batch.get("draws")
        outputs, wanted = self.outputs_and_wanted(batch)
        loss = self.target.loss(outputs, wanted)
        with torch.no_grad():
            return loss, self.target.training_figures(outputs, wanted, self.counted(batch))

    def figures(self) -> dict[str, float]:
        """What knowing only the frequencies of this data's tokens would give, so far."""
        return self.target.running_figures(self.compute.world)

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Figures on held-out images, their views and masks those of epoch 0."""
        tally, world = self.target.tally(), self.compute.world
        view, masking = views_and_masks(self.config, self.tokenizer, self.masking)
        at_once = min(128, self.plan.micro_batch)
        batches = ordered_batches(
            self.held_out,
            CachedView(view, self.known.cache) if self.known else view,
            batch_size=at_once,
            workers=choose_workers(self.config.workers, self.compute.device, world.local_size),
            masking=masking,
            share=(world.rank, world.size),
        )
        for batch in in_rounds(batches, len(self.held_out), at_once, world, self.poll):
            if not len(batch):
                tally.add_nothing()
                continue
            tensors = self.before_step(0, batch.to(self.compute.device))
            with self.compute.autocast():
                outputs, wanted = self.outputs_and_wanted(tensors)
            tally.add(outputs, wanted, self.counted(tensors))
        return tally.figures(world)

    def monitor(self) -> dict[str, float]:
        return {} if self.probe is None else {"probe_top1": self.probe.top1(self.model)}

    def settings(self) -> dict[str, Any]:
        """`tokenizer` and `token_size` are None where pixels are predicted, `masking` where nothing is hidden."""
        tokenizer, masking = self.tokenizer, self.masking
        reference = "own" if self.config.tokenizer == "own" else lasting(tokenizer.reference if tokenizer else "")
        size = token_size(self.config, tokenizer)
        hidden = {"name": self.config.masking, "min_block": self.config.min_block, "seed": self.config.seed}
        return {
            "architecture": self.model.architecture.as_dict(),
            "outputs": self.target.outputs,
            "mean": NORMALIZATIONS[self.config.normalization][0],
            "std": NORMALIZATIONS[self.config.normalization][1],
            "target": self.config.target,
            "tokenizer": {"reference": reference, "sha256": tokenizer.sha256} if tokenizer else None,
            "token_size": list(size) if size else None,
            "masking": hidden | {"num_masked": masking.num_masked} if masking else None,
        }

    def extra_tensors(self) -> Tensors:
        return self.target.state()

    def load_extra_tensors(self, tensors: Tensors) -> None:
        self.target.load_state(tensors)


def lasting(reference: str) -> str:
    """A path from the root, so that it holds from another folder; a word that names no path stays as it is."""
    is_word = reference in WORDS or reference.startswith("hf://")
    return str(Path(reference).resolve()) if not is_word and Path(reference).exists() else reference


def token_size(config: PretrainConfig, tokenizer: Tokenizer | None) -> tuple[int, int] | None:
    """(H, W) of the tokenizer's image, so that every patch has one token; None without a tokenizer."""
    if tokenizer is None:
        return None
    rows, columns = config.architecture.grid
    return rows * tokenizer.model.downsample, columns * tokenizer.model.downsample


def views_and_masks(
    config: PretrainConfig, tokenizer: Tokenizer | None, masking: MaskGenerator | None
) -> tuple[FastPretrainingView | PretrainingView, Masking | None]:
    """The keyed view and the keyed mask of an image; no mask is drawn where nothing is hidden."""
    kind = FastPretrainingView if config.views == "fast" else PretrainingView
    view = kind(
        seed=config.seed,
        image_size=config.image_size,
        token_size=token_size(config, tokenizer),
        color_jitter=config.color_jitter,
        min_crop=config.min_crop,
    )
    return view, partial(keyed_mask, masking, config.seed) if masking is not None else None
