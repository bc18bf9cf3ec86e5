"""Loads models and tokenizers for use from Python."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from beitcli.api.call import Reference, event_handler
from beitcli.api.model import Model
from beitcli.config.tasks import task_of_kind
from beitcli.errors import StorageError

if TYPE_CHECKING:
    import torch

    from beitcli.engine.events import OnEvent
    from beitcli.models.networks.beit import MaskedImageModel
    from beitcli.models.networks.classifier import ImageClassifier
    from beitcli.models.networks.timm_dense import AnyDetector, AnySegmenter
    from beitcli.tokenizers.base import Tokenizer


def load_model(
    model: Reference,
    *,
    device: str | torch.device = "cpu",
    precision: str = "fp32",
    progress: bool = True,
    on_event: OnEvent | None = None,
) -> Model:
    """Loads any MODEL in evaluation mode, to embed, predict and show the attention of images.

    Called itself, it takes (B, 3, H, W) floats of `model.architecture.image_size`, normalized by
    `model.normalization`, as `model.network` does, whose class follows from the checkpoint: the masked image model of
    pretraining, a classifier, segmenter or detector. The masked image model also takes a mask, (B, N) bool, and returns
    the logits of the hidden patches, (M, V); without a mask, of all. For a checkpoint without a head, the network is
    the backbone in the finetuning layout, whose output is the pooled features (B, D).

    Args:
        model: A run, a checkpoint, a file or folder of weights, `hf://OWNER/NAME`, `timm/NAME` or `random`.
        device: Where the weights go.
        precision: Arithmetic of `embed`, `predict` and `attention`: fp32, tf32, bf16 or fp16. Weights are fp32.

    Raises:
        UsageError: There is no such model, device or precision.
        StorageError: It is a tokenizer, an unsupported model of another program, damaged, or cannot be downloaded.
    """
    with event_handler(progress, on_event) as events:
        import torch

        from beitcli.engine.events import downloads, warn
        from beitcli.models.checkpoints.build import backbone_of, masked_image_model_of
        from beitcli.models.checkpoints.open import open_model
        from beitcli.runtime.compute.device import Compute, choose_compute

        reference, place = os.fspath(model), torch.device(device)
        compute = Compute(place, choose_compute(place.type, precision).precision)
        checkpoint = open_model(reference, downloads(events))
        warn(checkpoint.warnings, events)
        if checkpoint.kind == "tokenizer":
            raise StorageError(f"'{reference}' is a tokenizer.", "Open it with beitcli.load_tokenizer.")
        network: MaskedImageModel | ImageClassifier | AnySegmenter | AnyDetector
        if checkpoint.kind == "masked-image-model":
            network = masked_image_model_of(checkpoint, checkpoint.tensors())
        elif task := task_of_kind(checkpoint.kind):
            network = task.open_model(checkpoint)
        else:
            network, checkpoint = backbone_of(checkpoint)
        return Model(network.to(place), checkpoint, compute)


def load_tokenizer(
    tokenizer: Reference, *, device: str | torch.device = "cpu", progress: bool = True, on_event: OnEvent | None = None
) -> Tokenizer:
    """Loads a frozen tokenizer: `encode` maps (B, 3, H, W), uint8 or float in [0, 1], to tokens (B, N) int64.

    It was trained on images of `size` pixels; others have tokens too, one a square of `downsample` pixels.

    Args:
        tokenizer: `dall-e`, a folder with OpenAI's files, `hf://OWNER/NAME`, or a run of train_tokenizer or pretrain.

    Raises:
        UsageError: There is no such tokenizer.
        StorageError: It is not a tokenizer, damaged, or cannot be downloaded.
    """
    with event_handler(progress, on_event) as events:
        import torch

        from beitcli.engine.tokenizer_loading import tokenizer_for

        return tokenizer_for(os.fspath(tokenizer), torch.device(device), events)
