"""Per-channel mean and standard deviation of images in [0, 1] (stdlib only)."""

from __future__ import annotations

Normalization = tuple[tuple[float, ...], tuple[float, ...]]

IMAGENET: Normalization = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # the paper's
INCEPTION: Normalization = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # of the weights released for ImageNet-22k
NORMALIZATIONS = {"imagenet": IMAGENET, "inception": INCEPTION}
