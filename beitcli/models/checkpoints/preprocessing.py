"""How a classifier's images are prepared."""

from __future__ import annotations

from dataclasses import dataclass

from beitcli.config.normalization import Normalization
from beitcli.models.checkpoints.handle import CheckpointHandle
from beitcli.models.networks.classifier import ImageClassifier


@dataclass(frozen=True)
class Preprocessing:
    """What is done to an image before a classifier sees it.

    Attributes:
        crop_share: Share of the resized side that is kept (0-1); None for the release's rule.
    """

    normalization: Normalization
    crop_share: float | None = None


def preprocessing(checkpoint: CheckpointHandle, model: ImageClassifier) -> Preprocessing:
    """The checkpoint's own, but for the crop where the size is another."""
    same = model.architecture.image_size == checkpoint.architecture.image_size
    return Preprocessing(checkpoint.normalization, checkpoint.crop_share if same else None)
