"""Builds networks from checkpoints and loads their weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import nn

from beitcli.config.architecture import Architecture, finetuning_architecture
from beitcli.config.eval_crop import RELEASED_CROP, EvalCrop
from beitcli.config.normalization import Normalization
from beitcli.config.resizing import DEFAULT
from beitcli.config.tasks import TaskDefinition, task_of_kind
from beitcli.config.tasks.detect import TASK as DETECT
from beitcli.config.tasks.segment import TASK as SEGMENT
from beitcli.errors import StorageError
from beitcli.models.checkpoints.handle import CheckpointHandle
from beitcli.models.checkpoints.key_mapping import by_block
from beitcli.models.checkpoints.load_backbone import NOT_OF_BACKBONE, load_backbone
from beitcli.models.checkpoints.open import expect, open_model, open_pretrained
from beitcli.models.networks.beit import MaskedImageModel
from beitcli.models.networks.classifier import Classifier, ImageClassifier, init_from_seed
from beitcli.models.networks.timm_dense import AnyDetector, AnySegmenter, new_detector, new_segmenter
from beitcli.models.networks.timm_vit import AFTER_BLOCKS, TimmArchitecture, build_timm
from beitcli.runtime.deferred_compiler import uninitialized_parameters
from beitcli.runtime.weight_files.file_sniffing import one_line

if TYPE_CHECKING:
    from beitcli.runtime.hub.download import OnProgress

MOST = 100_000  # upper bound of channels and regions in a config

Size = tuple[int, int] | None  # (H, W) in pixels; None keeps the checkpoint's
Built = TypeVar("Built", bound=nn.Module)


def load_detector(checkpoint: CheckpointHandle, size: Size = None) -> tuple[AnyDetector, CheckpointHandle]:
    """Builds the detector in evaluation mode, resized to `size` (H, W) if given."""

    def make(target: Architecture, classes: int, head: str) -> AnyDetector:
        return new_detector(target, classes, head, *head_shape(checkpoint))

    return build_with_head(checkpoint, DETECT, make, size)


def load_segmenter(checkpoint: CheckpointHandle, size: Size = None) -> tuple[AnySegmenter, CheckpointHandle]:
    """Builds the segmenter in evaluation mode, resized to `size` (H, W) if given."""

    def make(target: Architecture, classes: int, head: str) -> AnySegmenter:
        own = checkpoint.segmenter
        assert own is not None  # it is a segmenter
        return new_segmenter(target, classes, head, out_indices=own.out_indices, head_settings=own.head)

    return build_with_head(checkpoint, SEGMENT, make, size)


def build_with_head(
    checkpoint: CheckpointHandle,
    task: TaskDefinition,
    make: Callable[[Architecture, int, str], Built],
    size: Size = None,
) -> tuple[Built, CheckpointHandle]:
    """Builds a backbone with a task head in evaluation mode, resized to `size` (H, W) if given.

    Args:
        make: Builds the network from architecture, number of classes and head name; its initialization is skipped.

    Raises:
        StorageError: The checkpoint is of another task, or its head is unknown here.
    """
    expect(checkpoint, task.kind)
    head = checkpoint.head
    if head not in task.head_names():
        raise StorageError(
            f"'{checkpoint.reference}' is a {task.kind} with another head than {' or '.join(task.head_names())}.",
            "Finetune from it: its backbone is taken.",
        )
    target = finetuning_architecture(checkpoint.architecture, size)
    tensors = checkpoint.tensors(with_head=True)
    if isinstance(target, TimmArchitecture):  # timm's own buffers need its initialization
        return _with_weights(make(target, checkpoint.outputs, head), checkpoint, tensors, target)
    model = build_uninitialized(lambda: make(target, checkpoint.outputs, head))
    return _with_weights(model, checkpoint, tensors, target)


def head_shape(checkpoint: CheckpointHandle) -> tuple[int, int]:
    """Returns the channels of the pyramid, and the regions per image that the box head is trained on.

    Raises:
        StorageError: config.json does not declare them.
    """
    return _number(checkpoint, "head_width"), _number(checkpoint, "regions")


def _number(checkpoint: CheckpointHandle, name: str) -> int:
    value = checkpoint.settings.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST:
        raise StorageError(
            f"config.json of '{checkpoint.reference}' has {one_line(repr(value))} for {name}.",
            "Take another checkpoint of the run.",
        )
    return value


def open_masked_image_model(
    reference: str, on_progress: OnProgress | None = None
) -> tuple[MaskedImageModel, CheckpointHandle]:
    """Opens a pretraining model with its weights, in evaluation mode."""
    checkpoint = open_model(reference, on_progress)
    expect(checkpoint, "masked-image-model")
    return masked_image_model_of(checkpoint, checkpoint.tensors()), checkpoint


def masked_image_model_of(checkpoint: CheckpointHandle, tensors: Mapping[str, torch.Tensor]) -> MaskedImageModel:
    """Builds the model with these weights, in evaluation mode. Raises StorageError if a tensor is missing."""
    model = build_uninitialized(lambda: MaskedImageModel(checkpoint.architecture, checkpoint.outputs))
    lacking = sorted(set(model.state_dict()) - set(tensors))
    if lacking:
        raise StorageError(
            f"'{checkpoint.reference}' lacks {', '.join(lacking)}, without which nothing can be hidden or named.",
            "Give a checkpoint of masked image modeling with its mask token and head.",
        )
    model.load_state_dict({name: tensors[name] for name in model.state_dict()})
    return model.eval()


def build_uninitialized(build: Callable[[], Built]) -> Built:
    """Builds a model without random initialization, which would take seconds; load weights next. Norms are identity."""
    with uninitialized_parameters():
        return build()


def open_classifier(
    reference: str, size: Size = None, on_progress: OnProgress | None = None
) -> tuple[ImageClassifier, CheckpointHandle]:
    """Opens a finetuned classifier with its weights, in evaluation mode, resized to `size` (H, W) if given."""
    return classifier_of(open_model(reference, on_progress), size)


def classifier_of(checkpoint: CheckpointHandle, size: Size = None) -> tuple[ImageClassifier, CheckpointHandle]:
    """Builds the classifier in evaluation mode, resized to `size` (H, W) if given."""
    expect(checkpoint, "classifier")
    target = finetuning_architecture(checkpoint.architecture, size)
    tensors = checkpoint.tensors()
    if isinstance(target, TimmArchitecture):
        return _with_weights(build_timm(target, checkpoint.outputs), checkpoint, tensors, target)
    model = build_uninitialized(lambda: Classifier(target, checkpoint.outputs, pooling=checkpoint.pooling))
    return _with_weights(model, checkpoint, tensors, target)


def _with_weights(
    model: Built,
    checkpoint: CheckpointHandle,
    tensors: Mapping[str, torch.Tensor],
    target: Architecture,
    reinit: tuple[str, ...] = (),
) -> tuple[Built, CheckpointHandle]:
    """Loads the weights in evaluation mode; the returned handle has a warning that names resized tensors."""
    how = checkpoint.settings.get("resize_positions", DEFAULT)
    transfer = load_backbone(model, tensors, checkpoint.architecture, target, reinit=reinit, how=how)
    model.eval()
    if not transfer.resized:
        return model, checkpoint
    said = f"'{checkpoint.reference}' is fitted to another size: {', '.join(by_block(transfer.resized))}."
    return model, replace(checkpoint, warnings=(*checkpoint.warnings, said))


def open_backbone(
    reference: str, size: Size = None, on_progress: OnProgress | None = None, seed: int = 0
) -> tuple[ImageClassifier, CheckpointHandle]:
    """Opens any model as a backbone without head in the finetuning layout, for features and attention."""
    return backbone_of(open_pretrained(reference, on_progress, seed), size)


def backbone_of(checkpoint: CheckpointHandle, size: Size = None) -> tuple[ImageClassifier, CheckpointHandle]:
    """Builds the backbone without head in the finetuning layout, in evaluation mode."""
    target = finetuning_architecture(checkpoint.architecture, size)
    if checkpoint.seed is not None:
        return init_from_seed(target, checkpoint.seed).eval(), checkpoint
    tensors = checkpoint.tensors()
    if isinstance(target, TimmArchitecture):
        return _with_weights(build_timm(target, 0), checkpoint, tensors, target, reinit=timm_reinit(checkpoint))
    model = build_uninitialized(lambda: Classifier(target, 0))
    return _with_weights(model, checkpoint, tensors, target, reinit=NOT_OF_BACKBONE)


def timm_reinit(checkpoint: CheckpointHandle) -> tuple[str, ...]:
    """Returns the key prefixes that keep timm's initialization: all after the blocks if a task's head replaced them."""
    task = task_of_kind(checkpoint.kind)
    return AFTER_BLOCKS if task is not None and task.prefix else ()


@dataclass(frozen=True)
class Preprocessing:
    """Evaluation transform of a classifier."""

    normalization: Normalization
    crop: EvalCrop = RELEASED_CROP


def preprocessing(checkpoint: CheckpointHandle, model: ImageClassifier) -> Preprocessing:
    """Returns the checkpoint's evaluation transform; that for another size if the model was resized."""
    same = model.architecture.image_size == checkpoint.architecture.image_size
    return Preprocessing(checkpoint.normalization, checkpoint.crop if same else checkpoint.crop.at_other_size())
