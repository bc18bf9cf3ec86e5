"""Opens the checkpoint of `--init` and loads its weights into the model to finetune."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from beitcli.config.architecture import SIZES, Architecture, finetuning_architecture, kind_in_words
from beitcli.config.eval_crop import RELEASED_CROP, EvalCrop
from beitcli.config.finetune import FinetuneConfig
from beitcli.config.normalization import NORMALIZATIONS, Normalization
from beitcli.config.tasks import TASKS
from beitcli.engine.events import Note, OnEvent, downloads, warn
from beitcli.errors import UsageError
from beitcli.models.checkpoints.handle import CheckpointHandle
from beitcli.models.checkpoints.load_backbone import load_backbone
from beitcli.models.checkpoints.open import open_checkpoint, open_pretrained
from beitcli.models.networks.timm_vit import TimmArchitecture
from beitcli.runtime.distributed.world import DistributedContext
from beitcli.runtime.storage.checkpoint import newest_checkpoint

DEFAULT_SIZE = (224, 224)  # from scratch
POOLING = ("head.", "fc_norm.", "norm.")  # key prefixes of a BEiT after its blocks
Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Pretrained:
    """The checkpoint of `--init`, and the images of the finetuned model.

    Attributes:
        checkpoint: None to train from scratch.
        size: (H, W) in pixels.
        classes: Class names of a resumed run; empty for any other.
        crop: Resizing and cropping in evaluation.
    """

    checkpoint: CheckpointHandle | None
    size: tuple[int, int]
    normalization: Normalization
    classes: tuple[str, ...]
    crop: EvalCrop = RELEASED_CROP


def open_for_finetuning(
    config: FinetuneConfig, world: DistributedContext, on_event: OnEvent, *, takes_timm: bool = False
) -> Pretrained:
    """Opens `--init`; rank 0 downloads it if necessary.

    Raises:
        UsageError: It is a timm model that is not a BEiT, and the task does not support those.
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
    own = checkpoint.architecture.image_size
    size = config.size or own
    crop = checkpoint.crop if size == own else checkpoint.crop.at_other_size()
    return Pretrained(checkpoint, size, checkpoint.normalization, classes, crop)


def open_init(config: FinetuneConfig, on_event: OnEvent) -> CheckpointHandle | None:
    """Opens the initial weights; for a resumed run its own checkpoint, as `--init` may be gone or changed since."""
    if config.resume and config.out and newest_checkpoint(Path(config.out), weights_only=True) is not None:
        return open_checkpoint(config.out)
    if config.init == "random":
        return None
    return open_pretrained(config.init, downloads(on_event), config.seed).normalized(config.normalization)


def is_resumed(config: FinetuneConfig, checkpoint: CheckpointHandle) -> bool:
    """Whether `checkpoint` is the resumed run's own: the loop loads its weights, here it gives shape and classes."""
    return config.resume and checkpoint.run.resolve() == Path(config.out).resolve()


@dataclass(frozen=True)
class HeadTransfer:
    """How the head of `--init` is transferred.

    Attributes:
        reinit: Key prefixes in the new model that keep their initialization.
        loads_head: Whether the tensors of the head are loaded too.
        keeps_random_init: Whether for `MODEL@random` the new model keeps its own initialization.
    """

    reinit: tuple[str, ...]
    loads_head: bool = False
    keeps_random_init: bool = False


def build_finetuned(
    config: FinetuneConfig,
    checkpoint: CheckpointHandle | None,
    make: Callable[[Architecture], Model],
    head_of: Callable[[CheckpointHandle], HeadTransfer],
    on_event: OnEvent,
) -> Model:
    """Builds the task's model with the weights of `--init`; without a checkpoint it is initialized from `--seed`.

    Args:
        checkpoint: If it is the resumed run's own, only its shape is used.
        make: Builds an initialized model of an architecture.
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
    if checkpoint.seed is not None and head.keeps_random_init:
        blocks = f"{architecture.depth} blocks of width {architecture.width}"
        patches = f"patches of {architecture.patch_size} pixels"
        on_event(Note(f"From scratch, shaped as {checkpoint.reference} says: {blocks}, {patches}."))
        return model
    _move_weights(config, model, checkpoint, architecture, head, on_event)
    return model


def scratch_architecture(config: FinetuneConfig) -> Architecture:
    """Returns the architecture defined by the settings alone."""
    sizes: dict[str, Any] = SIZES[config.model]
    return Architecture(
        image_size=config.size or DEFAULT_SIZE,
        patch_size=config.patch_size,
        positions=config.positions,
        layer_scale=config.layer_scale,
        **sizes,
    )


def _move_weights(
    config: FinetuneConfig,
    model: nn.Module,
    checkpoint: CheckpointHandle,
    architecture: Architecture,
    head: HeadTransfer,
    on_event: OnEvent,
) -> None:
    """Loads the tensors that fit, and reports what became of the others."""
    tensors = checkpoint.tensors(with_head=head.loads_head)
    source, how = checkpoint.architecture, config.resize_positions
    transfer = load_backbone(model, tensors, source, architecture, reinit=head.reinit, how=how)
    keys = checkpoint.key_mapping
    of_head, unread = ((), ()) if keys is None else (() if head.loads_head else tuple(keys.head), keys.dropped)
    said = transfer.summary(checkpoint.kind, TASKS.entries()[config.task].kind, of_head, unread)
    origin = checkpoint.weights if checkpoint.seed is None else checkpoint.reference
    on_event(Note(f"From {origin} ({kind_in_words(checkpoint.kind)}, format {checkpoint.format}): {said}"))
