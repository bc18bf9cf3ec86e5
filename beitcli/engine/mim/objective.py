"""Objective of masked image modeling, from uint8 images to loss and metrics, compiled to one graph (paper section 2.3).

    images = normalize(jitter(images))                                  uint8 to float
    logits = model(images, mask)                                        (M, V), masked patches only
    loss = cross_entropy(logits, visual_tokens[mask])

With patch aggregation (`patch_aggregation.py`) the model predicts the same targets twice, and both losses are summed.

A compiler fuses color jitter and normalization into the patch embedding, and the softmax of the head into the cross
entropy, which saves memory traffic: an eager step moves 121 GB for 256 images of BEiT-B, the fused one about half
(counted, not measured).
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
    """Loss of masked image modeling.

    Args:
        target: What the head predicts for a patch.
        normalization: (mean, std) of the images in [0, 1], per channel.
        num_masked: Number of masked patches of each image; None without masking.
        predict_all: Whether the loss is over all patches instead of the masked ones only (ablation in Table 4).
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
        """Returns the mean loss over the predicted patches, and detached scalars to log.

        Args:
            images: (B, 3, H, W) uint8.
            visual_tokens: (B, N) int64 in [0, V); None if the targets are pixels.
            mask: (B, N) bool, True where the patch is hidden, `num_masked` in each image.
            color: (B, 9) float32, the color jitter as `compose_jitter` returns it.
            uniforms: (B, 2 * depth) in [0, 1), for drop path.
            valid: (B,) bool, False for images that pad the batch; None if all count.
        """
        outputs, targets = self.forward_with_targets(images, visual_tokens, mask, color, uniforms)
        metric_mask = self.metric_mask(mask)
        weights = None
        if valid is not None:
            weights = valid.repeat_interleave(len(targets) // len(valid), output_size=len(targets))
            metric_mask = weights if metric_mask is None else metric_mask & weights
        loss = self.target.loss(outputs[0], targets, weights)
        with torch.no_grad():
            metrics = self.target.training_metrics(outputs[0], targets, metric_mask)
        if len(outputs) == 1:
            return loss, metrics
        aggregated = self.target.loss(outputs[1], targets, weights)
        with torch.no_grad():
            metrics |= {"masked_loss": loss.detach(), "aggregated_loss": aggregated.detach()}
            accuracy = self.target.accuracy(outputs[1], targets, metric_mask)
        return loss + aggregated, metrics if accuracy is None else metrics | {"aggregated_accuracy": accuracy}

    def forward_with_targets(
        self,
        images: torch.Tensor,
        visual_tokens: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        color: torch.Tensor | None = None,
        uniforms: torch.Tensor | None = None,
    ) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        """Returns the outputs for the M patches to predict, and their targets, (M, ...).

        The outputs are those of the head, (M, outputs), and with patch aggregation a second tensor of that shape.
        """
        pixels = self.normalizer(images, color)
        targets = self.target.targets(pixels, visual_tokens)
        if mask is None or self.num_masked is None:
            return self._outputs(pixels, None, None, uniforms), targets
        if self.predict_all:
            every = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
            return self._outputs(pixels, mask, every, uniforms), targets
        indices = torch.nonzero_static(mask.flatten(), size=len(mask) * self.num_masked).squeeze(1)
        predicted = (indices % mask.shape[1]).view(len(mask), -1)
        return self._outputs(pixels, mask, predicted, uniforms), targets.index_select(0, indices)

    def _outputs(self, *inputs: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        outputs = self.model(*inputs)
        return outputs if isinstance(outputs, tuple) else (outputs,)

    def metric_mask(self, mask: torch.Tensor | None) -> torch.Tensor | None:
        """Returns (M,) bool, which of the patches to predict are hidden; None if all are, or without masking."""
        return mask.flatten() if self.predict_all and mask is not None else None
