"""Where work goes when nothing is asked for, and what is refused."""

from __future__ import annotations

import os
import traceback
from dataclasses import replace

import pytest
import torch

from beitcli.errors import UsageError
from beitcli.runtime.compute.device import (
    Compute,
    allow_tf32,
    choose_compute,
    choose_workers,
    describe,
    is_small_step,
    one_thread,
    seed_generators,
    tf32_disabled,
)
from beitcli.runtime.distributed.world import SINGLE_PROCESS

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


def tf32() -> tuple[bool, bool]:
    """Whether CUDA's matrix products and its convolutions may use it."""
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


@pytest.fixture
def flags():
    before = tf32()
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.usefixtures("flags")
def test_fp32_on_cuda_is_fp32_and_tf32_is_asked_for():
    allow_tf32(True)
    assert tf32() == (True, True)
    cuda = torch.device("cuda")
    for precision in ("fp32", "tf32", "fp32"):
        compute = Compute(cuda, precision)
        assert compute.dtype == torch.float32
        assert not compute.scaler().is_enabled()
        with compute.autocast():
            assert tf32() == (precision == "tf32",) * 2
        assert tf32() == (precision == "tf32",) * 2  # for the backward pass
    assert torch.get_float32_matmul_precision() == "highest"  # what torch.compile reads raises where interfaces mix
    assert torch.backends.cuda.matmul.fp32_precision != "tf32"
    assert torch.backends.cudnn.conv.fp32_precision != "tf32"


@pytest.mark.usefixtures("flags")
def test_without_tf32_there_is_none_inside_and_what_was_before_comes_back():
    for before in (True, False):
        allow_tf32(before)
        with tf32_disabled(torch.device("cuda")):
            assert tf32() == (False, False)
        with tf32_disabled(torch.device("cpu")):
            assert tf32() == (before, before)
        assert tf32() == (before, before)


@pytest.mark.usefixtures("flags")
def test_work_on_a_cpu_leaves_the_flags_of_cuda_alone():
    allow_tf32(True)
    with choose_compute("cpu", "fp32").autocast():
        assert tf32() == (True, True)


@pytest.mark.parametrize("device", ["cpu", *(["auto"] if not CUDA else [])])
def test_tf32_is_refused_where_there_is_no_cuda(device):
    with pytest.raises(UsageError, match="--precision tf32 needs an NVIDIA GPU; this computes on cpu") as caught:
        choose_compute(device, "tf32")
    assert caught.value.exit_code == 2


def test_describe_names_the_precision():
    assert ", tf32, torch " in describe(Compute(torch.device("cpu"), "tf32"))


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
def test_workers_are_as_asked_or_leave_the_training_its_cores(device):
    for workers in (0, 1, 500):
        assert choose_workers(workers, torch.device(device)) == workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    chosen = choose_workers(-1, torch.device(device))
    assert 0 <= chosen < cores
    assert chosen <= (max(1, cores // 4) if device == "cpu" else 16)


@pytest.mark.parametrize(("device", "pixels", "small"), [("cpu", 1 << 16, True), ("cpu", (1 << 16) + 1, False)])
def test_a_step_of_few_pixels_is_small_on_a_cpu(device, pixels, small):
    assert is_small_step(torch.device(device), pixels) is small
    assert not is_small_step(torch.device("cuda"), pixels)


def test_one_thread_gives_the_others_back():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("cores", "expected"), [(1, 0), (2, 1), (3, 1), (12, 3)])
def test_a_training_on_several_cores_has_a_loader_worker(cores, expected):
    world = replace(SINGLE_PROCESS, cores=cores)
    assert choose_workers(-1, torch.device("cpu"), world, training=True) == expected
    assert choose_workers(0, torch.device("cpu"), world, training=True) == 0


def test_a_step_is_seeded_as_torch_seeds_the_device_and_asks_nothing_of_others(monkeypatch):
    torch.manual_seed(5)
    expected = torch.rand(3)
    formatted = []
    monkeypatch.setattr(traceback, "format_stack", lambda *_: formatted.append(1) or [])
    seed_generators(5, torch.device("cpu"))
    assert torch.equal(torch.rand(3), expected)
    assert not formatted
