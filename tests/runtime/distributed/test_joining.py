"""What processes settle as they join: an attempt's name, GPUs and cores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from beitcli.runtime.compute.device import choose_workers
from beitcli.runtime.distributed.joining import agree_on_attempt, gpu_index, share_of_cores
from beitcli.runtime.distributed.world import is_peer_failure, join, set_timeout, shutdown
from tests.helpers.processes import in_group

LIMIT = timedelta(seconds=30)


@pytest.mark.parametrize(
    ("local_rank", "visible", "index"),
    [(0, 8, 0), (3, 8, 3), (3, 1, 0), (0, 1, 0), (2, 2, 0), (3, 2, 1), (1, 0, 0)],
)
def test_a_process_that_sees_its_own_gpus_alone_takes_one_of_them(local_rank, visible, index):
    assert gpu_index(local_rank, visible) == index


def test_cores_are_divided_among_those_that_may_run_on_them():
    whole, low, high = tuple(range(24)), tuple(range(12)), tuple(range(12, 24))
    assert share_of_cores(("a", whole), [("a", whole)] * 3) == 8
    assert share_of_cores(("a", low), [("a", low), ("a", high)]) == 12  # bound
    assert share_of_cores(("a", low), [("a", low), ("a", low), ("a", high)]) == 6
    assert share_of_cores(("a", whole), [("a", whole), ("b", whole)]) == 24  # of two machines
    assert share_of_cores(("a", (0,)), [("a", (0,))] * 3) == 1


@pytest.mark.parametrize(("bound", "workers"), [(True, 7), (False, 3)])
def test_bound_processes_have_the_workers_of_all_their_cores(bound, workers):
    """Slurm binds each task; a launcher's processes share the cores, here 8 that this machine need not have."""

    def work(rank: int) -> None:
        os.sched_getaffinity = lambda pid: set(range(8 * rank, 8 * rank + 8) if bound else range(8))
        world = join(torch.device("cpu"), 1, 30)
        print(choose_workers(-1, torch.device("cuda"), world))
        world.gather(None)  # none leaves before the others
        shutdown()

    assert [(each.code, each.out) for each in in_group(2, work)] == [(0, f"{workers}\n")] * 2


def test_the_timeout_of_one_kind_of_device_is_set():
    """As that of the GPUs' collectives is, beyond gloo's."""

    def work(rank: int) -> None:
        world = join(torch.device("cpu"), 2, 60)
        keys = dist.distributed_c10d._get_default_store()
        if rank == 1:
            keys.wait(["timed out"])  # and takes no part
            keys.set("seen", "")
            return
        set_timeout(torch.device("cpu"), 0.5)
        with pytest.raises(RuntimeError, match="500ms") as late:
            world.all_reduce_max(1)
        assert is_peer_failure(late.value)
        keys.set("timed out", "")
        keys.wait(["seen"])  # the store ends with this process

    assert [(each.code, each.err) for each in in_group(2, work)] == [(0, "")] * 2


def test_an_attempt_shares_a_name_that_no_earlier_one_had():
    """In a store that keeps all keys, also of an attempt that only some processes reached."""
    store = dist.TCPStore("127.0.0.1", 0, None, True, LIMIT)
    clients = [dist.TCPStore("127.0.0.1", store.port, None, False, LIMIT) for _ in range(3)]

    def attempt() -> set[str]:
        with ThreadPoolExecutor(3) as pool:
            return set(pool.map(lambda rank: agree_on_attempt(clients[rank], rank, 3, 30), range(3)))

    with pytest.raises(RuntimeError, match="not all 3 processes answered"):
        agree_on_attempt(clients[0], 0, 3, 0.2)
    store.set("joining/2", "of a process that was killed")
    names = [attempt() for _ in range(3)]
    assert [len(each) for each in names] == [1, 1, 1]
    assert len(set.union(*names)) == 3


SCRIPT = """
import json, os, sys
import torch
from beitcli.runtime.distributed.world import join, shutdown

world = join(torch.device("cpu"), 1, 60)
answer = world.run_on_rank_zero(lambda: world.restarts)
if world.restarts == 0 and world.rank == 1:
    os._exit(3)
if world.restarts:
    with open(f"{sys.argv[1]}/{world.rank}", "w") as file:
        json.dump([answer, world.gather(world.rank)], file)
    shutdown()
else:
    world.gather(world.rank)
"""


@pytest.mark.slow
def test_a_job_that_torchrun_restarts_reads_no_answer_of_the_attempt_before(tmp_path: Path):
    """torchrun's own store outlives the restart: rank 1 took rank 0's answer of the attempt before for the new one."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    words = ["--standalone", "--nproc-per-node", "2", "--max-restarts", "2", script, tmp_path]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    run = [sys.executable, "-m", "torch.distributed.run", *map(str, words)]
    ended = subprocess.run(run, env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert [json.loads((tmp_path / rank).read_text()) for rank in "01"] == [[1, [0, 1]]] * 2
