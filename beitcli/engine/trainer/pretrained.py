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
from beitcli.models.checkpoints.handle import CheckpointHandle
from beitcli.models.checkpoints.load_backbone import load_backbone
from beitcli.models.checkpoints.open import open_checkpoint, open_pretrained
from beitcli.models.networks.timm_vit import TimmArchitecture
from beitcli.runtime.distributed.world import DistributedContext
from beitcli.runtime.storage.checkpoint import newest_checkpoint

DEFAULT_SIZE = (224, 224)  # where nothing is pretrained
POOLING = ("head.", "fc_norm.", "norm.")  # of a BEiT, beside its blocks
Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Pretrained:
    """What `--init` names, and the images that its model is to see.

    Attributes:
        checkpoint: None where the model is to begin from scratch.
        size: (H, W) in pixels.
        classes: Of the run that goes on; empty of any other.
    """

    checkpoint: CheckpointHandle | None
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
    checkpoint = world.rank_zero_first(lambda: open_init(config, on_event))
    if checkpoint is None:
        return Pretrained(None, config.size or DEFAULT_SIZE, NORMALIZATIONS[config.normalization or "imagenet"], ())
    if isinstance(checkpoint.architecture, TimmArchitecture) and not takes_timm:
        raise UsageError(
            f"'{config.init}' is timm's {checkpoint.architecture.name}; --task {config.task} takes BEiTs.",
            "Give a BEiT as --init.",
        )
    classes = checkpoint.classes if is_resumed(config, checkpoint) else ()
    return Pretrained(checkpoint, config.size or checkpoint.architecture.image_size, checkpoint.normalization, classes)


def open_init(config: FinetuneConfig, on_event: OnEvent) -> CheckpointHandle | None:
    """Where the weights come from: a run that goes on needs no `--init`, which may have gone or changed meanwhile."""
    if config.resume and config.out and newest_checkpoint(Path(config.out), weights_only=True) is not None:
        return open_checkpoint(config.out)
    if config.init == "random":
        return None
    return open_pretrained(config.init, downloads(on_event), config.seed).normalized(config.normalization)


def is_resumed(config: FinetuneConfig, checkpoint: CheckpointHandle) -> bool:
    """Whether `checkpoint` is the run's own: the loop loads it, and only its shape and classes count before."""
    return config.resume and checkpoint.run.resolve() == Path(config.out).resolve()


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
    checkpoint: CheckpointHandle | None,
    make: Callable[[Architecture], Model],
    head_of: Callable[[CheckpointHandle], HeadTransfer],
    on_event: OnEvent,
) -> Model:
    """The task's model with the weights of `--init`; initialized from `--seed` where there is no checkpoint.

    Args:
        checkpoint: Of a run that goes on its own checkpoint, of which only the shape is taken.
        make: A model of a shape, with its initialisation.
    """
    torch.manual_seed(config.seed)
    if checkpoint is None:
        return make(scratch_architecture(config))
    if is_resumed(config, checkpoint):
        return make(checkpoint.architecture)
    warn(checkpoint.warnings, on_event)
    architecture = finetuning_architecture(checkpoint.architecture, config.size)
    model = make(architecture)
    head = head_of(checkpoint)
    if checkpoint.seed is not None and head.draws_anew:
        blocks = f"{architecture.depth} blocks of width {architecture.width}"
        patches = f"patches of {architecture.patch_size} pixels"
        on_event(Note(f"From scratch, shaped as {checkpoint.reference} says: {blocks}, {patches}."))
        return model
    _move_weights(model, checkpoint, architecture, head, on_event)
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
    model: nn.Module, checkpoint: CheckpointHandle, architecture: Architecture, head: HeadTransfer, on_event: OnEvent
) -> None:
    """Loads what fits, and tells what became of every tensor."""
    tensors = checkpoint.tensors() | (checkpoint.head_tensors() if head.loads_head else {})
    transfer = load_backbone(model, tensors, checkpoint.architecture, architecture, anew=head.reinit)
    transfer = replace(transfer, fresh=head.short(transfer.fresh))
    left: tuple[str, ...] = ()
    if checkpoint.key_mapping is not None:
        left = (*checkpoint.key_mapping.dropped, *(() if head.loads_head else checkpoint.key_mapping.head.values()))
    said = "; ".join(transfer.sentences(head.short(left)))
    on_event(Note(f"From {checkpoint.weights} ({checkpoint.format} {checkpoint.kind}): {said}"))
