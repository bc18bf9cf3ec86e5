"""Image classifiers before training: a BEiT or a vision Transformer of timm."""

from __future__ import annotations

import torch

from beitcli.config.architecture import Architecture, Pooling, finetuning_architecture
from beitcli.models.networks.beit import timm_arguments
from beitcli.models.networks.blocks import Backbone
from beitcli.models.networks.timm_vit import TimmArchitecture, TimmViT, build_timm


class Classifier(Backbone):
    """BEiT with a linear head, in timm's layout and with timm's initialization.

    Args:
        classes: Number of classes; 0 for no head.
        pooling: `mean`: averages the patches, then `fc_norm`; `token`: `norm`, then takes the class token.
    """

    def __init__(
        self, architecture: Architecture, classes: int, drop_path: float = 0.0, pooling: Pooling = "mean"
    ) -> None:
        pool = "avg" if pooling == "mean" else "token"
        super().__init__(**timm_arguments(architecture, drop_path), global_pool=pool, num_classes=classes)
        self.architecture: Architecture = architecture
        self.pooling: Pooling = pooling


ImageClassifier = Classifier | TimmViT


def new_classifier(architecture: Architecture, classes: int, drop_path: float = 0.0) -> ImageClassifier:
    """Builds a classifier with timm's initialization; a BEiT is in the finetuning layout.

    Args:
        classes: Number of classes; 0 for no head.
        drop_path: Drop path rate of the last block.
    """
    if isinstance(architecture, TimmArchitecture):
        return build_timm(architecture, classes, drop_path)
    return Classifier(finetuning_architecture(architecture, None), classes, drop_path)


def init_from_seed(architecture: Architecture, seed: int) -> ImageClassifier:
    """Builds a network without a head, initialized from `seed`; does not change torch's global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return new_classifier(architecture, 0)
