"""Batches on their way to the device, while it still computes the step before."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from beitcli.data.loader import Batch


def on_device(batches: Iterator[Batch], device: torch.device) -> Iterator[tuple[Batch, dict[str, torch.Tensor]]]:
    """Each batch beside its tensors on the device.

    On CUDA the copy runs on a stream of its own: nothing waits for the device between steps, so when a batch is asked
    for the step before is still being computed, and only the step that uses the batch waits for it.
    """
    if device.type != "cuda":
        for batch in batches:
            yield batch, batch.to(device)
        return
    side = torch.cuda.Stream(device)
    for batch in batches:
        with torch.cuda.stream(side):
            tensors = batch.to(device)
        current = torch.cuda.current_stream(device)
        current.wait_stream(side)
        for tensor in tensors.values():
            tensor.record_stream(current)  # its memory is not given out again before the step is through
        yield batch, tensors
