"""A batch of images, as it comes from the loader: how it travels from a worker, and how its pieces are joined."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

_MESSAGE = 2048  # bytes of tensors; a whole message is to stay below the 4,096 that a pipe takes whole or not at all


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
        """The smallest tensors travel from a worker as arrays: shared memory costs each a file and a connection.

        Larger messages would be cut where a worker is killed, and the process that reads them would wait for the rest.
        """
        tensors: dict[str, Any] = dict(self.tensors)
        room = _MESSAGE
        for name, tensor in sorted(self.tensors.items(), key=lambda item: item[1].nbytes):
            room -= tensor.nbytes
            if room < 0:
                break
            if tensor.device.type == "cpu" and tensor.dtype != torch.bfloat16 and not tensor.requires_grad:
                tensors[name] = tensor.numpy()
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
