"""The trial of attention kernels and what follows from it, on the kernels that a CPU has."""

from __future__ import annotations

import dataclasses
import os

import pytest
import torch

from beitcli.config.common import Launched
from beitcli.runtime.compute import attention_trial
from beitcli.runtime.compute.attention_choice import (
    AttentionChoice,
    apply_choice,
    benchmark_all,
    candidates,
    choose_attention_kernel,
)
from beitcli.runtime.compute.attention_trial import MAX_ERROR, AttentionShape, benchmark_kernels
from beitcli.runtime.compute.device import Compute, join_compute
from beitcli.runtime.compute.sdpa_backend import SDPA
from beitcli.runtime.distributed.world import shutdown
from tests.helpers.forked import Child
from tests.helpers.processes import free_port

CPU = torch.device("cpu")
SHAPE = AttentionShape(images=3, heads=2, length=13, head_dim=16, has_bias=False, depth=3)
BIASED = dataclasses.replace(SHAPE, has_bias=True)


@pytest.fixture(autouse=True)
def flags():
    """What torch may use, put back behind the test."""
    cuda = torch.backends.cuda
    before = (
        cuda.flash_sdp_enabled(),
        cuda.mem_efficient_sdp_enabled(),
        cuda.cudnn_sdp_enabled(),
        cuda.math_sdp_enabled(),
    )
    order = torch._C._get_sdp_priority_order()
    yield
    torch._C._set_sdp_priority_order(order)
    cuda.enable_flash_sdp(before[0])
    cuda.enable_mem_efficient_sdp(before[1])
    cuda.enable_cudnn_sdp(before[2])
    cuda.enable_math_sdp(before[3])


def allowed() -> set[str]:
    cuda = torch.backends.cuda
    are = {
        "flash": cuda.flash_sdp_enabled(),
        "efficient": cuda.mem_efficient_sdp_enabled(),
        "cudnn": cuda.cudnn_sdp_enabled(),
        "math": cuda.math_sdp_enabled(),
    }
    return {name for name, enabled in are.items() if enabled}


def test_a_trained_bias_excludes_flash_and_cudnn():
    assert candidates(True, 92000)[0] == ["efficient", "math", "flex"]
    assert candidates(True, 92000, processes=2)[0] == ["efficient", "math"]


@pytest.mark.parametrize(("version", "is_candidate"), [(None, False), (91002, False), (91500, False), (91501, True)])
def test_cudnn_is_a_candidate_above_9_15_0(version, is_candidate):
    kernels, left_out = candidates(False, version)
    assert kernels == ["flash", "efficient", *(["cudnn"] if is_candidate else []), "math"]
    assert ("cudnn" in left_out) != is_candidate


@pytest.mark.parametrize("queries", [None, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_kernels_that_run_are_timed_and_near_fp32(dtype, queries):
    tried = benchmark_kernels(["flash", "efficient", "math"], dataclasses.replace(SHAPE, queries=queries), dtype, CPU)
    assert set(tried.milliseconds) == set(tried.errors) == {"flash", "math"}
    assert "efficient" in tried.left_out  # needs CUDA
    assert 0 < tried.errors["flash"] <= MAX_ERROR[dtype]
    assert all(milliseconds > 0 for milliseconds in tried.milliseconds.values())


@pytest.mark.parametrize("queries", [None, 5])
def test_a_bias_is_tried_with_its_gradient(queries):
    tried = benchmark_kernels(["flash", "math"], dataclasses.replace(BIASED, queries=queries), torch.bfloat16, CPU)
    assert set(tried.milliseconds) == {"math"}
    assert 1e-4 < tried.errors["math"] <= MAX_ERROR[torch.bfloat16]
    assert "flash" in tried.left_out


def test_the_reference_does_not_depend_on_its_chunks():
    shape = dataclasses.replace(BIASED, images=attention_trial._REFERENCE_IMAGES + 3, queries=5)
    assert 0 < benchmark_kernels(["math"], shape, torch.float32, CPU).errors["math"] < 1e-5


def test_a_kernel_beyond_the_bound_is_left_out(monkeypatch):
    monkeypatch.setitem(MAX_ERROR, torch.bfloat16, 1e-5)
    tried = benchmark_kernels(["flash", "math"], SHAPE, torch.bfloat16, CPU)
    assert not tried.milliseconds
    assert all(reason.startswith("error ") for reason in tried.left_out.values())


def test_each_gradient_is_compared_and_nan_never_passes():
    reference = [torch.ones(2, 3, 4), torch.ones(2, 3, 12) * torch.tensor([1.0, 1000.0, 1.0]).repeat_interleave(4)]
    wrong = [each.clone() for each in reference]
    assert attention_trial._largest_error(wrong, reference) == 0
    wrong[1][..., :4] = 2  # the queries', a thousandth of the keys'
    assert attention_trial._largest_error(wrong, reference) == pytest.approx(1)
    wrong[1][0, 0, 11] = float("nan")
    error = attention_trial._largest_error(wrong, reference)
    assert not error <= 1e9


def test_trying_kernels_moves_no_random_number():
    before = torch.get_rng_state()
    benchmark_kernels(["math"], dataclasses.replace(BIASED, queries=5), torch.float32, CPU)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_fastest_that_passed_is_chosen_and_reported():
    choice = choose_attention_kernel(BIASED, Compute(CPU, "bf16"))
    assert choice.kernel == choice.fallback == "math"  # FlexAttention has no backward pass on a CPU
    assert set(choice.left_out) == {"flash", "cudnn", "efficient", "flex"}
    assert allowed() == {"math"}
    line = choice.describe()
    assert line.startswith("Attention kernel: math; math ")
    assert "3 images" in line
    assert "flash (takes no bias)" in line
    assert "\n" not in line


def test_a_trial_that_fails_leaves_the_choice_to_torch_without_cudnn():
    torch.backends.cuda.enable_cudnn_sdp(True)
    choice = choose_attention_kernel(SHAPE, Compute(torch.device("meta"), "bf16"))
    assert choice.kernel is None
    assert "trial" in choice.left_out
    assert "without cuDNN" in choice.describe()
    assert allowed() == {"flash", "efficient", "math"}


@pytest.mark.parametrize(
    ("kernel", "order"),
    [
        ("flash", ["flash", "efficient", "math"]),
        ("efficient", ["efficient", "math"]),
        ("cudnn", ["cudnn", "efficient", "math"]),  # torch's own order has cuDNN behind math on some GPUs
        ("math", ["math"]),
    ],
)
def test_the_chosen_backend_comes_first_and_efficient_before_math(kernel, order):
    """What it does not support, as fp32 beside bf16, does not fall to math as long as `efficient` supports it."""
    apply_choice(AttentionChoice(kernel, kernel))
    named = {int(backend): name for name, backend in SDPA.items()}
    by_priority = [named[number] for number in torch._C._get_sdp_priority_order() if number in named]
    assert [name for name in by_priority if name in allowed()] == order
    assert torch.compiler.config.cache_key_tag == f"sdpa:{','.join(order)}"


def test_without_a_way_to_set_the_order_cudnn_stands_alone_before_math(monkeypatch):
    monkeypatch.delattr(torch._C, "_set_sdp_priority_order")
    apply_choice(AttentionChoice("cudnn", "cudnn"))
    assert allowed() == {"cudnn", "math"}
    monkeypatch.undo()


def test_flex_attention_leaves_the_rest_to_the_fastest_backend():
    apply_choice(AttentionChoice("flex", "efficient"))
    assert allowed() == {"efficient", "math"}


def test_all_processes_take_the_choice_of_the_first(tmp_path):
    port = free_port()

    def work(rank: int) -> int:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        compute = join_compute(Launched(), Compute(CPU, "bf16"))
        choice = choose_attention_kernel(SHAPE, compute)
        (tmp_path / str(rank)).write_text(f"{choice} {sorted(allowed())}")
        compute.world.gather(None)  # the first holds the store that the other asks
        shutdown()
        return 0

    children = [Child(lambda rank=rank: work(rank)) for rank in range(2)]
    assert [child.ended(60).code for child in children] == [0, 0]
    first, second = ((tmp_path / str(rank)).read_text() for rank in range(2))
    assert first == second  # milliseconds and all
    assert "milliseconds={'" in first


def test_a_trial_needs_less_memory_with_fewer_images(monkeypatch):
    tried_on = []

    def short_of_memory(kernels, shape, dtype, device):
        tried_on.append(shape.images)
        if shape.images > 1:
            raise torch.OutOfMemoryError("out of memory")
        return benchmark_kernels(kernels, shape, dtype, device)

    monkeypatch.setattr("beitcli.runtime.compute.attention_choice.benchmark_kernels", short_of_memory)
    choice = benchmark_all(dataclasses.replace(SHAPE, images=5), Compute(CPU, "fp32"))
    assert tried_on == [5, 2, 1]
    assert choice.images == 1
    assert choice.kernel in {"flash", "math"}
