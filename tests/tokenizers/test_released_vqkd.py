"""VQ-KD's released layout: tokens equal those of the formulas, on random weights; every command opens it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from beitcli.errors import StorageError, UsageError
from beitcli.tokenizers.open import open_tokenizer

WIDTH, HEADS, DEPTH, PATCH, GRID, CODES, CODE_WIDTH = 128, 2, 2, 4, 3, 40, 8


def released(seed: int = 0) -> dict[str, Tensor]:
    """Random weights under the release's names: encoder, decoder, both task layers, codebook and its statistics."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float = 0.2) -> Tensor:
        return scale * torch.randn(shape, generator=draw)

    def transformer(prefix: str, channels: int, patch: int, depth: int) -> dict[str, Tensor]:
        tensors = {
            "cls_token": normal(1, 1, WIDTH),
            "pos_embed": normal(1, GRID**2 + 1, WIDTH),
            "patch_embed.proj.weight": normal(WIDTH, channels, patch, patch),
            "patch_embed.proj.bias": normal(WIDTH),
            "fc_norm.weight": 1 + normal(WIDTH),
            "fc_norm.bias": normal(WIDTH),
        }
        for block in range(depth):
            layers = {"attn.proj": (WIDTH, WIDTH), "mlp.fc1": (4 * WIDTH, WIDTH), "mlp.fc2": (WIDTH, 4 * WIDTH)}
            named = {f"{name}.weight": normal(*shape) for name, shape in layers.items()}
            named |= {f"{name}.bias": normal(shape[0]) for name, shape in layers.items()}
            named |= {"attn.qkv.weight": normal(3 * WIDTH, WIDTH)}
            named |= {"attn.q_bias": normal(WIDTH), "attn.v_bias": normal(WIDTH)}
            for norm in ("norm1", "norm2"):
                named |= {f"{norm}.weight": 1 + normal(WIDTH), f"{norm}.bias": normal(WIDTH)}
            tensors |= {f"blocks.{block}.{name}": tensor for name, tensor in named.items()}
        return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}

    def task_layer(prefix: str, outputs: int) -> dict[str, Tensor]:
        shapes = {"0": (WIDTH, WIDTH), "2": (outputs, WIDTH)}
        tensors = {f"{prefix}.{name}.weight": normal(*shape) for name, shape in shapes.items()}
        return tensors | {f"{prefix}.{name}.bias": normal(shape[0]) for name, shape in shapes.items()}

    codes = F.normalize(normal(CODES, CODE_WIDTH), dim=1)
    return {
        **transformer("encoder", 3, PATCH, DEPTH),
        **transformer("decoder", CODE_WIDTH, 1, 1),
        "quantize.cluster_size": torch.zeros(CODES),
        "quantize.embedding.weight": codes,
        "quantize.embedding.cluster_size": torch.zeros(CODES),
        "quantize.embedding.embed_avg": codes.clone(),
        "quantize.embedding.initted": torch.ones(1),
        **task_layer("encode_task_layer", CODE_WIDTH),
        **task_layer("decode_task_layer", 512),
    }


def tokens_by_formula(weights: dict[str, Tensor], images: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 1] to (B, N): the release's encoder, task layer and nearest code, in float64."""
    named = {name: tensor.double() for name, tensor in weights.items()}

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ named[f"{name}.weight"].T + named[f"{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        standard = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-6).sqrt()
        return standard * named[f"{name}.weight"] + named[f"{name}.bias"]

    scaled = images.double() * 255 / 127.5 - 1
    patches = scaled.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    kernel = named["encoder.patch_embed.proj.weight"].flatten(1)
    patches = patches @ kernel.T + named["encoder.patch_embed.proj.bias"]
    x = torch.cat([named["encoder.cls_token"].repeat(len(images), 1, 1), patches], 1) + named["encoder.pos_embed"]
    for block in range(DEPTH):
        at, seen = f"encoder.blocks.{block}", norm(f"encoder.blocks.{block}.norm1", x)
        projected = seen @ named[f"{at}.attn.qkv.weight"].T
        query, key, value = projected.split(WIDTH, dim=-1)
        query, value = query + named[f"{at}.attn.q_bias"], value + named[f"{at}.attn.v_bias"]
        heads = []
        for head in range(HEADS):
            own = slice(head * WIDTH // HEADS, (head + 1) * WIDTH // HEADS)
            scores = query[..., own] @ key[..., own].mT / (WIDTH // HEADS) ** 0.5
            heads.append(scores.softmax(-1) @ value[..., own])
        x = x + linear(f"{at}.attn.proj", torch.cat(heads, -1))
        inner = linear(f"{at}.mlp.fc1", norm(f"{at}.norm2", x))
        inner = inner * 0.5 * (1 + torch.erf(inner / 2**0.5))
        x = x + linear(f"{at}.mlp.fc2", inner)
    features = norm("encoder.fc_norm", x[:, 1:])
    vectors = linear("encode_task_layer.2", linear("encode_task_layer.0", features).tanh())
    vectors = vectors / vectors.norm(dim=-1, keepdim=True)
    distances = (vectors[:, :, None] - named["quantize.embedding.weight"]).square().sum(-1)
    return distances.argmin(-1)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "vqkd_encoder_base_decoder_1x768x12_clip.pth"
    torch.save({"model": released(), "args": argparse.Namespace(model="vqkd"), "epoch": 99}, path)
    return path


def test_tokens_equal_those_of_the_release_s_formulas(file):
    tokenizer = open_tokenizer(str(file))
    assert (tokenizer.vocab_size, tokenizer.size, tokenizer.model.downsample) == (CODES, GRID * PATCH, PATCH)
    torch.manual_seed(1)
    images = torch.rand(16, 3, GRID * PATCH, GRID * PATCH)
    tokens, expected = tokenizer.encode(images), tokens_by_formula(released(), images)
    assert torch.equal(tokens, expected)
    assert len(expected.unique()) > CODES // 4
    whole = (images * 255).round().byte()
    assert torch.equal(tokenizer.encode(whole), tokens_by_formula(released(), whole / 255))


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_low_precision_is_autocast_of_the_encoder_alone(file, precision, dtype):
    tokenizer = open_tokenizer(str(file))
    images = torch.rand(32, 3, GRID * PATCH, GRID * PATCH, generator=torch.Generator().manual_seed(1))
    low = tokenizer.in_precision(precision)
    with torch.no_grad(), torch.autocast("cpu", dtype):
        vectors = tokenizer.model.vectors(2 * images - 1)
    assert not torch.equal(vectors, tokenizer.model.vectors(2 * images - 1))
    assert torch.equal(low.encode(images), tokenizer.model.quantizer.nearest(vectors).flatten(1))
    exact = tokens_by_formula(released(), images)
    assert (low.encode(images) == exact).float().mean() > 0.95
    assert torch.equal(tokenizer.encode(images), exact)  # is left as it was
    parameters = zip(low.model.parameters(), tokenizer.model.parameters(), strict=True)
    assert all(ours is theirs for ours, theirs in parameters)


def test_another_grid_has_resized_positions(file):
    tokenizer = open_tokenizer(str(file))
    images = torch.rand(2, 3, 5 * PATCH, 4 * PATCH)
    assert tokenizer.encode(images).shape == (2, 20)


def test_weights_without_the_wrapper_open_too(tmp_path):
    torch.save(released(), tmp_path / "plain.pth")
    images = torch.rand(2, 3, GRID * PATCH, GRID * PATCH)
    tokens = open_tokenizer(str(tmp_path / "plain.pth")).encode(images)
    assert torch.equal(tokens, tokens_by_formula(released(), images))


def test_the_hash_is_that_of_what_makes_the_tokens(file, tmp_path):
    """The same in any container, with or without the decoder; another one for other codes."""
    wanted = open_tokenizer(str(file)).sha256
    save_file({k: v for k, v in released().items() if not k.startswith("deco")}, tmp_path / "encoder.safetensors")
    assert open_tokenizer(str(tmp_path / "encoder.safetensors")).sha256 == wanted
    torch.save(released() | {"quantize.embedding.weight": released(1)["quantize.embedding.weight"]}, tmp_path / "a.pth")
    assert open_tokenizer(str(tmp_path / "a.pth")).sha256 != wanted


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"encoder.blocks.1.mlp.fc1.bias": None}, "does not fit a VQ-KD encoder"),
        ({"encoder.pos_embed": torch.zeros(1, 12, WIDTH)}, "another design"),
        ({"encoder.patch_embed.proj.weight": torch.zeros(WIDTH, 3, 4, 2)}, "another design"),
        ({"encoder.blocks.0.mlp.fc1.weight": None}, "no whole VQ-KD tokenizer"),
        ({"encode_task_layer.2.weight": torch.zeros(5, WIDTH)}, "does not fit a VQ-KD encoder"),
        ({"encoder.cls_token": torch.zeros(1, 1, WIDTH, dtype=torch.int64)}, "not all of its tensors hold floats"),
        ({"quantize.embedding.weight": torch.zeros(10**13, 0)}, "its codebook is 10000000000000 x 0"),
        ({"quantize.embedding.weight": torch.zeros(0, CODE_WIDTH)}, "its codebook is 0 x 8"),
    ],
)
def test_damaged_weights_are_refused(tmp_path, change, said):
    weights = released() | change
    torch.save({name: tensor for name, tensor in weights.items() if tensor is not None}, tmp_path / "damaged.pth")
    with pytest.raises(StorageError, match=said):
        open_tokenizer(str(tmp_path / "damaged.pth"))


def test_the_word_alone_says_that_a_file_is_needed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="not downloaded"):
        open_tokenizer("released-vqkd")


def test_inspect_says_what_it_is(beit: Callable, file: Path):
    facts = beit("inspect", file).lines[0]
    assert (facts["kind"], facts["vocab_size"], facts["grid"]) == ("tokenizer", CODES, [GRID, GRID])
    assert (facts["architecture"]["depth"], facts["architecture"]["heads"]) == (DEPTH, HEADS)
    needed = [t for name, t in released().items() if name.startswith("encode") or name == "quantize.embedding.weight"]
    assert facts["parameters"] == sum(tensor.numel() for tensor in needed)


def test_pretraining_learns_from_it_and_pictures_say_why_there_are_none(
    beit: Callable, file: Path, labelled_folder: Path, tmp_path: Path
):
    """Patches of 16 pixels in the model, of 4 in the tokenizer, whose view so is a quarter of the image."""
    run = tmp_path / "run"
    flags = ("--recipe", "tiny", "--image-size", 48, "--patch-size", 16, "--num-masked", 4, "--min-block", 1)
    line = ("pretrain", labelled_folder, "--tokenizer", file, *flags, "--steps", 2, "--batch-size", 8)
    ended = beit(*line, "--workers", 0, "--device", "cpu", "--out", run)
    assert ended.code == 0, ended.err
    assert beit("inspect", run).lines[0]["vocab_size"] == CODES
    picture = labelled_folder / "red" / "00.jpg"
    shown = beit("mask-preview", picture, "--model", run, "-o", tmp_path / "masked.png")
    assert (shown.code, "predicts a teacher's features, not pixels" in shown.err) == (4, True), shown.err
    drawn = beit("tokenize", picture, "--tokenizer", file, "--reconstruct", tmp_path / "drawn")
    assert (drawn.code, "predicts a teacher's features, not pixels" in drawn.err) == (4, True), drawn.err
    assert beit("tokenize", picture, "--tokenizer", file).lines[0]["grid"] == [GRID, GRID]
