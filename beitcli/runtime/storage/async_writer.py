"""Asynchronous checkpointing: the training loop waits for a copy of the tensors (on CUDA only enqueues it), not for the
disk."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Snapshot:
    """Copies of named tensors in CPU memory, in groups; training does not change them.

    Attributes:
        groups: Valid once `wait` has returned.
        copied: CUDA event after the copies; None if they are complete.
    """

    groups: dict[str, dict[str, torch.Tensor]]
    copied: torch.cuda.Event | None = None

    def wait(self) -> None:
        """Blocks until the copies are complete."""
        if self.copied is not None:
            torch.cuda.set_device(self.copied.device)  # of this thread, at first GPU 0, where a context would be opened
            self.copied.synchronize()


class SnapshotTaker:
    """Takes snapshots of tensors while training continues.

    On CUDA a tensor is cloned on the device, at memory bandwidth, and the clone is copied to the host on a side stream;
    the host waits for neither. If the device lacks memory for a clone, the copy runs on the training stream, and the
    host waits once while the allocator frees cached memory. The first snapshot also allocates pinned memory: the size
    of the tensors, at most twice that (torch rounds up to powers of two). Later snapshots reuse it.
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, str], torch.Tensor] = {}
        self._side: torch.cuda.Stream | None = None

    def take(self, **groups: Tensors) -> Snapshot:
        """Takes a snapshot; on CUDA it overwrites the memory of the previous one, which must have been written."""
        taken: dict[str, dict[str, torch.Tensor]] = {group: {} for group in groups}
        on_cuda: dict[tuple[str, str], torch.Tensor] = {}
        for group, tensors in groups.items():
            for name, tensor in tensors.items():
                detached = tensor.detach()
                if detached.is_cuda:
                    on_cuda[group, name] = detached
                    taken[group][name] = self._buffer(group, name, detached)
                else:
                    taken[group][name] = detached.clone() if detached.device.type == "cpu" else detached.cpu()
        return Snapshot(taken, self._copy(on_cuda) if on_cuda else None)

    def take_in_turn(
        self, whole: Callable[[torch.Tensor], torch.Tensor], *, keep: bool, **groups: Tensors
    ) -> Snapshot | None:
        """Like `take`, of tensors that `whole` makes, which do not fit on the device together.

        On CUDA the copies run on the training stream, in which the next tensor may take the memory of the one before;
        the host waits for none.

        Args:
            whole: A collective, such as the gathering of a sharded tensor: all ranks must call this alike.
            keep: Whether this rank takes the snapshot; otherwise None is returned.
        """
        taken: dict[str, dict[str, torch.Tensor]] = {group: {} for group in groups}
        device: torch.device | None = None
        for group, tensors in groups.items():
            for name, tensor in tensors.items():
                made = whole(tensor.detach())
                if not keep:
                    continue
                if made.is_cuda:
                    device = made.device
                    taken[group][name] = self._buffer(group, name, made).copy_(made, non_blocking=True)
                else:
                    taken[group][name] = made.clone() if made.device.type == "cpu" else made.cpu()
        if not keep:
            return None
        if device is None:
            return Snapshot(taken)
        copied = torch.cuda.Event(blocking=True)
        copied.record(torch.cuda.current_stream(device))
        return Snapshot(taken, copied)

    def _buffer(self, group: str, name: str, tensor: torch.Tensor) -> torch.Tensor:
        found = self._buffers.get((group, name))
        if found is None or found.shape != tensor.shape or found.dtype != tensor.dtype:
            try:
                found = torch.empty_like(tensor, device="cpu", pin_memory=True)
            except RuntimeError:  # no more memory can be pinned: the host waits for this copy
                found = torch.empty_like(tensor, device="cpu")
            self._buffers[group, name] = found
        return found

    def _copy(self, tensors: dict[tuple[str, str], torch.Tensor]) -> torch.cuda.Event:
        """Starts the copies into the buffers and returns an event after them. All tensors are on one device."""
        device = next(iter(tensors.values())).device
        side = self._side = self._side or torch.cuda.Stream(device)
        current = torch.cuda.current_stream(device)
        clones: dict[tuple[str, str], torch.Tensor] = {}
        is_room = True
        for key, tensor in tensors.items():
            if is_room:
                try:
                    clones[key] = tensor.clone()
                    continue
                except torch.OutOfMemoryError:
                    is_room = False
            self._buffers[key].copy_(tensor, non_blocking=True)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for key, clone in clones.items():
                self._buffers[key].copy_(clone, non_blocking=True)
                clone.record_stream(side)
            copied = torch.cuda.Event(blocking=True)  # the writer thread sleeps instead of spinning
            copied.record(side)
        return copied


@dataclass(frozen=True)
class Written:
    """A checkpoint that is on disk.

    Attributes:
        seconds: Duration of the write, in parallel to training.
    """

    path: Path
    step: int
    seconds: float


class CheckpointWriter:
    """Writes one checkpoint at a time in a background thread."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._written: Written | None = None
        self._error: BaseException | None = None

    def submit(self, write: Callable[[], Path], step: int) -> None:
        """Starts a write; the previous one must have been collected by `wait` or `finished`."""

        def work() -> None:
            begun = time.perf_counter()
            try:
                self._written = Written(write(), step, time.perf_counter() - begun)
            except BaseException as error:  # raised by `wait`
                self._error = error

        self._thread = threading.Thread(target=work, name=f"checkpoint of step {step}")
        self._thread.start()

    def finished(self) -> Written | None:
        """Returns the checkpoint if a write has completed since the last call, else None; raises the write's error."""
        if self._thread is None or self._thread.is_alive():
            return None
        return self.wait()

    def wait(self) -> Written | None:
        """Like `finished`, but blocks until the write completes."""
        if self._thread is not None:
            self._thread.join()
        self._thread, written, error = None, self._written, self._error
        self._written = self._error = None
        if error is not None:
            raise error
        return written
