"""The process group of a job: rank and world size, collectives, DDP.

A `DistributedContext` is built from the environment that torchrun, Slurm or `runtime/distributed/launch.py` sets.
Tensors of the model go through torch's collectives (NCCL between GPUs, gloo between CPUs). Control data (stop flags,
metrics, errors) goes as small objects over gloo, so that it never waits for a GPU. Results that rank 0 computes for all
(`run_on_rank_zero`) go through the store, which has no timeout: opening a large data set may take an hour.
"""

from __future__ import annotations

import pickle
import re
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from beitcli.errors import BeitError, DistributedError, UsageError
from beitcli.runtime.distributed.joining import agree_on_attempt, cores_here, gpu_index, share_of_cores
from beitcli.runtime.distributed.rank_env import RankInfo, rank_info_from_env
from beitcli.runtime.shortages import shortage
from beitcli.runtime.signals import raise_noted

Answer = TypeVar("Answer")
_BY_A_PEER = re.compile(
    r"gloo|NCCL|ProcessGroup|Connection (closed|reset)|Broken pipe|[Tt]imed out|TCPStore|recvBytes|sendBytes|"
    r"[Ss]ocket|collective"
)
_POLL_SECONDS = 0.05
_READ_SECONDS = 10.0
_GPU_SECONDS = 60.0  # that collectives of GPUs have beyond those of CPUs


@dataclass(frozen=True)
class DistributedContext:
    """Rank and world size of this process, and its collectives.

    Attributes:
        rank: From 0.
        size: World size.
        local_rank: Rank among the processes of this machine.
        local_size: Number of processes on this machine.
        restarts: How often the job was restarted after a failure.
        gpu: Index of its GPU among those that it sees.
        cores: Cores of its own, and its share of those that other processes may run on; 0 if it is the only process.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    restarts: int = 0
    gpu: int = 0
    cores: int = 0

    @property
    def is_rank_zero(self) -> bool:
        """Whether this is rank 0, which writes and logs for all ranks."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """Returns the objects of all ranks, in rank order. All ranks must call this."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=_control())
        return found

    def gather_on_rank_zero(self, value: Any) -> list[Any]:
        """Returns the objects of all ranks, in rank order, on rank 0; [] on the others. All ranks must call this."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size if self.is_rank_zero else []
        dist.gather_object(value, found or None, group=_control())
        return found

    def all_reduce_max(self, number: int) -> int:
        """Returns the maximum over ranks."""
        return self.all_reduce_max_async(number)()

    def all_reduce_max_async(self, number: int) -> Callable[[], int]:
        """Starts an asynchronous maximum over ranks; the function returned waits for it. All ranks must call this."""
        if self.size == 1:
            return lambda: number
        tensor = torch.tensor([number])
        work = dist.all_reduce(tensor, dist.ReduceOp.MAX, group=_control(), async_op=True)

        def answer() -> int:
            work.wait()
            return int(tensor)

        return answer

    def all_reduce_sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sums a tensor over ranks, in place, on the tensor's device."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def broadcast(self, tensors: Iterable[torch.Tensor]) -> None:
        """Gives all ranks the bits of rank 0's tensors, in place, on their device."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor.detach(), 0)

    @torch.no_grad()
    def all_reduce_weighted_mean(self, tensor: torch.Tensor, weight: float) -> torch.Tensor:
        """Returns the weighted mean of a tensor over ranks, detached."""
        if self.size == 1:
            return tensor.detach()
        flat = torch.cat(((tensor.detach() * weight).flatten(), tensor.new_full((1,), weight)))
        dist.all_reduce(flat)
        return (flat[:-1] / flat[-1]).view_as(tensor)

    def run_on_rank_zero(self, do: Callable[[], Answer]) -> Answer:
        """Calls `do` on rank 0 only. The other ranks wait without timeout, and get its result or its error.

        Raises:
            BeitError: That of rank 0, on all ranks.
        """
        if self.size == 1:
            return do()
        key = f"first/{_next_question()}"
        if self.is_rank_zero:
            try:
                answer: tuple[Any, BeitError | None] = (do(), None)
            except BeitError as error:
                answer = (None, error)
            _store().set(key, pickle.dumps(answer))  # type: ignore[arg-type] # its stub only knows str
        else:
            while not _store().check([key]):
                time.sleep(_POLL_SECONDS)
            answer = pickle.loads(_store().get(key))
            with suppress(dist.DistError):  # rank 0 has ended by its own error: the answer is here all the same
                _store().add(f"{key}/read", 1)
        if answer[1] is not None:
            _wait_for_readers()
            raise answer[1]
        return answer[0]

    def rank_zero_first(self, do: Callable[[], Answer]) -> Answer:
        """Calls `do` on rank 0, then on the other ranks, which can reuse what rank 0 has stored."""
        if self.size == 1:
            return do()
        kept: list[Answer] = []
        self.run_on_rank_zero(lambda: kept.append(do()))
        return kept[0] if self.is_rank_zero else do()

    def rank_zero_only(self, tell: Callable[[Any], None]) -> Callable[[Any], None]:
        """Returns `tell` on rank 0 and a no-op elsewhere, for messages that are the same on all ranks."""
        return tell if self.is_rank_zero else lambda event: None

    def gather_interleaved(self, mine: Sequence[Answer]) -> list[Answer]:
        """Gathers the items of all ranks, interleaved: item i came from rank i % size."""
        everyone = self.gather(mine)
        longest = max(map(len, everyone))
        return [things[turn] for turn in range(longest) for things in everyone if turn < len(things)]

    def raise_if_any_failed(self, error: BeitError | None) -> None:
        """Raises the error of the lowest failing rank on all ranks; it names that rank unless all have failed."""
        if self.size == 1:
            if error is not None:
                raise error
            return
        errors = self.gather(error)
        for rank, found in enumerate(errors):
            if found is not None:
                if not all(errors):
                    found.message = f"Rank {rank} of {self.size}: {found.message}"
                raise found


SINGLE_PROCESS = DistributedContext()
_joined: DistributedContext | None = None
_keys: dist.Store | None = None
_questions = 0


def join(device: torch.device, processes: int, timeout: float) -> DistributedContext:
    """Joins the process group of this job, once; returns `SINGLE_PROCESS` for a single process.

    Args:
        processes: `--gpus`, the requested world size; 1 accepts that of the environment.
        timeout: Seconds after which a process that does not respond counts as hung.

    Raises:
        UsageError: The environment has another world size.
        DistributedError: The other ranks cannot be reached.
        BeitError: The machine lacks something else, such as memory of the GPU.
    """
    global _joined, _keys
    if _joined is not None:
        return _joined
    place = rank_info_from_env()
    if place is None:
        return SINGLE_PROCESS
    if processes not in (1, place.size):
        raise UsageError(
            f"--gpus is {processes}, but the launcher started {place.size} processes.",
            f"Give --gpus {place.size}, or leave it out.",
        )
    on_cuda, limit = device.type == "cuda", timedelta(seconds=timeout)
    gpu = gpu_index(place.local_rank, torch.cuda.device_count()) if on_cuda else 0
    try:
        if on_cuda:
            torch.cuda.set_device(gpu)
        raise_noted()
        shared = dist.TCPStore(place.address, place.port, place.size, place.rank == 0, limit, wait_for_workers=True)
        _keys = dist.PrefixStore(agree_on_attempt(shared, place.rank, place.size, timeout), shared)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_cuda else "cpu:gloo",
            store=dist.PrefixStore("group", _keys),
            rank=place.rank,
            world_size=place.size,
            timeout=limit,
            device_id=torch.device("cuda", gpu) if on_cuda else None,  # NCCL connects here, not in step 1
        )
        if on_cuda:
            set_timeout(torch.device("cuda", gpu), timeout + _GPU_SECONDS)
        world = DistributedContext(place.rank, place.size, place.local_rank, place.local_size, place.restarts, gpu)
        mine = cores_here()
        _joined = replace(world, cores=share_of_cores(mine, world.gather(mine)))
    except (RuntimeError, ValueError) as error:
        raise shortage(error) or unreachable(place, error) from None
    return _joined


def unreachable(place: RankInfo, error: Exception) -> DistributedError:
    """Returns the error for a failed rendezvous, with its address."""
    if "uplicate GPU" in str(error):  # NCCL's words
        return DistributedError(
            f"Rank {place.rank} of {place.size} is on the same GPU as another process of its machine.",
            "Start no more processes on a machine than it has GPUs, or add --device cpu.",
        )
    return DistributedError(
        f"Rank {place.rank} of {place.size} found no process group at {place.address}:{place.port} "
        f"({str(error).splitlines()[0][:200]}).",
        "Check that the machines reach one another there, and that every process was started.",
    )


def set_timeout(device: torch.device, seconds: float) -> None:
    """Sets how long collectives on a kind of device may take; does nothing where torch has no way to.

    Those of GPUs get longer than those of CPUs: gloo's timeout is an error in Python, which is reported, but NCCL's
    watchdog aborts the process. Where a rank waits for both, gloo's comes first.
    """
    find = getattr(dist.group.WORLD, "_get_backend", None)
    change = getattr(find(device), "_set_default_timeout", None) if find is not None else None
    if change is not None:
        change(timedelta(seconds=seconds))


def shutdown() -> None:
    """Destroys the process group once every rank has the answers of rank 0.

    Only for a rank that has succeeded: NCCL waits here for all that is under way, and so for peers that may be blocked.
    After an error the process just ends, which closes its connections: peers that wait over gloo then fail at once,
    those that wait in NCCL after its timeout.
    """
    global _joined, _keys, _questions
    if _joined is not None:
        _wait_for_readers()
        dist.destroy_process_group()
    _joined = _keys = None
    _questions = 0


def is_peer_failure(error: BaseException) -> bool:
    """Whether an error only means that another rank has died or hangs."""
    kinds = (dist.DistError, ConnectionError)
    return isinstance(error, kinds) or (isinstance(error, RuntimeError) and bool(_BY_A_PEER.search(str(error))))


def _control() -> Any:
    return dist.group.WORLD


def _store() -> dist.Store:
    assert _keys is not None
    return _keys


def _wait_for_readers() -> None:
    """On rank 0, waits until the other ranks have read its last answer: the store ends with it."""
    if _joined is None or not _joined.is_rank_zero or not _questions:
        return
    key, end = f"first/{_questions}/read", time.monotonic() + _READ_SECONDS
    while _store().add(key, 0) < _joined.size - 1 and time.monotonic() < end:
        time.sleep(_POLL_SECONDS)


def _next_question() -> int:
    global _questions
    _questions += 1
    return _questions
