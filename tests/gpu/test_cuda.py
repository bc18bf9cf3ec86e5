"""What only a GPU can show; these need CUDA and are left out elsewhere."""

from __future__ import annotations

import shutil

import pytest
import torch

from beitcli.data.color import apply_color
from beitcli.data.finetuning_view import erase
from beitcli.data.token_cache import TokenCache
from beitcli.data.views import IMAGENET_MEAN, IMAGENET_STD, normalize
from beitcli.engine.cached_tokens import CachedTokens
from beitcli.engine.events import ignore
from beitcli.runtime.attention_kernels import candidates, fastest
from beitcli.runtime.checkpoint import newest_checkpoint

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")

TINY = ("--recipe", "tiny", "--image-size", 32, "--num-masked", 6, "--batch-size", 8, "--device", "cuda")


def test_tokenize_computes_in_fp32_on_a_gpu_too(beit, labelled_folder, tokenizer_run):
    words = ("tokenize", labelled_folder, "--tokenizer", tokenizer_run, "--device", "cuda")
    assert beit(*words).out == beit(*words, "--precision", "fp32").out


def test_normalize_waits_for_no_device():
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8, device="cuda")
    normalize(images, IMAGENET_MEAN, IMAGENET_STD)
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert normalize(images, IMAGENET_MEAN, IMAGENET_STD).is_cuda
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_erasing_waits_for_no_device_and_gives_what_a_cpu_gives():
    boxes = torch.tensor([[0, 0, 0, 0], [2, 1, 7, 5], [0, 0, 8, 3]], dtype=torch.int32)
    noise, images = torch.randn(3 * (5 * 4 + 8 * 3)), torch.zeros(3, 3, 8, 8)
    on_cpu = erase(images.clone(), boxes, noise)
    there = [tensor.cuda() for tensor in (images, boxes, noise)]
    erase(*there)
    torch.cuda.set_sync_debug_mode("error")
    try:
        made = erase(*there)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(made.cpu(), on_cpu)


def test_apply_color_waits_for_no_device_and_gives_what_a_cpu_gives():
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    colors = torch.tensor([1.2, -0.5, 0, 255, 0.9, 0.1, 4, 0, 250]).repeat(4, 1)
    on_cpu = apply_color(images, colors, IMAGENET_MEAN, IMAGENET_STD)
    images, colors = images.cuda(), colors.cuda()
    apply_color(images, colors, IMAGENET_MEAN, IMAGENET_STD)
    torch.cuda.set_sync_debug_mode("error")
    try:
        made = apply_color(images, colors, IMAGENET_MEAN, IMAGENET_STD)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.allclose(made.cpu(), on_cpu, atol=1e-5)


@pytest.mark.parametrize("head", ["faster-rcnn", "mask-rcnn"])
def test_detection_runs_and_is_measured(tmp_path, beit, head):
    run = tmp_path / "run"
    words = (
        "--recipe",
        "tiny-detect",
        "--head",
        head,
        "--limit",
        40,
        "--split",
        "val",
        "--size",
        32,
        "--device",
        "cuda",
    )
    made = beit("finetune", "sample", "--init", "random", *words, "--steps", 4, "--batch-size", 8, "--out", run)
    assert made.code == 0, made.err
    assert beit("eval", run, "sample", "--limit", 16, "--device", "cuda").code == 0


def test_new_tokens_leave_the_device_without_waiting_and_all_are_kept(tmp_path):
    cache = TokenCache(tmp_path, {"of": "a test"}, 4, 16)
    known = CachedTokens(cache, lambda part: part["token_images"].long(), 8, ignore)

    def batch(number: int) -> dict[str, torch.Tensor]:
        places = torch.tensor([[0, 2 * number + row, 7] for row in range(2)])
        rows = {"visual_tokens": torch.full((2, 4), -1), "token_place": places}
        return {name: tensor.cuda() for name, tensor in rows.items()} | {
            "token_images": torch.full((2, 4), number % 16, dtype=torch.uint8, device="cuda")
        }

    known.complete(batch(0))  # the first of each shape may allocate
    later = [batch(number) for number in range(1, 20)]
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for each in later[:4]:
            assert known.complete(each)["visual_tokens"].is_cuda
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for each in later[4:]:
        known.complete(each)
    known.flush()
    assert cache.written == 40
    assert [cache.row(0, index, 7).tolist() for index in (0, 21, 39)] == [[0] * 4, [10] * 4, [3] * 4]


def test_dry_run_tells_the_micro_batch_that_a_run_finds(beit, labelled_folder, tokenizer_run):
    words = ("pretrain", labelled_folder, *TINY, "--tokenizer", tokenizer_run, "--no-compile", "--workers", 0)
    ended = beit(*words, "--steps", 6, "--dry-run", "--json")
    assert ended.code == 0
    assert ended.lines[-1]["plan"]["micro-batch"] == "8 (1 a step)"


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_pretraining_runs_and_goes_on(tmp_path, beit, labelled_folder, tokenizer_run, precision):
    run = tmp_path / "run"
    words = ("pretrain", labelled_folder, *TINY, "--tokenizer", tokenizer_run, "--precision", precision, "--workers", 2)
    assert beit(*words, "--steps", 6, "--save-every", 3, "--out", run).code == 0
    shutil.rmtree(run / "checkpoints" / "step-0000006")
    assert beit("pretrain", "--out", run, "--resume").code == 0
    newest = newest_checkpoint(run)
    assert newest is not None
    assert newest.trainer["step"] == 6


def test_finetune_and_eval_agree(tmp_path, beit, labelled_folder):
    words = ("finetune", labelled_folder, "--init", "random", "--recipe", "tiny", "--size", 32, "--steps", 3)
    ended = beit(*words, "--val", labelled_folder, "--device", "cuda", "--out", tmp_path / "run", "--json")
    measured = beit("eval", tmp_path / "run", labelled_folder, "--device", "cuda")
    assert measured.lines[0]["top1"] == ended.lines[0]["top1"]


def test_a_micro_batch_is_found_and_kept(tmp_path, beit, labelled_folder, tokenizer_run):
    words = ("pretrain", labelled_folder, *TINY, "--tokenizer", tokenizer_run, "--no-compile", "--workers", 0)
    run = tmp_path / "run"
    assert beit(*words, "--steps", 6, "--log-every", 3, "--out", run).code == 0
    newest = newest_checkpoint(run)
    assert newest is not None
    assert newest.trainer["micro_batch"] == 8


def test_the_chosen_attention_kernel_gives_finite_gradients_at_every_length():
    for length in (197, 192, 576, 577):
        query = torch.empty(2, 4, length, 64, device="cuda", dtype=torch.bfloat16)
        bias = query.new_empty(1, 4, length, length)
        assert fastest(candidates(length, True), query, query, bias) is not None
