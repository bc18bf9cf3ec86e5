"""From images on the device to the loss and its metrics, as one module that compiles to one graph (paper section 2.3).

    images = normalise(jitter(images))                                  uint8 to float
    logits = model(images, mask)                            (M, V), masked patches only
    loss = cross_entropy(logits, visual_tokens[mask])

Colour and normalisation fuse into the patch embedding, and the softmax of the head into its cross entropy, which saves
writing and reading those tensors: an eager step moves 121 GB through memory for 256 images of BEiT-B, where the fused
one moves about half (counted, not measured).
"""

from __future__ import annotations

import torch
from torch import nn

from beitcli.config.normalization import Normalization
from beitcli.data.transforms.color_jitter import PixelNormalizer
from beitcli.engine.mim.targets import Target
from beitcli.engine.trainer.task import Tensors
from beitcli.models.networks.beit import MaskedImageModel


class MaskedImageObjective(nn.Module):
    """Masked image modeling's loss.

    Args:
        target: What the head predicts of a patch.
        normalization: (mean, std) of the images in [0, 1], by channel.
        num_masked: Masked patches of each image; None where nothing is masked.
        predict_all: Whether the loss is taken over all patches, not the masked ones alone (Table 4's ablation).
    """

    def __init__(
        self,
        model: MaskedImageModel,
        target: Target,
        normalization: Normalization,
        num_masked: int | None,
        predict_all: bool,
    ) -> None:
        super().__init__()
        self.model, self.target = model, target
        self.normalizer = PixelNormalizer(*normalization)
        self.num_masked, self.predict_all = num_masked, predict_all

    def forward(
        self,
        images: torch.Tensor,
        visual_tokens: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        color: torch.Tensor | None = None,
        uniforms: torch.Tensor | None = None,
        valid: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, Tensors]:
        """Mean loss over the predicted patches, and detached scalars to log.

        Args:
            images: (B, 3, H, W) uint8.
            visual_tokens: (B, N) int64 in [0, V); None where pixels are predicted.
            mask: (B, N) bool, True where the patch is hidden, `num_masked` in each image.
            color: (B, 9) float32, the jitter as `compose_jitter` gives it.
            uniforms: (B, 2 * depth) in [0, 1) for the drop paths.
            valid: (B,) bool, False for images that only fill up the batch; None where all count.
        """
        outputs, targets = self.forward_with_targets(images, visual_tokens, mask, color, uniforms)
        metric_mask = self.metric_mask(mask)
        weights = None
        if valid is not None:
            weights = valid.repeat_interleave(len(outputs) // len(valid), output_size=len(outputs))
            metric_mask = weights if metric_mask is None else metric_mask & weights
        loss = self.target.loss(outputs, targets, weights)
        with torch.no_grad():
            return loss, self.target.training_metrics(outputs, targets, metric_mask)

    def forward_with_targets(
        self,
        images: torch.Tensor,
        visual_tokens: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        color: torch.Tensor | None = None,
        uniforms: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The head's outputs for the M patches to predict, (M, outputs), and their targets, (M, ...)."""
        pixels = self.normalizer(images, color)
        targets = self.target.targets(pixels, visual_tokens)
        if mask is None or self.num_masked is None:
            return self.model(pixels, None, None, uniforms), targets
        if self.predict_all:
            every = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
            return self.model(pixels, mask, every, uniforms), targets
        indices = torch.nonzero_static(mask.flatten(), size=len(mask) * self.num_masked).squeeze(1)
        predicted = (indices % mask.shape[1]).view(len(mask), -1)
        return self.model(pixels, mask, predicted, uniforms), targets.index_select(0, indices)

    def metric_mask(self, mask: torch.Tensor | None) -> torch.Tensor | None:
        """(M,) bool, the hidden ones of the patches to predict; None where those are all."""
        return mask.flatten() if self.predict_all and mask is not None else None
