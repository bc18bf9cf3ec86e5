"""The detector of a checkpoint that `references` opened."""

from __future__ import annotations

from beitcli.errors import StorageError
from beitcli.heads.detection import HEAD_NAMES
from beitcli.models.detector import Detector
from beitcli.models.references import OpenedModel, blank, expect, said_resized
from beitcli.models.transfer import finetuning_architecture, load_backbone
from beitcli.runtime.foreign_files import quote

MOST = 100_000  # channels or regions that settings may ask for


def detector_of(opened: OpenedModel, size: tuple[int, int] | None = None) -> tuple[Detector, OpenedModel]:
    """The detector of these weights, in evaluation mode, resized to `size` (H, W) where given."""
    expect(opened, "detector")
    head, (width, regions) = opened.described.head, head_shape(opened)
    if head not in HEAD_NAMES:
        raise StorageError(
            f"'{opened.reference}' is a detector with another head than {' or '.join(HEAD_NAMES)}.",
            "Finetune from it: its backbone is taken.",
        )
    target = finetuning_architecture(opened.architecture, size)
    tensors = opened.tensors() | opened.head_tensors()
    model = blank(lambda: Detector(target, opened.described.outputs, head, width, regions))
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
