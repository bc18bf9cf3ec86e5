"""`benchmarks/gpu.py` on a CPU with small sizes: every step runs, and no end of it costs what was measured before."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
STEPS = (
    "environment", "rates", "warm-base", "warm-large", "warm-base-22k", "warm-residual", "warm-others", "tests",
    "parity", "nccl", "base", "large", "base-22k", "checkpoint", "attention", "residual", "loader", "dalle", "peers",
    "commands", "sizes",
)  # fmt: skip
AGAIN = {"warm-large", "warm-base-22k", "warm-residual", "large", "base-22k"}  # modules that another step runs on a CPU
OUTPUTS = ["gpu.json", "gpu.log", "gpu.md", "tests-gpu.xml"]


def start(folder: Path, *words: str, first_on_path: Path | None = None) -> subprocess.Popen[str]:
    """The script, reporting to FOLDER/out, its scratch beside it."""
    arguments = ["--out", str(folder / "out"), "--scratch", str(folder / "scratch"), "--device", "cpu", "--small"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(first_on_path or "")}
    script = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), *arguments, *words]
    return subprocess.Popen(script, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "out" / "gpu.json").read_text())


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 120) -> None:
    """Fails where the script ends before, or takes too long."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def processes_of(folder: Path) -> list[str]:
    """Command lines of living processes that were given a path inside `folder`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in line:
            found.append(line)
    return found


def goals_of(folder: Path) -> list[list[str]]:
    """The cells of the last table of gpu.md."""
    text = (folder / "out" / "gpu.md").read_text()
    rows = text.rpartition("## Goals\n\n")[2].splitlines()
    assert rows[0] == "| goal | measured | held |"
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows[2:]]


def test_every_step_has_a_result_and_the_table_stands_at_the_end(tmp_path):
    process = start(tmp_path, "--deadline", "900", "--skip", ",".join(AGAIN))
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output
    document = report(tmp_path)
    assert set(document["steps"]) == set(STEPS)
    ran = {name: step for name, step in document["steps"].items() if name not in AGAIN}
    assert list(ran) == [name for name in STEPS if name not in AGAIN]
    ended = {name: (step["status"], step.get("errors", {})) for name, step in ran.items()}
    assert ended == {name: ("ok", {}) for name in STEPS if name not in AGAIN}
    assert all(len(step["results"]) > 1 for step in ran.values())
    assert {document["steps"][name]["status"] for name in AGAIN} == {"not asked for"}
    assert document["complete"]
    table = goals_of(tmp_path)
    assert [row[0] for row in table] == [goal["goal"] for goal in document["goals"]]
    held = {row[0]: row[2] for row in table}
    assert held["fp32 on the device: loss within 1e-5, gradient within 1e-3 of the CPU's (small, B)"] == "yes"
    assert held["A process group of one: all-reduce, DDP, FSDP2 as the plain step"] == "yes"
    assert "NO" not in held.values()
    text = (tmp_path / "out" / "gpu.md").read_text()
    assert text.rstrip().endswith(output.rpartition("## Goals\n\n")[2].rstrip())
    assert [line for line in text.splitlines() if line.startswith("## ")][:2] == ["## Steps", "## Goals"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == OUTPUTS
    assert_numbers_are_sound({name: step["results"] for name, step in ran.items()})


def assert_numbers_are_sound(results: dict[str, dict[str, Any]]) -> None:
    compiled, base = results["base"]["compiled"], results["base"]["gflop_an_image"]
    assert 0 < base["executed"] < base["model"]
    sustained = results["rates"]["square"]["bf16"]["tflops"]["median"]
    rate = compiled["images_per_second"]["median"]
    assert compiled["utilisation"] == pytest.approx(base["model"] * rate / 1e3 / sustained)
    assert compiled["utilisation_executed"] == pytest.approx(base["executed"] * rate / 1e3 / sustained)
    cold = results["warm-base"]["base"]["cold_first_step_seconds"]
    assert compiled["cold_first_step_seconds_in_warm"] == cold > 0
    peers = results["peers"]
    own = peers["ours"]["images_per_second"]["median"]
    assert peers["ratio"]["timm, compiled"] == pytest.approx(
        own / peers["timm, compiled"]["images_per_second"]["median"]
    )
    training = results["loader"]["training"]
    for name in ("kept tokens", "online tokens, fp16"):
        assert training[f"share: {name}"] == pytest.approx(training[name] / training["synthetic"])


def test_a_killed_script_leaves_whole_files_and_no_processes(tmp_path):
    process = start(tmp_path, "--only", "environment,rates,base")
    path = tmp_path / "out" / "gpu.json"
    wait_until(lambda: path.exists() and report(tmp_path)["steps"]["rates"]["status"] == "ok", process)
    process.kill()
    process.communicate()
    document = report(tmp_path)
    assert document["steps"]["environment"]["results"]["torch"]["version"]
    assert document["steps"]["rates"]["results"]["square"]["bf16"]["tflops"]["median"] > 0
    assert document["steps"]["base"] == {"status": "not reached"}
    assert document["steps"]["peers"] == {"status": "not asked for"}
    assert not document["complete"]
    assert len(goals_of(tmp_path)) == len(document["goals"])
    deadline = time.monotonic() + 30
    while processes_of(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes_of(tmp_path) == []


def test_a_signal_keeps_what_the_running_step_has_measured(tmp_path):
    process = start(tmp_path, "--only", "base,dalle")
    partial = tmp_path / "scratch" / "results" / "base.json"
    wait_until(lambda: partial.exists() and "eager" in json.loads(partial.read_text())["results"], process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, output
    steps = report(tmp_path)["steps"]
    assert steps["base"]["status"] == "interrupted"
    assert steps["base"]["results"]["eager"]["images_per_second"]["median"] > 0
    assert steps["dalle"] == {"status": "not reached"}
    assert processes_of(tmp_path) == []


def test_a_step_past_its_limit_and_a_missing_package_cost_themselves_alone(tmp_path):
    (tmp_path / "path").mkdir()
    missing = 'raise ModuleNotFoundError("No module named \'transformers\'", name="transformers")\n'
    (tmp_path / "path" / "transformers.py").write_text(missing)
    words = ("--only", "rates,peers", "--limit", "rates=0.01")
    process = start(tmp_path, *words, first_on_path=tmp_path / "path")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    steps = report(tmp_path)["steps"]
    assert steps["rates"]["status"] == "timed out"
    assert steps["peers"]["status"] == "errors"
    assert list(steps["peers"]["errors"]) == ["transformers, compiled"]
    assert "No module named 'transformers'" in steps["peers"]["errors"]["transformers, compiled"]
    assert steps["peers"]["results"]["timm, compiled"]["images_per_second"]["median"] > 0


@pytest.mark.parametrize("words", [("--deadline", "5"), ("--deadline", "3", "--limit", "environment=60")])
def test_what_does_not_fit_before_the_deadline_is_not_reached(tmp_path, words):
    process = start(tmp_path, "--only", "environment,rates", *words)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert {report(tmp_path)["steps"][name]["status"] for name in ("environment", "rates")} == {"not reached"}


@pytest.mark.parametrize("words", [("--only", "nothing"), ("--limit", "rates"), ("--limit", "nothing=3")])
def test_unknown_steps_are_refused(tmp_path, words):
    process = start(tmp_path, *words)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2, output
    assert not (tmp_path / "out").exists()


def test_kernels_are_grouped_and_idle_time_is_what_none_covers(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from gpu_steps.profiling import group_of, idle_share, summary

    kernels = {
        "nvjet_tst_256x128_64x4_1x2_h_bz_coopA_TNT": "gemm",
        "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_cublas": "gemm",
        "fmha_cutlassF_bf16_aligned_64x64_rf_sm80(PyTorchMemEffAttention::Params)": "attention",
        "void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel": "attention",
        "cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16": "attention",
        "void cudnn::fusion::convert_dq_to_16bits<true, 64>": "attention",
        "void cudnn::fusion::compute_dot_do_o<false, 64>": "attention",
        "triton_poi_fused_addmm_gelu_3": "norm and elementwise",
        "triton_red_fused__log_softmax_nll_loss_forward_7": "cross entropy",
        "triton_tem_fused_mm_5": "gemm",
        "triton_tem_fused_flex_attention_2": "attention",
        "void at::native::multi_tensor_apply_kernel<FusedAdamMathFunctor>": "optimizer",
        "void at::native::vectorized_elementwise_kernel<4, GeluCUDAKernel>": "norm and elementwise",
        "Memcpy HtoD (Pinned -> Device)": "memcpy",
        "sm80_xmma_wgrad_implicit_gemm_indexed_bf16": "convolution",
        "void at::native::conv_depthwise2d_forward_kernel": "convolution",
        "void cudnn::ops::convertTensor_kernel<float, half>": "other",
    }
    assert {name: group_of(name) for name in kernels} == kernels
    spans = [("nvjet_a", 0.0, 10.0), ("triton_poi_b", 5.0, 10.0), ("nvjet_a", 30.0, 10.0)]
    assert idle_share(spans) == pytest.approx(15 / 40)
    found = summary(spans, steps=2)
    assert found["groups_ms"] == pytest.approx({"gemm": 0.01, "norm and elementwise": 0.005})
    assert [(top["name"], top["calls"]) for top in found["top"]] == [("nvjet_a", 1.0), ("triton_poi_b", 0.5)]


@pytest.fixture
def context(tmp_path, monkeypatch):
    """Of a step with small sizes on the CPU."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import torch
    from gpu_steps.context import Context
    from gpu_steps.schedule import STEPS

    monkeypatch.setattr(torch, "compile", torch.compile)  # which a small context replaces
    folders = {"out": tmp_path, "scratch": tmp_path, "result": tmp_path / "result.json"}
    given = argparse.Namespace(device="cpu", small=True, seed=0, **folders)
    return Context(given, next(step for step in STEPS if step.name == "base"))


def test_executed_flops_are_those_that_torch_counts(context):
    from gpu_steps.setups import executed_flops, make_setup, vocabulary
    from torch.utils.flop_counter import FlopCounterMode

    setup = make_setup(context, "base", 4, compile_model=False, drop_path=0.0)
    with FlopCounterMode(display=False) as counter:
        setup.step()
    config = setup.task.config
    assert counter.get_total_flops() == 4 * executed_flops(config.architecture, config.num_masked, vocabulary(context))


def test_a_choice_of_attention_is_undone(context):
    import torch
    from gpu_steps.setups import attention_choice_undone, sdpa_flags

    from beitcli.runtime.compute.attention_choice import AttentionChoice, apply_choice

    before, tag = sdpa_flags(), torch.compiler.config.cache_key_tag
    order = torch._C._get_sdp_priority_order()
    with attention_choice_undone():
        apply_choice(AttentionChoice("efficient", "efficient"))
        torch.compiler.config.cache_key_tag = "another"
        assert sdpa_flags() == {"flash": False, "efficient": True, "cudnn": False, "math": True} != before
    assert (sdpa_flags(), torch.compiler.config.cache_key_tag) == (before, tag)
    assert torch._C._get_sdp_priority_order() == order


def test_tokens_in_tf32_are_those_of_encode_on_a_cpu(context):
    import torch
    from gpu_steps.dalle import in_tf32, random_tokenizer, smooth_images

    tokenizer, pixels = random_tokenizer(context, 2), smooth_images(2, 16, 0)
    assert torch.equal(in_tf32(tokenizer)(pixels), tokenizer.encode(pixels))


def test_both_forms_of_the_bias_give_the_gradients_of_fp32(context):
    from gpu_steps.attention import BACKENDS, difference, drawn, passes, reference_passes, sdpa

    packed, bias, gradient = drawn(context, (2, 17, 16, 40), has_bias=True)  # 40 images are two parts of the reference
    expected = reference_passes(packed, bias, gradient)
    for padded in (False, True):
        found = passes(sdpa(BACKENDS["math"], padded=padded), packed, bias, gradient)
        assert [each.shape for each in found] == [each.shape for each in expected]
        assert all(0 < difference(*pair) < 0.02 for pair in zip(found, expected, strict=True))
