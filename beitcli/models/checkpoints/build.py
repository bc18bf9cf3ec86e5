"""Networks built from opened checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeVar

import torch
from torch import nn

from beitcli.config.architecture import Architecture, finetuning_architecture
from beitcli.config.tasks import TaskDefinition
from beitcli.config.tasks.detect import TASK as DETECT
from beitcli.config.tasks.segment import TASK as SEGMENT
from beitcli.errors import StorageError
from beitcli.models.checkpoints.load_backbone import Transfer, by_block, load_backbone
from beitcli.models.checkpoints.load_timm import load_foreign
from beitcli.models.checkpoints.open import OpenedModel, expect, open_model, open_pretrained
from beitcli.models.networks.beit import MaskedImageModel
from beitcli.models.networks.classifier import Classifier, ImageClassifier, drawn
from beitcli.models.networks.detector import Detector
from beitcli.models.networks.segmenter import Segmenter
from beitcli.models.networks.timm_vit import ForeignArchitecture, build_foreign
from beitcli.runtime.hub.download import OnProgress
from beitcli.runtime.weight_files.file_sniffing import quote

MOST = 100_000  # channels or regions that settings may ask for

Built = TypeVar("Built", bound=nn.Module)


def detector_of(opened: OpenedModel, size: tuple[int, int] | None = None) -> tuple[Detector, OpenedModel]:
    """The detector of these weights, in evaluation mode, resized to `size` (H, W) where given."""

    def make(target: Architecture, classes: int, head: str) -> Detector:
        return Detector(target, classes, head, *head_shape(opened))

    return under_head(opened, DETECT, make, size)


def segmenter_of(opened: OpenedModel, size: tuple[int, int] | None = None) -> tuple[Segmenter, OpenedModel]:
    """The segmenter of these weights, in evaluation mode, resized to `size` (H, W) where given."""
    return under_head(opened, SEGMENT, Segmenter, size)


def under_head(
    opened: OpenedModel,
    task: TaskDefinition,
    make: Callable[[Architecture, int, str], Built],
    size: tuple[int, int] | None = None,
) -> tuple[Built, OpenedModel]:
    """The backbone and the head of these weights, in evaluation mode.

    Args:
        make: Of a shape, a number of classes and the head's name; nothing is drawn for it.
        size: (H, W) that it is resized to.

    Raises:
        StorageError: It is of another task, or its head is none that is known here.
    """
    expect(opened, task.kind)
    head = opened.described.head
    if head not in task.head_names():
        raise StorageError(
            f"'{opened.reference}' is a {task.kind} with another head than {' or '.join(task.head_names())}.",
            "Finetune from it: its backbone is taken.",
        )
    target = finetuning_architecture(opened.architecture, size)
    tensors = opened.tensors() | opened.head_tensors()
    model = blank(lambda: make(target, opened.described.outputs, head))
    transfer = load_backbone(model, tensors, opened.architecture, target, anew=())
    return model.eval(), said_resized(opened, transfer)


def head_shape(opened: OpenedModel) -> tuple[int, int]:
    """Channels of the pyramid, and regions that the box head learns from.

    Raises:
        StorageError: The settings beside the weights do not say them.
    """
    return _number(opened, "head_width"), _number(opened, "regions")


def _number(opened: OpenedModel, name: str) -> int:
    value = opened.settings.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST:
        raise StorageError(
            f"config.json of '{opened.reference}' has {quote(repr(value))} for {name}.",
            "Take another checkpoint of the run.",
        )
    return value


def open_masked_image_model(
    reference: str, on_progress: OnProgress | None = None
) -> tuple[MaskedImageModel, OpenedModel]:
    """A pretraining model with its weights, in evaluation mode."""
    opened = open_model(reference, on_progress)
    expect(opened, "masked-image-model")
    return masked_image_model_of(opened, opened.tensors()), opened


def masked_image_model_of(opened: OpenedModel, tensors: Mapping[str, torch.Tensor]) -> MaskedImageModel:
    """The model of these weights, in evaluation mode; no initialisation is drawn for them to overwrite."""
    model = blank(lambda: MaskedImageModel(opened.architecture, opened.described.outputs))
    lacking = sorted(set(model.state_dict()) - set(tensors))
    if lacking:
        raise StorageError(
            f"'{opened.reference}' lacks {', '.join(lacking)}, without which nothing can be hidden or named.",
            "Give a checkpoint of masked image modeling with its mask token and head.",
        )
    model.load_state_dict({name: tensors[name] for name in model.state_dict()})
    return model.eval()


def blank(build: Callable[[], Built]) -> Built:
    """A model whose weights are to be loaded: nothing is drawn for them, which takes seconds; norms are neutral."""
    with torch.device("meta"):
        model = build()
    model.to_empty(device="cpu")
    for module in model.modules():
        fill_buffers = getattr(module, "init_non_persistent_buffers", None)
        if callable(fill_buffers):
            fill_buffers()
        if isinstance(module, nn.LayerNorm):
            module.reset_parameters()
    return model


def open_classifier(
    reference: str, size: tuple[int, int] | None = None, on_progress: OnProgress | None = None
) -> tuple[ImageClassifier, OpenedModel]:
    """A finetuned classifier with its weights, in evaluation mode, resized to `size` (H, W) where given."""
    return classifier_of(open_model(reference, on_progress), size)


def classifier_of(opened: OpenedModel, size: tuple[int, int] | None = None) -> tuple[ImageClassifier, OpenedModel]:
    """The classifier of these weights, as `open_classifier` gives it."""
    expect(opened, "classifier")
    target = finetuning_architecture(opened.architecture, size)
    tensors = opened.tensors()
    if isinstance(target, ForeignArchitecture):
        foreign = build_foreign(target, opened.described.outputs)
        return foreign.eval(), said_resized(opened, load_foreign(foreign, tensors, opened.architecture))
    model = blank(lambda: Classifier(target, opened.described.outputs, pooling=opened.described.pooling))
    transfer = load_backbone(model, tensors, opened.architecture, target, anew=())
    return model.eval(), said_resized(opened, transfer)


def said_resized(opened: OpenedModel, transfer: Transfer) -> OpenedModel:
    """Says so where tensors were fitted to another size."""
    if not transfer.resized:
        return opened
    said = f"'{opened.reference}' is fitted to another size: {', '.join(by_block(transfer.resized))}."
    return replace(opened, warnings=(*opened.warnings, said))


def open_backbone(
    reference: str, size: tuple[int, int] | None = None, on_progress: OnProgress | None = None, seed: int = 0
) -> tuple[ImageClassifier, OpenedModel]:
    """Any model as a backbone in the finetuning layout, for features and attention; without its head."""
    opened = open_pretrained(reference, on_progress, seed)
    target = finetuning_architecture(opened.architecture, size)
    if opened.seed is not None:
        return drawn(target, opened.seed).eval(), opened
    tensors = opened.tensors()
    if isinstance(target, ForeignArchitecture):
        foreign = build_foreign(target, 0)
        return foreign.eval(), said_resized(opened, load_foreign(foreign, tensors, opened.architecture))
    model = blank(lambda: Classifier(target, 0))
    transfer = load_backbone(model, tensors, opened.architecture, target)
    return model.eval(), said_resized(opened, transfer)
