"""Keeps the batches of an evaluation that is repeated, so that its images are decoded once."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator

import torch

from beitcli.data.loading.batches import Batch

MOST_BYTES = 512 << 20  # per process: 3,500 images of 224 x 224


class KeptBatches:
    """Batches of one pass, in memory.

    A pass that is not taken to its end, or that holds more bytes than `most`, is not kept. Whoever takes a batch must
    not change its tensors in place.

    Args:
        most: Bytes to keep at most.
    """

    def __init__(self, most: int = MOST_BYTES) -> None:
        self.most = most
        self._key: Hashable = None
        self._batches: list[Batch] | None = None

    def batches(self, key: Hashable, count: int, load: Callable[[], Iterator[Batch]]) -> Iterator[Batch]:
        """Yields the batches of `load()`, or those kept of an earlier pass with the same key.

        Args:
            key: All that the batches depend on.
            count: Number of batches.
        """
        if self._batches is not None and self._key == key:
            yield from self._batches
            return
        self._batches, taken, room = None, [], self.most
        for batch in load():
            room -= sum(each.nbytes for each in batch.tensors.values())
            if room >= 0:
                batch = _owned(batch)
                taken.append(batch)
            else:
                taken.clear()
            if len(taken) == count:  # before it is yielded: the consumer may not ask beyond it
                self._key, self._batches = key, taken
            yield batch


def _owned(batch: Batch) -> Batch:
    """Returns the batch out of the memory that it shares with a loader's worker."""
    tensors = {name: each.clone() if _is_shared(each) else each for name, each in batch.tensors.items()}
    return Batch(tensors, batch.indices, batch.bad)


def _is_shared(tensor: torch.Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.is_shared()
