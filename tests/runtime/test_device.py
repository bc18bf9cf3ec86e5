"""Where work goes when nothing is asked for, and what is refused."""

from __future__ import annotations

import os

import pytest
import torch

from beitcli.errors import UsageError
from beitcli.runtime.device import choose_compute, choose_workers, threads_for

CUDA, MPS = torch.cuda.is_available(), torch.backends.mps.is_available()


def test_auto_is_cuda_or_the_cpu_and_never_mps():
    compute = choose_compute("auto", "auto")
    assert (compute.device.type, compute.precision) == (("cuda", "bf16") if CUDA else ("cpu", "fp32"))


@pytest.mark.parametrize(("device", "is_here"), [("cpu", True), ("cuda", CUDA), ("mps", MPS)])
def test_a_named_device_is_taken_or_refused(device, is_here):
    if is_here:
        assert choose_compute(device, "fp32").device.type == device
        return
    with pytest.raises(UsageError, match=f"--device {device}: torch sees no such device") as caught:
        choose_compute(device, "auto")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
def test_workers_are_as_asked_or_leave_the_training_its_cores(device):
    for workers in (0, 1, 500):
        assert choose_workers(workers, torch.device(device)) == workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    chosen = choose_workers(-1, torch.device(device))
    assert 0 <= chosen < cores
    assert chosen <= (max(1, cores // 4) if device == "cpu" else 16)


@pytest.mark.parametrize(("pixels", "threads"), [(1 << 16, 1), ((1 << 16) + 1, 2)])
def test_small_steps_take_one_thread_and_give_the_others_back(pixels, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with threads_for(torch.device("cpu"), pixels):
            assert torch.get_num_threads() == threads
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
