"""What finetuning begins with: `--init` opened once, and its weights moved into the task's model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from beitcli.config.architecture import SIZES, Architecture, finetuning_architecture
from beitcli.config.finetune import FinetuneConfig
from beitcli.config.normalization import NORMALIZATIONS, Normalization
from beitcli.engine.events import Note, OnEvent, downloads, warn
from beitcli.errors import UsageError
from beitcli.models.checkpoints.load_backbone import load_backbone
from beitcli.models.checkpoints.load_timm import load_foreign
from beitcli.models.checkpoints.open import OpenedModel, open_checkpoint, open_pretrained
from beitcli.models.networks.timm_vit import ForeignArchitecture, ForeignViT
from beitcli.runtime.distributed.world import DistributedContext
from beitcli.runtime.storage.checkpoint import newest_checkpoint

DEFAULT_SIZE = (224, 224)  # where nothing is pretrained
POOLING = ("head.", "fc_norm.", "norm.")  # of a BEiT, beside its blocks
Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Pretrained:
    """What `--init` names, and the images that its model is to see.

    Attributes:
        opened: None where the model is to begin from scratch.
        size: (H, W) in pixels.
        classes: Of the run that goes on; empty of any other.
    """

    opened: OpenedModel | None
    size: tuple[int, int]
    normalization: Normalization
    classes: tuple[str, ...]


def open_for_finetuning(
    config: FinetuneConfig, world: DistributedContext, on_event: OnEvent, *, takes_timm: bool = False
) -> Pretrained:
    """Opens `--init`, downloaded by the first process where it must be.

    Raises:
        UsageError: It is one of timm's models, and the task takes none.
    """
    opened = world.rank_zero_first(lambda: open_init(config, on_event))
    if opened is None:
        return Pretrained(None, config.size or DEFAULT_SIZE, NORMALIZATIONS[config.normalization or "imagenet"], ())
    if isinstance(opened.architecture, ForeignArchitecture) and not takes_timm:
        raise UsageError(
            f"'{config.init}' is timm's {opened.architecture.name}; --task {config.task} takes BEiTs.",
            "Give a BEiT as --init.",
        )
    classes = opened.described.classes if is_resumed(config, opened) else ()
    return Pretrained(opened, config.size or opened.architecture.image_size, opened.normalization, classes)


def open_init(config: FinetuneConfig, on_event: OnEvent) -> OpenedModel | None:
    """Where the weights come from: a run that goes on needs no `--init`, which may have gone or changed meanwhile."""
    if config.resume and config.out and newest_checkpoint(Path(config.out), weights_only=True) is not None:
        return open_checkpoint(config.out)
    if config.init == "random":
        return None
    return open_pretrained(config.init, downloads(on_event), config.seed).normalized(config.normalization)


def is_resumed(config: FinetuneConfig, opened: OpenedModel) -> bool:
    """Whether `opened` is the run's own checkpoint: the loop loads it, and only its shape and classes count before."""
    return config.resume and opened.run.resolve() == Path(config.out).resolve()


@dataclass(frozen=True)
class HeadTransfer:
    """What becomes of the head of `--init`.

    Attributes:
        reinit: Beginnings of the names in the new model that keep their initialisation.
        loads_head: Whether its own tensors go over, too.
        parts: Beginnings of names, each of which is told as one name.
        draws_anew: Whether a shape without weights (`MODEL@random`) keeps the new model's draw instead of its own.
    """

    reinit: tuple[str, ...]
    loads_head: bool = False
    parts: tuple[str, ...] = ()
    draws_anew: bool = False

    def short(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """The names, those of a part as one."""
        return tuple(dict.fromkeys(map(self._short, names)))

    def _short(self, name: str) -> str:
        return next((part for part in self.parts if name.startswith(f"{part}.")), name)


def build_finetuned(
    config: FinetuneConfig,
    opened: OpenedModel | None,
    make: Callable[[Architecture], Model],
    head_of: Callable[[OpenedModel], HeadTransfer],
    on_event: OnEvent,
) -> Model:
    """The task's model with the weights of `--init`; drawn from `--seed` where nothing is `opened`.

    Args:
        opened: Of a run that goes on its own checkpoint, of which only the shape is taken.
        make: A model of a shape, with its initialisation.
    """
    torch.manual_seed(config.seed)
    if opened is None:
        return make(scratch_architecture(config))
    if is_resumed(config, opened):
        return make(opened.architecture)
    warn(opened.warnings, on_event)
    architecture = finetuning_architecture(opened.architecture, config.size)
    model = make(architecture)
    head = head_of(opened)
    if opened.seed is not None and head.draws_anew:
        blocks = f"{architecture.depth} blocks of width {architecture.width}"
        patches = f"patches of {architecture.patch_size} pixels"
        on_event(Note(f"From scratch, shaped as {opened.reference} says: {blocks}, {patches}."))
        return model
    _move_weights(model, opened, architecture, head, on_event)
    return model


def scratch_architecture(config: FinetuneConfig) -> Architecture:
    """Of the settings alone."""
    sizes: dict[str, Any] = SIZES[config.model]
    return Architecture(
        image_size=config.size or DEFAULT_SIZE,
        patch_size=config.patch_size,
        positions=config.positions,
        layer_scale=config.layer_scale,
        **sizes,
    )


def _move_weights(
    model: nn.Module, opened: OpenedModel, architecture: Architecture, head: HeadTransfer, on_event: OnEvent
) -> None:
    """Loads what fits, and tells what became of every tensor."""
    tensors = opened.tensors() | (opened.head_tensors() if head.loads_head else {})
    if isinstance(model, ForeignViT):
        transfer = load_foreign(model, tensors, opened.architecture, anew=head.reinit)
    else:
        transfer = load_backbone(model, tensors, opened.architecture, architecture, anew=head.reinit)
    transfer = replace(transfer, fresh=head.short(transfer.fresh))
    left: tuple[str, ...] = ()
    if opened.layout is not None:
        left = (*opened.layout.dropped, *(() if head.loads_head else opened.layout.head.values()))
    said = "; ".join(transfer.sentences(head.short(left)))
    on_event(Note(f"From {opened.weights} ({opened.format} {opened.kind}): {said}"))
