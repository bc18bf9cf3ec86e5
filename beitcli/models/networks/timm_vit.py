"""timm's vision Transformers (ViT, DeiT, DINO, CLIP, EVA), to compare BEiT with.

Forward pass, initialization, parameter names and parameter groups stay timm's, so timm opens the checkpoints unchanged.
A model only gains the interface that the engine expects of every network: architecture, block outputs, attention.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
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
from beitcli.runtime.deferred_compiler import meta_device

HEADS = ("head.", "head_dist.")  # key prefixes; DeiT's distilled models have two heads
AFTER_BLOCKS = ("norm.", "fc_norm.", "attn_pool.", *HEADS)  # key prefixes of what a segmenter or detector drops
_GIVEN = ("img_size", "num_classes", "drop_path_rate", "pretrained")  # set by this program; ignored in `arguments`


@dataclass(frozen=True, kw_only=True)
class TimmArchitecture(Architecture):
    """Architecture of a timm model.

    Attributes:
        name: Name in timm, without the tag of the weights.
        arguments: Arguments of `timm.create_model` that differ from the model's defaults, without size and classes.
    """

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)


class TimmViT(nn.Module):
    """Mixin with the interface that the engine expects; `build_timm` adds it to the class of a timm model.

    Args:
        model: timm's model; its parameters, buffers and submodules are reused under the same names.
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
        """Does nothing: timm's models use the kernel that torch chooses."""

    def forward(self, images: torch.Tensor, uniforms: torch.Tensor | None = None) -> torch.Tensor:
        """Runs timm's forward pass, which ignores `uniforms`: its drop path draws from torch's global generator."""
        return super().forward(images)

    def forward_block_outputs(self, images: torch.Tensor, visit: Callable[[int, torch.Tensor], None]) -> None:
        """Calls `visit(layer, output)` after each block of timm's forward pass: layers from 1, output (B, L, D)."""

        def hook(layer: int) -> Any:
            return lambda module, inputs, output: visit(layer, output)

        hooks = [block.register_forward_hook(hook(layer)) for layer, block in enumerate(self.blocks, start=1)]
        try:
            self.forward_features(images)  # type: ignore[operator]
        finally:
            for each in hooks:
                each.remove()

    def attention(self, images: torch.Tensor, blocks: Sequence[int]) -> Iterator[torch.Tensor]:
        """Yields the attention of some blocks, (B, heads, L, L) float32: hooks capture timm's own unfused attention."""
        modules: list[Any] = [self.blocks[block].attn for block in blocks]
        inputs: list[Any] = []
        ahead = [
            module.register_forward_pre_hook(lambda _, *given: inputs.append(given), with_kwargs=True)
            for module in modules
        ]
        try:
            self.forward_features(images)  # type: ignore[operator]
        finally:
            for hook in ahead:
                hook.remove()
        for module, ((hidden, *rest), named) in zip(modules, inputs, strict=True):
            caught: list[torch.Tensor] = []
            inside = module.attn_drop.register_forward_hook(lambda *each, to=caught: to.append(each[2]))
            fused, module.fused_attn = module.fused_attn, False
            try:
                with torch.autocast(images.device.type, enabled=False):
                    module(hidden.float(), *rest, **named)
            finally:
                inside.remove()
                module.fused_attn = fused
            yield caught[0].float()


@lru_cache(maxsize=64)
def _adopted(mixin: type, kind: type) -> type:
    return type(kind.__name__, (mixin, kind), {"__module__": __name__})


def adopted(mixin: type, model: nn.Module) -> Any:
    """Returns the subclass of a timm model's class with the methods of a mixin, `TimmViT` or a subclass of it."""
    kind: Any = type(model)
    return _adopted(mixin, kind)


def create(name: str, arguments: Mapping[str, Any], **given: Any) -> nn.Module:
    """Creates a timm model without pretrained weights.

    Raises:
        UsageError: timm has no such model or argument, or the model is not a plain vision Transformer.
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
    """Reads the architecture of a timm model from an instance on the meta device.

    Args:
        image_size: (H, W) in pixels; None for the model's default.
    """
    given = {"img_size": image_size} if image_size else {}
    with meta_device():
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
    """Builds a timm model with timm's initialization, drawn from torch's global generator.

    Args:
        classes: Number of classes; 0 for no head.
        drop_path: Drop path rate of the last block.
    """
    model = create_of(architecture, classes, drop_path)
    return adopted(TimmViT, model)(model, architecture)


def create_of(architecture: TimmArchitecture, classes: int, drop_path: float = 0.0) -> nn.Module:
    """Creates timm's own model of an architecture; arguments as of `build_timm`."""
    given = {"img_size": architecture.image_size, "num_classes": classes, "drop_path_rate": drop_path}
    return create(architecture.name, architecture.arguments, **given)
