"""One, two, three and four processes do the same: images, losses, metrics, files; a run goes on with any number."""

from __future__ import annotations

import json
import os
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.layers import drop

from beitcli.runtime.storage.checkpoint import newest_checkpoint
from beitcli.runtime.weight_files.reader import read_tensors
from tests.faults.runs import note_images
from tests.helpers.processes import in_processes
from tests.helpers.scenes import IGNORE

pytestmark = pytest.mark.slow

STEPS, BATCH = 6, 12
COMPARED = {"loss", "lr", "gradient_norm", "masked_accuracy", "held_out_loss", "held_out_masked_accuracy", "main_loss"}
UNREPEATED = {"images_per_second", "data_wait_share", "save_stall_seconds", "compiled"}


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,001 images of three classes; one of them is damaged."""
    root = tmp_path_factory.mktemp("many")
    generator = np.random.default_rng(5)
    for number in range(1001):
        name = ("blue", "green", "red")[number % 3]
        (root / name).mkdir(exist_ok=True)
        pixels = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((36, 34), Image.Resampling.NEAREST).save(root / name / f"{number:04d}.png")
    (root / "red" / "0500.png").write_bytes(b"\x89PNG of nothing")
    return root


def pretraining(data: Path, tokenizer: Path, out: Path, *more: object) -> list[object]:
    """24 images in batches of 12, the third step's from two epochs; drop path, jitter and masks draw."""
    return [
        "pretrain", data, "--recipe", "tiny", "--tokenizer", tokenizer, "--image-size", 32, "--num-masked", 6,
        "--steps", STEPS, "--batch-size", BATCH, "--drop-path", 0.2, "--color-jitter", 0.4, "--save-every", 3,
        "--log-every", 1, "--workers", 0, "--device", "cpu", "--quiet", "--out", out, *more,
    ]  # fmt: skip


def run_in(size: int, words: list[object], folder: Path | None = None) -> None:
    before = (lambda rank: note_images(folder / f"images-{rank}.jsonl")) if folder else (lambda rank: None)
    for ended in in_processes(size, words, before=before):
        assert ended.code == 0, ended.err


def lines_of(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_alike(one: Path, other: Path, tolerance: float = 2e-5, later: float | None = None) -> None:
    """Figures of every step and final weights, within fp32's rounding.

    Args:
        later: Tolerance after the first step, in place of comparing weights: where a gradient is zero but for rounding
            (of a bias before batch norm), AdamW makes a whole step of it.
    """
    first, second = lines_of(one), lines_of(other)
    assert [line["step"] for line in first] == [line["step"] for line in second]
    for left, right in zip(first, second, strict=True):
        assert left.keys() - UNREPEATED == right.keys() - UNREPEATED
        for name in left.keys() & COMPARED:
            allowed = tolerance if left["step"] == 1 or later is None else later
            assert right[name] == pytest.approx(left[name], rel=allowed, abs=allowed), (left["step"], name)
    if later is not None:
        return
    for left, right in zip(*(_weights(run).items() for run in (one, other)), strict=True):
        assert left[0] == right[0]
        torch.testing.assert_close(right[1], left[1], rtol=2e-3, atol=2e-4)


def _weights(run: Path) -> dict[str, torch.Tensor]:
    newest = newest_checkpoint(run)
    assert newest is not None
    return read_tensors(newest.path / "model.safetensors")


def images_of(folder: Path) -> dict[str, list[int]]:
    """Of every step, all processes together."""
    seen: dict[str, list[int]] = {}
    for path in sorted(folder.glob("images-*.jsonl")):
        for line in path.read_text().splitlines():
            for step, indices in json.loads(line).items():
                seen.setdefault(step, []).extend(indices)
    return {step: sorted(indices) for step, indices in seen.items()}


@pytest.fixture(scope="module")
def alone(labelled_folder: Path, tokenizer_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process, with its images."""
    folder = tmp_path_factory.mktemp("alone")
    run_in(1, pretraining(labelled_folder, tokenizer_run, folder / "run"), folder)
    return folder


@pytest.mark.parametrize("size", [2, 3, 4])
def test_any_number_of_processes_sees_the_same_images_and_losses(alone, labelled_folder, tokenizer_run, tmp_path, size):
    run_in(size, pretraining(labelled_folder, tokenizer_run, tmp_path / "run"), tmp_path)
    assert images_of(tmp_path) == images_of(alone)
    assert_alike(alone / "run", tmp_path / "run")


@pytest.mark.parametrize("size", [2, 3])
def test_spread_model_learns_the_same_and_its_run_goes_on_whole(alone, labelled_folder, tokenizer_run, tmp_path, size):
    spread = pretraining(labelled_folder, tokenizer_run, tmp_path / "run", "--shard", "--micro-batch", 3)
    run_in(size, spread)
    assert_alike(alone / "run", tmp_path / "run")
    for path in (tmp_path / "run" / "checkpoints").glob(f"step-{STEPS:07d}/*"):
        path.unlink()
    run_in(
        2,
        [*spread, "--resume"]
        if size == 3
        else pretraining(labelled_folder, tokenizer_run, tmp_path / "run", "--resume"),
    )
    assert_alike(alone / "run", tmp_path / "run")


@pytest.mark.parametrize("more", [(), ("--positions", "shared", "--layer-scale", 0.1)], ids=["absolute", "shared"])
def test_spread_model_in_bf16_learns_as_a_whole_one_does(labelled_folder, tokenizer_run, tmp_path, more):
    for name, own in (("whole", ()), ("spread", ("--shard", "--micro-batch", 3))):
        run_in(2, pretraining(labelled_folder, tokenizer_run, tmp_path / name, "--precision", "bf16", *more, *own))
    assert_alike(tmp_path / "whole", tmp_path / "spread", later=2e-2, tolerance=2e-3)


def test_compressed_gradients_learn_much_the_same_and_not_at_all_otherwise_in_one_process(
    alone, labelled_folder, tokenizer_run, tmp_path
):
    for size in (1, 2):
        run_in(size, pretraining(labelled_folder, tokenizer_run, tmp_path / str(size), "--grad-compression", "bf16"))
    assert all(
        torch.equal(*pair)
        for pair in zip(*(_weights(r).values() for r in (tmp_path / "1", alone / "run")), strict=True)
    )
    assert_alike(alone / "run", tmp_path / "2", later=2e-2, tolerance=1e-2)
    pairs = zip(*(_weights(run).values() for run in (tmp_path / "2", alone / "run")), strict=True)
    assert not all(torch.allclose(*pair, rtol=1e-4, atol=1e-5) for pair in pairs)


def test_a_spread_model_s_gradients_are_not_compressed(labelled_folder, tokenizer_run, tmp_path):
    refused = pretraining(labelled_folder, tokenizer_run, tmp_path / "run", "--shard", "--grad-compression", "bf16")
    (ended,) = in_processes(1, refused)
    assert ended.code == 2
    assert "--shard sums gradients in fp32" in " ".join(ended.err.split())


def test_micro_batches_and_uneven_shares_change_nothing(labelled_folder, tokenizer_run, tmp_path):
    uneven = ("--batch-size", 11)
    run_in(1, pretraining(labelled_folder, tokenizer_run, tmp_path / "one", *uneven))
    run_in(3, pretraining(labelled_folder, tokenizer_run, tmp_path / "three", *uneven, "--micro-batch", 2))
    assert_alike(tmp_path / "one", tmp_path / "three")


@pytest.mark.parametrize("size", [1, 4])
def test_run_of_two_processes_goes_on_with_another_number(alone, labelled_folder, tokenizer_run, tmp_path, size):
    run_in(2, pretraining(labelled_folder, tokenizer_run, tmp_path / "run", "--log-every", 1))
    for path in (tmp_path / "run" / "checkpoints").glob(f"step-{STEPS:07d}/*"):
        path.unlink()  # as if it had been stopped after step 3
    run_in(size, pretraining(labelled_folder, tokenizer_run, tmp_path / "run", "--resume"))
    assert_alike(alone / "run", tmp_path / "run")


def test_pixels_are_a_target_for_several_too(labelled_folder, tmp_path):
    def words(out: Path) -> list[object]:
        plain = pretraining(labelled_folder, Path("none"), out)
        place = plain.index("--tokenizer")
        return [*plain[:place], *plain[place + 2 :], "--target", "pixels"]

    run_in(1, words(tmp_path / "one"))
    run_in(2, words(tmp_path / "two"))
    assert_alike(tmp_path / "one", tmp_path / "two")


def test_tokenizer_is_trained_alike(labelled_folder, tmp_path):
    def words(out: Path) -> list[object]:
        return [
            "train-tokenizer", labelled_folder, "--recipe", "tiny", "--vocab-size", 16, "--size", 16, "--width", 8,
            "--steps", 4, "--batch-size", 8, "--device", "cpu", "--workers", 0, "--log-every", 1, "--quiet",
            "--out", out,
        ]  # fmt: skip

    run_in(1, words(tmp_path / "one"))
    run_in(2, words(tmp_path / "two"))
    assert_alike(tmp_path / "one", tmp_path / "two", 1e-4)


@pytest.mark.parametrize(
    "more", [(), ("--mixup", 0, "--cutmix", 0, "--ema", 0.9, "--repeats", 2)], ids=["mixed", "ema"]
)
def test_classifier_is_finetuned_alike(labelled_folder, pretrained_run, tmp_path, more):
    def words(out: Path) -> list[object]:
        return [
            "finetune", labelled_folder, "--recipe", "tiny", "--init", pretrained_run, "--steps", 4, "--batch-size", 8,
            "--drop-path", 0.2, "--device", "cpu", "--workers", 0, "--log-every", 1, "--quiet", "--out", out, *more,
        ]  # fmt: skip

    run_in(1, words(tmp_path / "one"))
    run_in(2, words(tmp_path / "two"))
    assert_alike(tmp_path / "one", tmp_path / "two", 1e-4)


def finetuning_mixed(data: Path, init: Path, out: Path, batch: int) -> list[object]:
    return [
        "finetune", data, "--recipe", "tiny", "--init", init, "--steps", 3, "--batch-size", batch, "--mixup", 0.8,
        "--cutmix", 1.0, "--device", "cpu", "--workers", 0, "--log-every", 1, "--quiet", "--out", out,
    ]  # fmt: skip


def test_an_odd_batch_that_is_mixed_is_one_process_s_alone(labelled_folder, pretrained_run, tmp_path):
    ended = in_processes(2, finetuning_mixed(labelled_folder, pretrained_run, tmp_path / "2", 7))
    assert [each.code for each in ended] == [2, 2]
    assert "which 2 processes cannot share of a batch of 7" in ended[0].err
    for size, more in ((2, ("--mixup", 0, "--cutmix", 0)), (1, ())):
        run_in(size, [*finetuning_mixed(labelled_folder, pretrained_run, tmp_path / str(size), 7), *more])
    mixed, plain = ([line["loss"] for line in lines_of(tmp_path / size)] for size in "12")
    assert max(abs(one - other) for one, other in zip(mixed, plain, strict=True)) > 1e-4


def test_fewer_pairs_than_processes_are_not_mixed_but_refused(labelled_folder, pretrained_run, tmp_path):
    ended = in_processes(3, finetuning_mixed(labelled_folder, pretrained_run, tmp_path / "run", 4))
    assert [each.code for each in ended] == [2, 2, 2]
    assert "a batch of 4 has 2 for 3 processes" in ended[0].err
    run_in(1, finetuning_mixed(labelled_folder, pretrained_run, tmp_path / "run", 4))


def test_timm_s_drop_path_strikes_out_other_images_in_each_process(labelled_folder, tmp_path):
    """It draws from torch's global generator, which the loop seeds; the first process draws as a single one does."""

    def tell(rank: int) -> None:
        drawn = drop.drop_path

        def told(x, rate=0.0, training=False, scale_by_keep=True):
            if training:  # not in the evaluation, whose batches the processes take in turn
                state = torch.get_rng_state()
                print("mask", torch.rand(8).tolist(), file=sys.stderr)
                torch.set_rng_state(state)
            return drawn(x, rate, training, scale_by_keep)

        drop.drop_path = told

    init = "timm/deit_tiny_distilled_patch16_224@random,patch_size=8,depth=2,embed_dim=24,num_heads=2"
    masks = {}
    for size in (1, 2):
        words = [
            "finetune", labelled_folder, "--recipe", "tiny", "--init", init, "--size", 32, "--steps", 1, "--batch-size",
            8, "--drop-path", 0.5, "--device", "cpu", "--workers", 0, "--quiet", "--out", tmp_path / str(size),
        ]  # fmt: skip
        ended = in_processes(size, words, before=tell)
        assert [each.code for each in ended] == [0] * size, ended
        masks[size] = [[line for line in each.err.splitlines() if line.startswith("mask")] for each in ended]
    first, second = masks[2]
    assert masks[1][0][0] == first[0]
    assert len(first) == len(second) > 0
    assert not set(first) & set(second)


def segmenting(data: Path, out: Path, *more: object) -> list[object]:
    return [
        "finetune", data, "--task", "segment", "--recipe", "tiny-segment", "--init", "random", "--classes",
        data / "names.txt", "--ignore-index", IGNORE, "--size", 32, "--batch-size", 8, "--drop-path", 0.1,
        "--device", "cpu", "--workers", 0, "--log-every", 1, "--quiet", "--out", out, *more,
    ]  # fmt: skip


@pytest.mark.parametrize("head", ["upernet", "setr-pup"])
def test_segmenter_is_finetuned_alike_with_batch_norm_over_all_images(scenes, tmp_path, head):
    for size, micro in ((1, 4), (2, 2)):
        more = ("--steps", 3, "--head", head, "--micro-batch", micro)
        run_in(size, segmenting(scenes, tmp_path / str(size), *more))
    assert_alike(tmp_path / "1", tmp_path / "2", later=2e-3)


def documents(size: int, words: list[object]) -> list[Any]:
    """What the first process wrote; the others wrote nothing."""
    first, *others = in_processes(size, words)
    assert first.code in (0, 3), first.err
    assert [each.out for each in others] == [""] * len(others)
    return [json.loads(line) for line in first.out.splitlines()]


@pytest.mark.parametrize("size", [2, 3])
def test_figures_of_1001_images_are_the_same_to_the_last_digit(finetuned_run, many, size):
    words = ["eval", finetuned_run, many, "--device", "cpu", "--workers", 0, "--batch-size", 50, "--json"]
    alone = documents(1, words)
    assert documents(size, words) == alone
    assert (alone[0]["images"], alone[0]["bad"]) == (1000, 1)


@pytest.mark.parametrize("protocol", ["knn", "linear"])
def test_probes_are_the_same_to_the_last_digit(pretrained_run, labelled_folder, many, tmp_path, protocol):
    words = [
        "eval", pretrained_run, many, "--protocol", protocol, "--train", labelled_folder, "--layer", "sweep",
        "--device", "cpu", "--workers", 0, "--batch-size", 64, "--limit", 200, "--json",
        *(["--probe-epochs", 3] if protocol == "linear" else []),
    ]  # fmt: skip
    one, three = ([*words, "--feature-cache", tmp_path / name] for name in ("one", "three"))
    assert documents(3, three) == documents(1, one)


@pytest.mark.parametrize("filled", [0, 1])
def test_only_the_first_process_s_cache_decides_about_features(pretrained_run, labelled_folder, tmp_path, filled):
    """Each process has a cache of its own, as on two machines; one of them holds the features."""
    words = [
        "eval", pretrained_run, labelled_folder, "--protocol", "knn", "--train", labelled_folder, "--k", 3,
        "--standardize", "--device", "cpu", "--workers", 0, "--batch-size", 4, "--json",
    ]  # fmt: skip

    def own_cache(rank: int) -> None:
        os.environ["BEIT_CACHE_DIR"] = str(tmp_path / str(rank))

    (alone,) = in_processes(1, words, before=lambda rank: own_cache(filled))
    first, second = in_processes(2, words, before=own_cache)
    assert (first.code, second.code, second.out) == (0, 0, ""), (first.err, second.err)
    assert json.loads(first.out) == json.loads(alone.out)
    kept = {rank for rank in (0, 1) if list((tmp_path / str(rank)).glob("features/*/about.json"))}
    assert kept == {0, filled}


@pytest.mark.parametrize("size", [2, 3])
def test_segmenter_s_figures_are_the_same_to_the_last_digit(scenes, tmp_path, size):
    run_in(1, segmenting(scenes, tmp_path / "run", "--steps", 1))
    words = ["eval", tmp_path / "run", scenes, "--split", "train", "--device", "cpu", "--workers", 0, "--json"]
    assert documents(size, words) == documents(1, words)


@pytest.mark.parametrize("suffix", ["jsonl", "npz"])
def test_tokens_are_written_in_order_and_whole(tokenizer_run, many, tmp_path, suffix):
    def words(name: str) -> list[object]:
        return [
            "tokenize", many, "--tokenizer", tokenizer_run, "--limit", 130, "--batch-size", 16, "--device", "cpu",
            "--workers", 0, "-o", tmp_path / f"{name}.{suffix}", "--seed", 1,
        ]  # fmt: skip

    ended = {size: in_processes(size, words(str(size))) for size in (1, 3)}
    assert {each.code for each in ended[3]} == {each.code for each in ended[1]}
    assert (tmp_path / f"3.{suffix}").read_bytes() == (tmp_path / f"1.{suffix}").read_bytes()


def test_statistics_of_tokens_are_the_same_to_the_last_digit(tokenizer_run, many):
    words = [
        "tokenize", many, "--tokenizer", tokenizer_run, "--stats", "--batch-size", 64, "--device", "cpu",
        "--workers", 0, "--precision", "bf16", "--json",
    ]  # fmt: skip
    alone = documents(1, words)
    assert documents(2, words) == alone
    assert (alone[0]["images"], alone[0]["bad"]) == (1000, 1)


def test_an_image_that_fails_the_command_fails_it_in_all(tokenizer_run, many):
    words = ["tokenize", many, "--tokenizer", tokenizer_run, "--on-bad", "fail", "--device", "cpu", "--workers", 0]
    ended = in_processes(2, words)
    assert [each.code for each in ended] == [3, 3]
    assert re.search(r"red/0500\.png' cannot be read", ended[0].err)


@pytest.mark.parametrize(
    "more", [(), ("--shard",), ("--shard", "--precision", "bf16")], ids=["ddp", "fsdp2", "fsdp2 in bf16"]
)
def test_two_compiled_processes_equal_two_eager_ones(tmp_path, labelled_folder, tokenizer_run, more):
    """Parts of 5 images in micro-batches of 2, 2 and 1: one shape is compiled, around torch's own reductions.

    Dynamo and autograd's graphs are real; Inductor is left out, whose workers do not go with a forked process.
    """

    def without_inductor(rank: int) -> None:
        torch.compile = partial(torch.compile, backend="aot_eager")

    words = pretraining(labelled_folder, tokenizer_run, tmp_path / "eager", "--micro-batch", 2, *more)
    words[words.index("--batch-size") + 1] = 10
    run_in(2, words)
    words[words.index("--out") + 1] = tmp_path / "compiled"
    for ended in in_processes(2, [*words, "--compile"], before=without_inductor):
        assert ended.code == 0, ended.err
        assert "not compiled" not in ended.err, ended.err
    assert [line["compiled"] for line in lines_of(tmp_path / "compiled")] == [1.0] * STEPS
    assert_alike(tmp_path / "eager", tmp_path / "compiled", tolerance=2e-2 if "bf16" in more else 2e-4, later=2e-2)
