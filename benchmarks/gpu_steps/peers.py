"""The same step by transformers' BeitForMaskedImageModeling and by timm's Beit, beside ours in one process.

bf16 autocast, SDPA, fused AdamW, clipping; eager and compiled, as users of these libraries would write them. Batch,
masks, tokens, drop path and size are ours; they begin with normalised floats, ours with uint8 and colours. The choice
of a kernel that ours makes for itself is undone before them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from measure import spread
from timm.models.beit import Beit
from torch import nn

from beitcli.models.networks.beit import timm_arguments
from gpu_steps.context import Context
from gpu_steps.setups import (
    CLIP,
    MICRO_BATCH,
    attention_choice,
    attention_choice_undone,
    make_batch,
    make_setup,
    pretrain_config,
    sdpa_flags,
    speed,
    vocabulary,
)

PEERS = ("transformers", "timm")
_LEARNING_RATE, _WEIGHT_DECAY = 1.5e-3, 0.05


def run(context: Context) -> None:
    micro_batch = 4 if context.small else MICRO_BATCH["base"]
    with context.attempt("ours"), attention_choice_undone():
        setup = make_setup(context, "base", micro_batch, compile_model=True)
        its = speed(context, setup, steps=3 if context.small else 20)
        context.record("ours", its | {"attention": attention_choice(setup)})
        del setup
    context.record("backends enabled for the others", sdpa_flags())
    variants = [(name, compiled) for compiled in (False, True) for name in PEERS if compiled or not context.small]
    for name, compiled in variants:  # eager ones first: they are quick
        label = f"{name}, compiled" if compiled else name
        with context.attempt(label):
            context.record(label, timed(context, peer_step(context, name, compiled=compiled), micro_batch))
            context.record("ratio", ratios(context.results))


def ratios(found: dict[str, Any]) -> dict[str, float]:
    """How many times ours is as fast as each that has been timed."""
    rates = {name: its["images_per_second"]["median"] for name, its in found.items() if "images_per_second" in its}
    own = rates.pop("ours", None)
    return {name: own / rate for name, rate in rates.items()} if own else {}


def timed(context: Context, step: Callable[[], torch.Tensor], images: int) -> dict[str, Any]:
    context.reset_peak()
    taken = context.seconds_of(step, 3 if context.small else 20, warmup=1 if context.small else 4)
    return {
        "images_per_second": spread([images / seconds for seconds in taken]),
        "peak_gib": context.peak_gib(),
        "loss": float(step()),
    }


def peer_step(context: Context, name: str, *, compiled: bool) -> Callable[[], torch.Tensor]:
    """One optimizer step; its loss on the device."""
    config = pretrain_config(context, "base")
    images = 4 if context.small else MICRO_BATCH["base"]
    batch = {n: t.to(context.device) for n, t in make_batch(config, images, vocabulary(context), context.seed).items()}
    pixels = (batch["images"].float() / 255 - 0.45) / 0.225
    mask, labels = batch["mask"], batch["visual_tokens"][batch["mask"]]
    inputs = [pixels, mask, labels]
    if name == "timm":  # transformers' model looks for the hidden patches itself
        inputs.append(mask.flatten().nonzero().squeeze(1))
    torch.manual_seed(context.seed)
    model = {"transformers": transformers_model, "timm": timm_model}[name](context, config).to(context.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY, fused=True)
    forward = torch.compile(model) if compiled else model

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        with torch.autocast(context.device.type, torch.bfloat16):
            loss = forward(*inputs)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        return loss.detach()

    return step


class LossOf(nn.Module):
    """transformers' model as (pixels, mask, labels) to its loss."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values=pixels, bool_masked_pos=mask, labels=labels).loss


def transformers_model(context: Context, config: Any) -> nn.Module:
    from transformers import BeitConfig, BeitForMaskedImageModeling

    its = config.architecture
    settings = BeitConfig(
        hidden_size=its.width, num_hidden_layers=its.depth, num_attention_heads=its.heads, image_size=its.image_size[0],
        intermediate_size=int(its.width * its.mlp_ratio), patch_size=its.patch_size, use_mask_token=True,
        use_absolute_position_embeddings=True, layer_scale_init_value=0.0, drop_path_rate=config.drop_path,
        vocab_size=vocabulary(context), layer_norm_eps=its.norm_eps, attn_implementation="sdpa",
    )  # fmt: skip
    return LossOf(BeitForMaskedImageModeling(settings))


class TimmMaskedImageModel(nn.Module):
    """timm's Beit with a mask token and a head over the hidden patches, as little of one's own as that takes.

    `hidden` (M,) int64 are the hidden patches of all images, image by image: found beforehand, so that no step waits.
    """

    def __init__(self, context: Context, config: Any) -> None:
        super().__init__()
        width = config.architecture.width
        arguments = timm_arguments(config.architecture, config.drop_path)
        self.beit = Beit(**arguments, global_pool="token", num_classes=0)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.head = nn.Linear(width, vocabulary(context))

    def forward(
        self, pixels: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor, hidden: torch.Tensor
    ) -> torch.Tensor:
        beit = self.beit
        patches = beit.patch_embed(pixels)
        patches = torch.where(mask.unsqueeze(-1), self.mask_token.to(patches.dtype), patches)
        features = torch.cat((beit.cls_token.expand(len(patches), -1, -1), patches), dim=1) + beit.pos_embed
        for block in beit.blocks:
            features = block(features)
        features = beit.norm(features)[:, 1:].flatten(0, 1).index_select(0, hidden)
        return F.cross_entropy(self.head(features).float(), labels)


def timm_model(context: Context, config: Any) -> nn.Module:
    return TimmMaskedImageModel(context, config)
