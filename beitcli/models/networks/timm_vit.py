"""The vision Transformers that BEiT is compared with: timm's own (ViT, DeiT, DINO, CLIP's, EVA), as they are.

A model stays timm's: its forward, initialisation, parameter names and groups. It only learns to say what the engine
asks of every network: its shape, what each block gives, its attention. So a checkpoint opens in timm as it lies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import timm
import torch
from timm.models import VisionTransformer
from timm.models.eva import Eva
from torch import nn

from beitcli.config.architecture import Architecture, Pooling
from beitcli.errors import UsageError
from beitcli.runtime.compute.device import Compute

HEADS = ("head.", "head_dist.")  # DeiT's distilled models have two
_GIVEN = ("img_size", "num_classes", "drop_path_rate", "pretrained")  # told by name, never by `arguments`


@dataclass(frozen=True, kw_only=True)
class TimmArchitecture(Architecture):
    """A model of timm.

    Attributes:
        name: timm's, without the tag of its weights.
        arguments: Of `timm.create_model`, where they differ from the name's own; size and classes aside.
    """

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)


class TimmViT(nn.Module):
    """What the engine asks of a timm model; `build_timm` mixes it into the model's own class.

    Args:
        model: timm's, whose parameters, buffers and sub-modules it takes over with their names.
    """

    architecture: TimmArchitecture
    num_prefix_tokens: int
    global_pool: str
    blocks: nn.Sequential

    def __init__(self, model: nn.Module, architecture: TimmArchitecture) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(vars(model))
        self.architecture = architecture

    @property
    def pooling(self) -> Pooling:
        return "token" if self.global_pool == "token" else "mean"

    def choose_attention(self, images: int, compute: Compute, queries: int | None = None) -> None:
        """torch's own choice of a kernel stands."""

    def forward(self, images: torch.Tensor, uniforms: torch.Tensor | None = None) -> torch.Tensor:
        """timm's own; its drop paths draw from torch's global generator, whatever `uniforms` are."""
        return super().forward(images)

    def forward_block_outputs(self, images: torch.Tensor, visit: Callable[[int, torch.Tensor], None]) -> None:
        """Shows (layer, (B, L, D)) behind each block, layers from 1, as timm's forward pass comes by it."""

        def hook(layer: int) -> Any:
            return lambda module, inputs, output: visit(layer, output)

        hooks = [block.register_forward_hook(hook(layer)) for layer, block in enumerate(self.blocks, start=1)]
        try:
            self.forward_features(images)  # type: ignore[operator]
        finally:
            for each in hooks:
                each.remove()

    def attention(self, images: torch.Tensor, block: int) -> torch.Tensor:
        """(B, heads, L, L) float32 attention of one block: timm computes it itself, unfused, and it is caught there."""
        module: Any = self.blocks[block].attn
        caught: list[torch.Tensor] = []
        inputs: list[Any] = []
        ahead = module.register_forward_pre_hook(lambda _, *given: inputs.append(given), with_kwargs=True)
        try:
            self.forward_features(images)  # type: ignore[operator]
        finally:
            ahead.remove()
        (hidden, *rest), named = inputs[0]
        fused, inside = module.fused_attn, module.attn_drop.register_forward_hook(lambda *each: caught.append(each[2]))
        module.fused_attn = False
        try:
            with torch.autocast(images.device.type, enabled=False):
                module(hidden.float(), *rest, **named)
        finally:
            inside.remove()
            module.fused_attn = fused
        return caught[0].float()


@lru_cache(maxsize=16)
def _adopted(kind: type) -> type:
    return type(kind.__name__, (TimmViT, kind), {"__module__": __name__})


def create(name: str, arguments: Mapping[str, Any], **given: Any) -> nn.Module:
    """timm's model without weights.

    Raises:
        UsageError: timm has no such model or argument, or it is no plain vision Transformer.
    """
    options = {key: value for key, value in arguments.items() if key not in _GIVEN} | given
    try:
        model = timm.create_model(name, pretrained=False, **options)
    except (RuntimeError, TypeError, AssertionError, ValueError) as error:
        raise UsageError(
            f"timm cannot make '{name}' with {options}: {str(error).splitlines()[0] if str(error) else error!r}.",
            "Give the name and arguments as of timm.create_model.",
        ) from None
    blocks = getattr(model, "blocks", None)
    plain = isinstance(model, VisionTransformer | Eva) and blocks is not None and hasattr(blocks[0], "attn")
    if not plain or len(set(model.patch_embed.patch_size)) != 1:
        raise UsageError(f"timm's '{name}' is no plain vision Transformer.", "Give a BEiT, ViT, DeiT, DINO or EVA.")
    return model


def architecture_of(name: str, arguments: Mapping[str, Any], image_size: tuple[int, int] | None) -> TimmArchitecture:
    """The shape of a timm model by its name, from an empty one.

    Args:
        image_size: (H, W); None for the name's own.
    """
    given = {"img_size": image_size} if image_size else {}
    with torch.device("meta"):
        model: Any = create(name, arguments, **given)
    mlp = model.blocks[0].mlp
    hidden = (mlp.fc1 if hasattr(mlp, "fc1") else mlp.fc1_g if hasattr(mlp, "fc1_g") else mlp.w12).out_features
    norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
    return TimmArchitecture(
        image_size=model.patch_embed.img_size,
        patch_size=model.patch_embed.patch_size[0],
        width=model.embed_dim,
        depth=len(model.blocks),
        heads=model.blocks[0].attn.num_heads,
        mlp_ratio=hidden / model.embed_dim,
        norm_eps=norms[0].eps if norms else 1e-6,
        name=name,
        arguments={key: value for key, value in arguments.items() if key not in _GIVEN},
    )


def build_timm(architecture: TimmArchitecture, classes: int, drop_path: float = 0.0) -> TimmViT:
    """The model with timm's initialisation, drawn from torch's global generator.

    Args:
        classes: 0 for no head.
        drop_path: Rate of the last block.
    """
    given = {"img_size": architecture.image_size, "num_classes": classes, "drop_path_rate": drop_path}
    model: Any = create(architecture.name, architecture.arguments, **given)
    kind: Any = type(model)
    return _adopted(kind)(model, architecture)
