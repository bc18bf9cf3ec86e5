"""Image classifiers of either kind, a BEiT or a vision Transformer of timm's, as nothing has taught them yet."""

from __future__ import annotations

import torch

from beitcli.config.architecture import Architecture
from beitcli.models.beit import Classifier
from beitcli.models.foreign_vit import ForeignArchitecture, ForeignViT, build_foreign
from beitcli.models.transfer import finetuning_architecture

ImageClassifier = Classifier | ForeignViT


def new_classifier(architecture: Architecture, classes: int, drop_path: float = 0.0) -> ImageClassifier:
    """With timm's initialisation; a BEiT is in the finetuning layout.

    Args:
        classes: 0 for no head.
        drop_path: Rate of the last block.
    """
    if isinstance(architecture, ForeignArchitecture):
        return build_foreign(architecture, classes, drop_path)
    return Classifier(finetuning_architecture(architecture, None), classes, drop_path)


def drawn(architecture: Architecture, seed: int) -> ImageClassifier:
    """Without a head, drawn from `seed`; torch's global generator stays where it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return new_classifier(architecture, 0)
