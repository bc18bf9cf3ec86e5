"""Which arithmetic training steps get on a CPU: by error first, then by speed, and as before on unknown hardware."""

from __future__ import annotations

import contextlib
import json
import platform
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from beitcli.runtime.compute import arithmetic_choice, arithmetic_trial, cpu_matmul
from beitcli.runtime.compute.arithmetic_choice import choose_arithmetic, decide, restored_arithmetic
from beitcli.runtime.compute.arithmetic_trial import (
    BF16,
    MAX_ERROR,
    TRIAL,
    BlockShape,
    Tried,
    benchmark_arithmetic,
    contexts,
    product_error,
)
from beitcli.runtime.compute.cpu_matmul import ONEDNN, TORCH, Arithmetic, matmul_by, routed_matmul
from beitcli.runtime.compute.device import Compute, tf32_disabled

SHAPE = BlockShape(images=2, length=17, width=64, heads=2, hidden=256)
CPU = torch.device("cpu")
HAS_AMX = bool(cpu_matmul._capabilities().get("amx_bf16"))


class Rounded(TorchDispatchMode):
    """Matrix products with factors of fewer bits, as units of low precision compute them."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.mm.default, torch.ops.aten.bmm.default):
            args = tuple(self.rounded(each) if each.dtype == torch.float32 else each for each in args)
        return func(*args, **(kwargs or {}))

    def rounded(self, factor: torch.Tensor) -> torch.Tensor:
        mantissa, exponent = torch.frexp(factor)
        return torch.ldexp((mantissa * 2**self.bits).round() / 2**self.bits, exponent)


@pytest.fixture
def processor(monkeypatch, tmp_path):
    """A processor with some features, on which arithmetics take so many milliseconds."""

    def be(*features: str, **milliseconds: float) -> None:
        monkeypatch.setenv("BEIT_CACHE_DIR", str(tmp_path))
        monkeypatch.setattr(cpu_matmul, "_capabilities", lambda: dict.fromkeys(features, True))
        monkeypatch.setattr(platform, "machine", lambda: "x86_64")
        monkeypatch.setattr(arithmetic_choice, "_remembered", {})

        def benchmark(shape, candidates):
            return Tried({name: milliseconds[name] for name in candidates})

        monkeypatch.setattr(arithmetic_choice, "benchmark_arithmetic", benchmark)
        monkeypatch.setattr(arithmetic_choice, "matmul_by", lambda library: Rounded(24))  # oneDNN's are exact here

    return be


@pytest.mark.parametrize(("bits", "what"), [(8, "bf16"), (11, "tf32"), (16, "two bf16")])
def test_products_with_rounded_factors_do_not_pass_for_fp32(bits, what):
    tried = benchmark_arithmetic(SHAPE, {TORCH: contextlib.nullcontext, ONEDNN: partial(Rounded, bits)})
    assert tried.left_out[ONEDNN] == f"error {tried.errors[ONEDNN]:.1g} above 4e-06", what
    assert ONEDNN not in tried.milliseconds
    assert tried.errors[TORCH] < MAX_ERROR[TORCH] / 4
    assert decide(tried) == Arithmetic(about="fp32")


def test_a_reordered_fp32_sum_passes():
    """24 bits of mantissa: nothing is rounded, so it is timed and may be taken."""
    tried = benchmark_arithmetic(SHAPE, {TORCH: contextlib.nullcontext, ONEDNN: partial(Rounded, 24)})
    assert not tried.left_out
    assert set(tried.milliseconds) == {TORCH, ONEDNN}


def test_what_cannot_be_computed_is_left_out_with_the_reason():
    def broken():
        raise RuntimeError("no such kernel")

    tried = benchmark_arithmetic(SHAPE, {TORCH: contextlib.nullcontext, ONEDNN: broken})
    assert tried.left_out == {ONEDNN: "RuntimeError: no such kernel"}
    assert decide(tried).matmul == TORCH


@pytest.mark.skipif(not HAS_AMX, reason="needs a processor whose oneDNN rounds fp32 products (AMX)")
def test_onednns_bf16_products_do_not_pass_for_fp32():
    assert product_error(SHAPE, partial(matmul_by, ONEDNN)) > MAX_ERROR[ONEDNN]
    assert choose_arithmetic(SHAPE, "fp32", "auto").matmul == TORCH
    assert "rounds them on this processor" in choose_arithmetic(SHAPE, "fp32", ONEDNN).note


@pytest.mark.parametrize(
    ("milliseconds", "precision", "matmul", "about"),
    [
        ({TORCH: 10.0, ONEDNN: 5.0}, "fp32", ONEDNN, "fp32 (oneDNN, 2.0x torch's library here)"),
        ({TORCH: 10.0, ONEDNN: 9.0}, "fp32", TORCH, "fp32"),  # within the noise
        ({TORCH: 10.0, ONEDNN: 5.0, BF16: 2.5}, "bf16", TORCH, "bf16 (2.0x fp32 here)"),
        ({TORCH: 10.0, ONEDNN: 5.0, BF16: 4.5}, "fp32", ONEDNN, "fp32 (oneDNN, 2.0x torch's library here)"),
        ({TORCH: 10.0, BF16: 30.0}, "fp32", TORCH, "fp32"),
        ({}, "fp32", TORCH, "fp32"),
    ],
)
def test_the_faster_arithmetic_is_taken_by_a_margin(milliseconds, precision, matmul, about):
    assert decide(Tried(milliseconds)) == Arithmetic(precision, matmul, about)


def test_bf16_is_taken_only_where_it_is_left_open(processor):
    processor("avx512_f", "avx512_bf16", torch=10.0, onednn=5.0, bf16=1.0)
    assert set(contexts()) == {TORCH, ONEDNN, BF16}
    assert choose_arithmetic(SHAPE, "auto", "auto").precision == "bf16"
    assert choose_arithmetic(SHAPE, "auto", "torch").about == "bf16 (10.0x fp32 here)"
    assert choose_arithmetic(SHAPE, "fp32", "auto").matmul == ONEDNN
    assert choose_arithmetic(SHAPE, "fp32", "torch").matmul == TORCH


@pytest.mark.parametrize(
    "tried",
    [
        Tried(errors={ONEDNN: 3e-7, BF16: 0.1}, left_out={BF16: "error 0.1 above 1e-02"}),
        Tried(errors={ONEDNN: 3e-7, BF16: 2e-3}, left_out={TRIAL: "MemoryError: "}),
    ],
)
def test_a_library_that_is_asked_for_needs_no_times(processor, monkeypatch, tried):
    processor("avx512_f", "avx512_bf16")
    monkeypatch.setattr(arithmetic_choice, "benchmark_arithmetic", lambda shape, candidates: tried)
    assert choose_arithmetic(SHAPE, "auto", ONEDNN) == Arithmetic("fp32", ONEDNN, "fp32 (oneDNN)")
    assert choose_arithmetic(SHAPE, "auto", TORCH) == Arithmetic(about="fp32")


def test_an_unknown_processor_computes_as_before(processor):
    processor(torch=10.0, onednn=1.0, bf16=1.0)
    assert set(contexts()) == {TORCH}
    assert choose_arithmetic(SHAPE, "auto", "auto") == Arithmetic(about="fp32")
    asked = choose_arithmetic(SHAPE, "fp32", ONEDNN)
    assert (asked.matmul, "torch hands none to oneDNN" in asked.note) == (TORCH, True)
    resumed = restored_arithmetic(Arithmetic("fp32", ONEDNN), SHAPE)
    assert (resumed.matmul, "differ by rounding" in resumed.note) == (TORCH, True)


def test_bf16_that_goes_on_without_units_for_it_is_told(processor):
    processor("avx512_f", "avx512_bf16")
    assert restored_arithmetic(Arithmetic("bf16"), SHAPE).note == ""
    processor("avx512_f")
    resumed = restored_arithmetic(Arithmetic("bf16"), SHAPE)
    assert (resumed.precision, "which this processor emulates" in resumed.note) == ("bf16", True)
    assert "--precision fp32" in resumed.note


def test_arm_is_not_asked_for_its_rounded_products(processor, monkeypatch):
    processor("bf16", "sve", torch=10.0, bf16=4.0)
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert set(contexts()) == {TORCH, BF16}


def test_a_measurement_is_kept_and_used_again(processor, tmp_path, monkeypatch):
    processor("avx512_f", torch=10.0, onednn=5.0)
    first = choose_arithmetic(SHAPE, "fp32", "auto")
    (path,) = (tmp_path / "arithmetic").iterdir()
    assert json.loads(path.read_text())["about"]["shape"]["width"] == 64
    processor("avx512_f", torch=1.0, onednn=5.0)  # as on a busy machine
    assert choose_arithmetic(SHAPE, "fp32", "auto") == first
    monkeypatch.setattr(arithmetic_choice, "_remembered", {})
    path.write_text('{"tried": {"milliseconds": {"torch": -1}}}')
    assert choose_arithmetic(SHAPE, "fp32", "auto").matmul == TORCH  # measured again


def broken_kernel(library: str):
    raise RuntimeError("no such kernel")


@pytest.mark.parametrize("products", [lambda library: Rounded(8), broken_kernel])
def test_onednns_error_is_measured_again_whenever_it_is_chosen(processor, monkeypatch, products):
    processor("avx512_f", "avx512_bf16", torch=10.0, onednn=4.0, bf16=3.5)
    assert choose_arithmetic(SHAPE, "auto", "auto").matmul == ONEDNN
    monkeypatch.setattr(arithmetic_choice, "matmul_by", products)
    assert choose_arithmetic(SHAPE, "auto", "auto").about == "bf16 (2.9x fp32 here)"  # the better of the others
    assert choose_arithmetic(SHAPE, "fp32", ONEDNN).note.startswith("fp32 products stay with torch's library: oneDNN")
    assert choose_arithmetic(SHAPE, "fp32", TORCH).matmul == TORCH


def test_what_failed_once_is_tried_again(processor, tmp_path, monkeypatch):
    def short(shape, candidates):
        def refused():
            raise MemoryError

        return benchmark_arithmetic(shape, {TORCH: contextlib.nullcontext, ONEDNN: refused})

    processor("avx512_f", torch=10.0, onednn=5.0)
    enough = arithmetic_choice.benchmark_arithmetic
    monkeypatch.setattr(arithmetic_choice, "benchmark_arithmetic", short)
    assert choose_arithmetic(SHAPE, "fp32", "auto").matmul == TORCH
    assert not (tmp_path / "arithmetic").exists()
    monkeypatch.setattr(arithmetic_choice, "benchmark_arithmetic", enough)
    assert choose_arithmetic(SHAPE, "fp32", "auto").matmul == ONEDNN
    (path,) = (tmp_path / "arithmetic").iterdir()
    kept = json.loads(path.read_text())
    kept["tried"] = {"milliseconds": {}, "errors": {TORCH: 3e-7}, "left_out": {ONEDNN: "MemoryError: "}}
    path.write_text(json.dumps(kept))  # as an earlier version kept it
    monkeypatch.setattr(arithmetic_choice, "_remembered", {})
    assert choose_arithmetic(SHAPE, "fp32", "auto").matmul == ONEDNN


@pytest.mark.parametrize(
    ("rounds", "settled"),
    [
        ([10, 10, 10], True),
        ([10, 200, 400, 800, 1600], False),
        ([300, 10, 300, 10], True),
        ([800, 810], True),
        ([800, 1600], False),
        ([7000], False),
    ],
    ids=["quiet", "other work", "other work for a while", "slow", "slow beside other work", "a round alone"],
)
def test_times_are_settled_once_the_two_fastest_rounds_agree(monkeypatch, rounds, settled):
    """Each round computes; other work is a clock that goes on, by so many milliseconds a round."""
    now = [0.0]
    monkeypatch.setattr(arithmetic_trial, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    delays = iter([0, 50, *rounds])  # of the comparison with float64, and of the round that does not count

    @contextlib.contextmanager
    def beside_other_work():
        now[0] += next(delays) / 1000
        yield

    tried = benchmark_arithmetic(SHAPE, {TORCH: contextlib.nullcontext, ONEDNN: beside_other_work})
    assert tried.is_settled is settled
    assert tried.milliseconds[ONEDNN] == pytest.approx(min(rounds))
    assert next(delays, None) is None, "rounds went on"


def test_what_other_work_disturbed_is_used_and_not_kept(processor, tmp_path, monkeypatch):
    times = [{TORCH: 10.0, ONEDNN: 5.0}, {TORCH: 10.0, ONEDNN: 10.0}]
    processor("avx512_f")
    monkeypatch.setattr(arithmetic_choice, "benchmark_arithmetic", lambda *_: Tried(times.pop(0), is_settled=False))
    assert choose_arithmetic(SHAPE, "fp32", "auto").matmul == ONEDNN
    assert not (tmp_path / "arithmetic").exists()
    assert choose_arithmetic(SHAPE, "fp32", "auto").matmul == ONEDNN, "within a process it is measured once"
    monkeypatch.setattr(arithmetic_choice, "_remembered", {})
    assert choose_arithmetic(SHAPE, "fp32", "auto").matmul == TORCH


def test_a_measurement_of_the_former_trial_is_made_again(processor, tmp_path, monkeypatch):
    processor("avx512_f", torch=10.0, onednn=5.0)
    monkeypatch.setattr(arithmetic_choice, "_TRIAL", 1)
    choose_arithmetic(SHAPE, "fp32", "auto")
    monkeypatch.setattr(arithmetic_choice, "_TRIAL", 2)
    choose_arithmetic(SHAPE, "fp32", "auto")
    assert len(list((tmp_path / "arithmetic").iterdir())) == 2


def test_a_cache_that_cannot_be_written_ends_nothing(processor, tmp_path, monkeypatch):
    processor("avx512_f", torch=10.0, onednn=5.0)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BEIT_CACHE_DIR", str(tmp_path / "file"))
    assert choose_arithmetic(SHAPE, "fp32", "auto").matmul == ONEDNN


@pytest.mark.parametrize(("width", "length", "images"), [(768, 197, 64), (192, 65, 64), (64, 17, 128), (1024, 577, 8)])
def test_the_benchmark_is_short_for_every_size(width, length, images):
    shape = BlockShape(images, length, width, width // 32, 4 * width)
    shrunk = shape.shrunk(4e9)
    assert (shrunk.width, shrunk.heads, shrunk.hidden) == (width, shape.heads, 4 * width)
    assert shrunk.images * shrunk.flops <= 4.1e9
    assert shrunk.length == length or shrunk.images == 1


def test_steps_are_routed_and_measurements_and_tokens_are_not():
    compute = Compute(CPU, "fp32", steps=Arithmetic("fp32", ONEDNN))
    with matmul_by(TORCH):
        with compute.training.autocast():
            assert routed_matmul() == ONEDNN
            assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
            with tf32_disabled(CPU):
                assert routed_matmul() == TORCH
                assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"
        assert routed_matmul() == ONEDNN  # for the backward pass
        with compute.autocast():
            assert routed_matmul() == TORCH
        assert torch.get_float32_matmul_precision() == "highest"  # torch.compile reads it


def test_bf16_steps_leave_measurements_in_fp32():
    compute = Compute(CPU, "fp32", steps=Arithmetic("bf16"))
    product = torch.ones(2, 2)
    with compute.training.autocast():
        assert (product @ product).dtype == torch.bfloat16
    with compute.autocast():
        assert (product @ product).dtype == torch.float32
    assert (compute.training.dtype, compute.dtype) == (torch.bfloat16, torch.float32)


@pytest.fixture
def medium():
    """A process whose user has asked for fast fp32 products before."""
    torch.set_float32_matmul_precision("medium")
    yield torch.backends.mkldnn.matmul
    torch.set_float32_matmul_precision("highest")
    torch.backends.mkldnn.matmul.fp32_precision = "none"


def test_the_process_s_own_setting_holds_again(medium):
    with matmul_by(ONEDNN):
        pass
    assert medium.fp32_precision == "bf16"
    steps = Compute(CPU, "fp32", steps=Arithmetic("fp32", ONEDNN))
    with steps.training.autocast(), steps.autocast():
        assert (medium.fp32_precision, routed_matmul()) == ("bf16", TORCH)
    with contextlib.suppress(RuntimeError), matmul_by(ONEDNN):
        raise RuntimeError
    assert (medium.fp32_precision, torch.get_float32_matmul_precision()) == ("bf16", "medium")


def test_torchs_library_is_meant_whatever_the_process_has_set(medium):
    with matmul_by(TORCH):
        assert medium.fp32_precision == "ieee"
        with Compute(CPU, "fp32").autocast(), matmul_by(ONEDNN):
            assert medium.fp32_precision == "bf16"
        assert medium.fp32_precision == "ieee"
    with contexts()[TORCH](), tf32_disabled(CPU):
        assert medium.fp32_precision == "ieee"
    assert medium.fp32_precision == "bf16"


def test_a_traced_function_switches_nothing():
    def product(each: torch.Tensor) -> torch.Tensor:
        with tf32_disabled(CPU):
            return each @ each

    traced = torch.compile(product, backend="eager", fullgraph=True)
    assert torch.equal(traced(torch.ones(2, 2)), torch.full((2, 2), 2.0))


def test_a_setting_made_elsewhere_is_left_alone():
    matmul = torch.backends.mkldnn.matmul
    matmul.fp32_precision = "ieee"
    try:
        with Compute(CPU, "fp32").autocast(), tf32_disabled(CPU):
            assert matmul.fp32_precision == "ieee"
    finally:
        matmul.fp32_precision = "none"
