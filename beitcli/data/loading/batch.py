"""A batch of images, as it comes from the loader: how it travels from a worker, and how its pieces are joined."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

_SMALL = 64 << 10  # bytes


@dataclass
class Batch:
    """A batch of images with labels and masks.

    Attributes:
        tensors: Stacked outputs of the transform: `images` (B, 3, H, W) and others; `mask` (B, N) bool with masking;
            `labels` (B,) int64 if the source has classes, `label_vectors` (B, L) float32 if it has label names. Outputs
            that only some images have (`token_images`, if tokens are not cached) are stacked in order, with fewer rows;
            those in the transform's `ragged` are concatenated.
        indices: Indices of the images in the source.
        bad: (index, path, reason) of images that could not be read.
    """

    tensors: dict[str, torch.Tensor]
    indices: list[int]
    bad: list[tuple[int, str, str]]

    def __len__(self) -> int:
        return len(self.indices)

    def __getstate__(self) -> dict[str, Any]:
        """Small tensors travel from a worker as arrays: shared memory would cost each a file and a connection."""
        tensors = {name: tensor.numpy() if tensor.nbytes < _SMALL else tensor for name, tensor in self.tensors.items()}
        return {"tensors": tensors, "indices": self.indices, "bad": self.bad}

    def __setstate__(self, state: dict[str, Any]) -> None:
        tensors = {name: torch.as_tensor(each) for name, each in state["tensors"].items()}
        self.tensors, self.indices, self.bad = tensors, state["indices"], state["bad"]

    def to(self, device: torch.device) -> dict[str, torch.Tensor]:
        return {name: tensor.to(device, non_blocking=True) for name, tensor in self.tensors.items()}


def joined(parts: list[Batch], pin_memory: bool) -> Batch:
    """Joins the pieces of a batch with a single copy, into pinned memory if requested."""
    filled = [part.tensors for part in parts if len(part)]
    tensors = {}
    for name in dict.fromkeys(name for part in filled for name in part):
        those = [part[name] for part in filled if name in part]
        shape = (sum(map(len, those)), *those[0].shape[1:])
        tensors[name] = torch.empty(shape, dtype=those[0].dtype, pin_memory=pin_memory)
        torch.cat(those, out=tensors[name])
    indices = [index for part in parts for index in part.indices]
    return Batch(tensors, indices, [record for part in parts for record in part.bad])
