"""The encoder in low precision: what stays fp32, how near its tokens are, and what its batch has to do with them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from beitcli.engine.events import Event, Warned
from beitcli.engine.tokenizer_loading import prepared, token_precision
from beitcli.tokenizers.base import INVARIANT_BATCH, Tokenizer
from beitcli.tokenizers.dvae import DiscreteVAE
from beitcli.tokenizers.dvae_network import DVAEArchitecture
from beitcli.tokenizers.mixed_precision import LowPrecisionEncoder, _summed
from tests.helpers.forked import forked


@pytest.fixture
def tokenizer() -> Tokenizer:
    """Random weights: 64 codes of 16 x 16 pixels in 8 x 8 tokens."""
    torch.manual_seed(0)
    architecture = DVAEArchitecture(vocab_size=64, width=16, groups=2, blocks_per_group=2, init_gain=2**0.5)
    return Tokenizer("random", DiscreteVAE(architecture).requires_grad_(False).eval(), 16, "0" * 64)


def smooth(count: int, size: int = 16) -> torch.Tensor:
    return F.interpolate(torch.rand(count, 3, 4, 4), size=(size, size), mode="bilinear")


@pytest.mark.parametrize(("precision", "most"), [("bf16", 0.02), ("fp16", 0.0025)])
def test_logits_are_near_fp32s_and_are_fp32(tokenizer: Tokenizer, precision: str, most: float) -> None:
    images = smooth(16)
    low = tokenizer.in_precision(precision)
    exact, near = tokenizer.model.token_logits(images), low.model.token_logits(images)
    assert near.dtype == torch.float32
    assert 0 < (near - exact).abs().max() <= most * exact.std()
    assert (low.encode(images) == tokenizer.encode(images)).float().mean() > 0.97
    assert len(tokenizer.encode(images).unique()) > 10


def test_bf16_is_nearer_to_fp32_than_autocast(tokenizer: Tokenizer) -> None:
    """The sum of the blocks keeps 24 bits rather than 8."""
    images = smooth(32)
    exact = tokenizer.model.token_logits(images)
    ours = (tokenizer.in_precision("bf16").model.token_logits(images) - exact).abs().mean()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        theirs = (tokenizer.model.token_logits(images).float() - exact).abs().mean()
    assert ours < theirs / 2


def test_weights_are_converted_once_and_the_rest_is_shared(tokenizer: Tokenizer) -> None:
    low = tokenizer.in_precision("bf16")
    assert isinstance(low.model.encoder, LowPrecisionEncoder)
    found = {name: tensor.dtype for name, tensor in low.model.encoder.named_parameters()}
    fp32 = {name for name, dtype in found.items() if dtype == torch.float32}
    assert fp32 == {f"{name}.{part}" for name in ("stem", "skips.2", "head") for part in ("weight", "bias")}
    assert low.model.encoder.head.weight is tokenizer.model.encoder.head.weight
    assert low.model.decoder is tokenizer.model.decoder
    assert {tensor.dtype for tensor in tokenizer.model.parameters()} == {torch.float32}
    assert (low.precision, low.sha256, low.vocab_size) == ("bf16", tokenizer.sha256, 64)
    assert tokenizer.in_precision("fp32").model is tokenizer.model


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_encode_alike_does_not_depend_on_the_batch(
    tokenizer: Tokenizer, precision: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits, to the last bit: tokens would hide most of a difference."""
    images = smooth(2 * INVARIANT_BATCH + 3)
    images = (images * 255).to(dtype) if dtype == torch.uint8 else images
    monkeypatch.setattr(DiscreteVAE, "encode", DiscreteVAE.token_logits)
    tokenizer = tokenizer.in_precision(precision)
    whole = tokenizer.encode_batch_invariant(images)
    torch.testing.assert_close(whole, tokenizer.encode(images), atol=1e-4, rtol=0)
    for size in (1, 2, 3, 5, INVARIANT_BATCH, INVARIANT_BATCH + 1):
        assert torch.equal(torch.cat([tokenizer.encode_batch_invariant(part) for part in images.split(size)]), whole), (
            size
        )
    shuffled = torch.randperm(len(images))
    assert torch.equal(tokenizer.encode_batch_invariant(images[shuffled]), whole[shuffled])


def test_auto_is_fp32_on_a_cpu_and_fp16_on_cuda() -> None:
    assert token_precision("auto", torch.device("cpu")) == "fp32"
    assert token_precision("auto", torch.device("cuda")) == "fp16"
    assert token_precision("bf16", torch.device("cuda")) == "bf16"


# fp16 ends at 65504


def unguarded(encoder: LowPrecisionEncoder, mapped: torch.Tensor) -> torch.Tensor:
    """The same encoder without any scales."""
    features = encoder.stem(mapped)
    for index, (path, skip) in enumerate(zip(encoder.paths, encoder.skips, strict=True)):
        if index in encoder.pooled:
            features = F.max_pool2d(features, 2)
        residual = features.half()
        for conv in path:
            residual = conv(F.relu(residual))
        features = skip(features) + encoder.gains[index] * residual.float()
    return encoder.head(F.relu(features))


def loud(tokenizer: Tokenizer, stem: float, path: float) -> None:
    """Multiplies the first convolution by `stem`, and those of the paths by `path`, whose biases are no longer 0."""
    encoder = tokenizer.model.encoder
    for conv in (each for group in encoder.groups for block in group for each in block.convs):
        conv.bias.normal_()
        for tensor in (conv.weight, conv.bias):
            tensor.mul_(path)
    for tensor in (encoder.stem.weight, encoder.stem.bias):
        tensor.mul_(stem)


def test_fp16_within_its_range_is_not_touched_by_the_guard(tokenizer: Tokenizer) -> None:
    loud(tokenizer, stem=1, path=1)
    low = tokenizer.in_precision("fp16").model.encoder
    mapped = smooth(5).contiguous(memory_format=torch.channels_last)
    assert torch.equal(low(mapped), unguarded(low, mapped))


@pytest.mark.parametrize(("stem", "path"), [(1e6, 1), (1e4, 1), (300, 30), (1e9, 10)])
def test_fp16_gives_fp32s_tokens_where_its_range_is_left(tokenizer: Tokenizer, stem: float, path: float) -> None:
    loud(tokenizer, stem, path)
    images = smooth(32)
    low = tokenizer.in_precision("fp16")
    assert not unguarded(low.model.encoder, images.contiguous(memory_format=torch.channels_last)).isfinite().all()
    exact, near = tokenizer.model.token_logits(images), low.model.token_logits(images)
    assert (near - exact).abs().max() <= 0.02 * exact.std()
    assert (low.encode(images) == tokenizer.encode(images)).float().mean() > 0.99
    assert len(tokenizer.encode(images).unique()) > 5


# Compiled


def test_without_a_compiler_it_warns_and_gives_the_same_tokens(tokenizer: Tokenizer) -> None:
    """In a child: Inductor remembers for the life of a process that there is no compiler."""
    import torch._inductor.config as inductor

    def work() -> None:
        inductor.cpp.cxx = ("there-is-no-such-compiler",)
        inductor.force_disable_caches = True
        torch.compiler.reset()
        events: list[Event] = []
        low = prepared(tokenizer, "bf16", (16, 16), events.append)
        (warned,) = events
        assert isinstance(warned, Warned)
        assert warned.message.startswith("The tokenizer is not compiled: ")
        assert not low.is_compiled
        images = smooth(3)
        assert torch.equal(low.encode(images), tokenizer.in_precision("bf16").encode(images))
        print(warned.message)

    ended = forked(work)
    assert ended.code == 0, ended.err
    assert "compiler" in ended.out.removeprefix("The tokenizer is not compiled: "), ended.out


def test_fp32_is_never_compiled(tokenizer: Tokenizer) -> None:
    assert prepared(tokenizer, "fp32", (16, 16), lambda event: None) == dataclasses.replace(tokenizer)


# Through the command line


def test_stats_tell_the_agreement_with_fp32(beit: Callable, labelled_folder: Path, tokenizer_run: Path) -> None:
    words = ("tokenize", labelled_folder, "--tokenizer", tokenizer_run, "--device", "cpu", "--batch-size", 5)
    fp32, low = (beit(*words, "--precision", precision) for precision in ("fp32", "bf16"))
    equal = [
        left == right
        for one, other in zip(fp32.lines, low.lines, strict=True)
        for left, right in zip(one["tokens"], other["tokens"], strict=True)
    ]
    assert len(equal) == 24 * 16
    (stats,) = beit(*words, "--precision", "bf16", "--stats").lines
    assert stats["agreement"] == pytest.approx(sum(equal) / len(equal), abs=1e-6)
    assert stats["agreement"] > 0.9
    (exact,) = beit(*words, "--stats").lines
    assert "agreement" not in exact


def test_agreement_is_of_64_images_at_most(beit: Callable, picture: Callable, tokenizer_run: Path) -> None:
    paths = [picture(f"{number}.png", seed=number) for number in range(70)]
    words = ("--tokenizer", tokenizer_run, "--precision", "bf16", "--stats", "--batch-size", 20)
    (all_of_them,) = beit("tokenize", *paths, *words).lines
    (first,) = beit("tokenize", *paths[:64], *words).lines
    assert all_of_them["agreement"] == first["agreement"]
    assert (all_of_them["images"], first["images"]) == (70, 64)


def test_pretraining_in_low_precision_keeps_and_takes_its_tokens(
    beit: Callable, labelled_folder: Path, tokenizer_run: Path, tmp_path: Path
) -> None:
    words = ("pretrain", labelled_folder, "--recipe", "tiny", "--tokenizer", tokenizer_run, "--image-size", 32)
    words += ("--num-masked", 6, "--steps", 2, "--batch-size", 4, "--device", "cpu", "--workers", 0, "--log-every", 1)
    words += ("--token-precision", "bf16")
    losses = []
    for name, cache in (("online", ()), ("first", ("--token-cache", tmp_path / "cache"))):
        ended = beit(*words, *cache, "--out", tmp_path / name)
        assert ended.code == 0, ended.err
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in lines])
    assert losses[0] == losses[1]
    (meta,) = (tmp_path / "cache").rglob("meta.json")
    assert json.loads(meta.read_text())["precision"] == "bf16"
    ended = beit("pretrain", "--out", tmp_path / "first", "--resume", "--token-precision", "fp32")
    assert ended.code == 2
    assert "--token-precision: the run has" in ended.err


@pytest.mark.parametrize("gain", [1 / 64, 1 / 9])
def test_sums_in_place_round_as_a_product_and_a_sum(gain: float) -> None:
    generator = torch.Generator().manual_seed(0)
    features, residual = (torch.randn(4, 8, 9, 9, generator=generator) for _ in range(2))
    expected = features + gain * residual.bfloat16().float()
    assert torch.equal(_summed(features, residual.bfloat16(), gain), expected)
