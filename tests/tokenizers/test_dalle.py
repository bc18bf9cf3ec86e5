"""DALL-E's tokenizer: every layout of its weights, against the release's structure and transformers' codebook."""

from __future__ import annotations

import math
import os
import pickle
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import one_hot
from transformers import FlavaImageCodebook, FlavaImageCodebookConfig

from beitcli.errors import StorageError, UsageError
from beitcli.tokenizers.base import Tokenizer
from beitcli.tokenizers.dalle import huggingface_name, openai_name
from beitcli.tokenizers.dvae import DiscreteVAE
from beitcli.tokenizers.dvae_network import DVAEArchitecture
from beitcli.tokenizers.open import open_tokenizer
from tests.helpers.released_dalle import Decoder, Encoder, save_module


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setenv("BEIT_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def pair() -> tuple[Encoder, Decoder]:
    return Encoder(), Decoder()


def released(pair: tuple[Encoder, Decoder], folder: Path, legacy: bool = False) -> Path:
    save_module(pair[0], folder / "encoder.pkl", legacy)
    save_module(pair[1], folder / "decoder.pkl", legacy)
    return folder


def plain(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def assert_same_logits(tokenizer: Tokenizer, reference: Callable[[Tensor], Tensor], size: int = 32) -> None:
    images = torch.rand(2, 3, 4, 4).repeat_interleave(size // 4, 2).repeat_interleave(size // 4, 3)
    with torch.no_grad():
        theirs, ours = reference(0.8 * images + 0.1), tokenizer.model.token_logits(images)
    assert (theirs - ours).abs().max() <= 1e-5
    assert torch.equal(theirs.argmax(1).flatten(1), tokenizer.encode(images))
    assert len(tokenizer.encode(images).unique()) > 1


# Layouts


@pytest.mark.parametrize("legacy", [False, True])
def test_released_pickles_compute_what_their_modules_do(
    pair: tuple[Encoder, Decoder], tmp_path: Path, legacy: bool
) -> None:
    tokenizer = open_tokenizer(str(released(pair, tmp_path / "dalle", legacy)))
    assert not [name for name in sys.modules if name.startswith("dall_e")]
    assert (tokenizer.vocab_size, tokenizer.size, tokenizer.model.downsample) == (32, 112, 8)
    assert tokenizer.model.architecture.decoder_init_width == 12
    assert tokenizer.model.architecture.residual_gain == 1 / 64
    assert_same_logits(tokenizer, pair[0])
    tokens = torch.randint(32, (2, 12))
    codes = one_hot(tokens.view(2, 3, 4), 32).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        pixels = (pair[1](codes)[:, :3].sigmoid() - 0.1) / 0.8
    torch.testing.assert_close(tokenizer.decode(tokens, (3, 4)), pixels.clamp(0, 1), atol=1e-5, rtol=0)
    assert not any(parameter.requires_grad for parameter in tokenizer.model.parameters())


@pytest.mark.parametrize(("groups", "blocks", "width"), [(1, 1, 4), (2, 3, 12), (3, 1, 8)])
def test_sizes_are_read_from_the_shapes(tmp_path: Path, groups: int, blocks: int, width: int) -> None:
    sizes = {"vocab_size": 20, "width": width, "groups": groups, "blocks": blocks}
    encoder = Encoder(**sizes)
    tokenizer = open_tokenizer(str(released((encoder, Decoder(**sizes, init_width=4)), tmp_path / "dalle")))
    assert tokenizer.model.architecture == DVAEArchitecture(
        vocab_size=20, width=width, groups=groups, blocks_per_group=blocks, decoder_init_width=4
    )
    assert tokenizer.size == 14 * 2 ** (groups - 1)
    assert_same_logits(tokenizer, encoder, size=16)


def test_every_layout_gives_the_same_weights(pair: tuple[Encoder, Decoder], tmp_path: Path) -> None:
    encoder, decoder = map(plain, pair)
    released(pair, tmp_path / "zip")
    released(pair, tmp_path / "legacy", legacy=True)
    for name in ("state-dict", "old-state-dict", "safetensors", "wrapped", "swapped"):
        (tmp_path / name).mkdir()
    torch.save(encoder, tmp_path / "state-dict" / "encoder.pth")
    torch.save(encoder, tmp_path / "old-state-dict" / "encoder.pth", _use_new_zipfile_serialization=False)
    torch.save({"state_dict": encoder, "epoch": 3}, tmp_path / "wrapped" / "encoder.pt")
    save_file(encoder, tmp_path / "safetensors" / "encoder.safetensors")
    save_file(decoder, tmp_path / "safetensors" / "decoder.safetensors")
    save_module(pair[0], tmp_path / "swapped" / "decoder.pkl")
    save_module(pair[1], tmp_path / "swapped" / "encoder.pkl")
    opened = {path.name: open_tokenizer(str(path)) for path in tmp_path.iterdir() if path.name != "cache"}
    assert len(opened) == 7
    assert len({tokenizer.sha256 for tokenizer in opened.values()}) == 1
    with_decoder = {name for name, tokenizer in opened.items() if tokenizer.can_decode}
    assert with_decoder == {"zip", "legacy", "safetensors", "swapped"}
    alone = open_tokenizer(str(tmp_path / "zip" / "encoder.pkl"))
    assert (alone.sha256, alone.can_decode) == (opened["zip"].sha256, True)
    pair[0].blocks.output.conv.b.data[3] += 1e-3
    assert open_tokenizer(str(released(pair, tmp_path / "other"))).sha256 != alone.sha256


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_codebook_of_transformers_gives_the_same_tokens(tmp_path: Path, weights: str) -> None:
    theirs = FlavaImageCodebook(FlavaImageCodebookConfig(hidden_size=16, vocab_size=40)).eval()
    theirs.save_pretrained(tmp_path / "hf")
    if weights == "pytorch_model.bin":
        torch.save(load_file(tmp_path / "hf" / "model.safetensors"), tmp_path / "hf" / weights)
        (tmp_path / "hf" / "model.safetensors").unlink()
    tokenizer = open_tokenizer(str(tmp_path / "hf"))
    assert not tokenizer.can_decode
    assert_same_logits(tokenizer, theirs)


def test_our_weights_give_transformers_codebook_the_same_tokens(pair: tuple[Encoder, Decoder], tmp_path: Path) -> None:
    tokenizer = open_tokenizer(str(released(pair, tmp_path / "dalle")))
    theirs = FlavaImageCodebook(FlavaImageCodebookConfig(hidden_size=8, vocab_size=32)).eval()
    ours = tokenizer.model.encoder.state_dict()
    theirs.load_state_dict({huggingface_name(name): tensor for name, tensor in ours.items()})
    assert_same_logits(tokenizer, theirs)
    assert {openai_name(name) for name in ours} == set(pair[0].state_dict())


@pytest.mark.slow
def test_full_size_codebook_gives_the_same_tokens_both_ways(tmp_path: Path) -> None:
    theirs = FlavaImageCodebook(FlavaImageCodebookConfig()).eval()
    theirs.save_pretrained(tmp_path / "hf")
    tokenizer = open_tokenizer(str(tmp_path / "hf"))
    (tmp_path / "hf" / "model.safetensors").unlink()
    assert sum(parameter.numel() for parameter in tokenizer.model.parameters()) == 53_786_240
    assert (tokenizer.vocab_size, tokenizer.size) == (8192, 112)
    assert tokenizer.model.architecture == DVAEArchitecture()
    images = torch.rand(1, 3, 112, 112)
    with torch.no_grad():
        expected = theirs(0.8 * images + 0.1)
        assert (tokenizer.model.token_logits(images) - expected).abs().max() <= 1e-5
    assert torch.equal(tokenizer.encode(images), expected.argmax(1).flatten(1))
    assert tokenizer.encode(images).shape == (1, 196)
    back = {huggingface_name(name): 1.5 * tensor for name, tensor in tokenizer.model.encoder.state_dict().items()}
    theirs.load_state_dict(back)
    tokenizer.model.encoder.load_state_dict({n: 1.5 * t for n, t in tokenizer.model.encoder.state_dict().items()})
    with torch.no_grad():
        small = torch.rand(1, 3, 32, 32)
        theirs_small, ours_small = theirs(0.8 * small + 0.1), tokenizer.model.token_logits(small)
    assert (ours_small - theirs_small).abs().max() <= 1e-5 * theirs_small.abs().max().clamp(min=1)
    assert torch.equal(ours_small.argmax(1), theirs_small.argmax(1))


# Files that do not fit


def without(name: str) -> Callable[[dict[str, Tensor]], None]:
    return lambda tensors: tensors.__delitem__(name)


def instead(name: str, tensor: Tensor) -> Callable[[dict[str, Tensor]], None]:
    return lambda tensors: tensors.update({name: tensor})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without("blocks.input.w"), "neither blocks.input.w nor blocks.input.weight"),
        (without("blocks.input.b"), "blocks.input.b is missing"),
        (without("blocks.group_2.block_1.id_path.w"), "blocks.group_2.block_1.id_path.w is missing"),
        (without("blocks.group_3.block_2.res_path.conv_4.b"), "blocks.group_3.block_2.res_path.conv_4.b is missing"),
        (without("blocks.output.conv.w"), "blocks.output.conv.w is missing"),
        (instead("blocks.extra.w", torch.zeros(2)), "it has blocks.extra.w too"),
        (instead("blocks.group_1.block_1.id_path.w", torch.zeros(8, 8, 1, 1)), "id_path.w too"),
        (instead("blocks.output.conv.b", torch.zeros(31)), r"blocks.output.conv.b is float32 \(31,\), not float \(32,"),
        (instead("blocks.input.b", torch.zeros(8, dtype=torch.int64)), r"blocks.input.b is int64 \(8,\)"),
        (instead("blocks.input.w", torch.zeros(8, 3, 5, 5)), r"blocks.input.w is a convolution of \(5, 5\)"),
        (instead("blocks.input.w", torch.zeros(3)), r"blocks.input.w is a convolution of \(\)"),
        (instead("blocks.input.w", torch.zeros(6, 3, 7, 7)), "width is 6"),
        (instead("blocks.input.w", torch.zeros(12, 3, 7, 7)), r"blocks.input.w is .*|blocks.input.b is float32 \(8,\)"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_their_first_key(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], None], said: str
) -> None:
    tensors = plain(Encoder())
    change(tensors)
    torch.save(tensors, tmp_path / "encoder.pth")
    with pytest.raises(StorageError, match=said) as refused:
        open_tokenizer(str(tmp_path))
    assert str(tmp_path / "encoder.pth") in refused.value.message
    assert "encoder.pkl" in refused.value.hint


def test_pairs_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    save_module(Encoder(), tmp_path / "two" / "encoder.pkl")
    save_module(Encoder(), tmp_path / "two" / "decoder.pkl")
    with pytest.raises(StorageError, match="are both DALL-E encoders"):
        open_tokenizer(str(tmp_path / "two"))
    save_module(Decoder(), tmp_path / "none" / "decoder.pkl")
    with pytest.raises(StorageError, match="no encoder"):
        open_tokenizer(str(tmp_path / "none"))
    released((Encoder(), Decoder(vocab_size=16)), tmp_path / "odd")
    with pytest.raises(StorageError, match=r"16 codes, width 8\) is not the decoder of .* \(32 codes"):
        open_tokenizer(str(tmp_path / "odd"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html><head><title>Page not found</title></head></html>", "web page.*Page not found"),
        (
            b'<?xml version="1.0"?><Error><Code>PublicAccessNotPermitted</Code><Message>No</Message></Error>',
            "PublicAccessNotPermitted",
        ),
        (b"--2026-01-02 03:04:05--  https://cdn.example/encoder.pkl\nResolving... failed\n", "log of a download"),
        (b"\x80\x02X\x05\x00\x00\x00", "encoder.pkl"),
    ],
)
def test_a_file_that_is_something_else_says_so(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "encoder.pkl").write_bytes(content)
    with pytest.raises(StorageError, match=said):
        open_tokenizer(str(tmp_path))


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.999])
def test_a_file_cut_short_is_refused(tmp_path: Path, legacy: bool, share: float) -> None:
    path = save_module(Encoder(), tmp_path / "encoder.pkl", legacy)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(StorageError, match=re.escape(str(path))):
        open_tokenizer(str(tmp_path))


# Pickles that would run something


class Runs:
    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


@pytest.mark.parametrize("kind", ["zip", "legacy", "bare", "within a module", "within an old module"])
@pytest.mark.parametrize("function", [os.system, eval, getattr])
def test_a_pickle_that_would_run_a_command_does_not(
    beit: Callable, tmp_path: Path, kind: str, function: Callable[..., object]
) -> None:
    canary = tmp_path / "canary"
    arguments = {"system": (f"touch {canary}",), "eval": (f"open({str(canary)!r}, 'w')",), "getattr": (1, "real")}
    attack = Runs(function, *arguments[function.__name__])
    path = tmp_path / "dalle" / "encoder.pkl"
    if kind.startswith("within"):
        encoder = Encoder()
        encoder.device = attack
        save_module(encoder, path, legacy="old" in kind)
    else:
        path.parent.mkdir()
        if kind == "bare":
            path.write_bytes(pickle.dumps(attack, 2))
        else:
            torch.save(attack, path, _use_new_zipfile_serialization=kind == "zip")
    ended = beit("tokenize", "--tokenizer", path.parent, "sample", "--limit", 1)
    assert (ended.code, ended.out) == (4, "")
    if "is a Python pickle" not in ended.err:  # so it is called where nothing in it would run either
        assert "is not loaded: its pickle asks for" in ended.err
        assert function.__name__ in ended.err
    assert not canary.exists()


def test_a_module_that_holds_itself_ends(tmp_path: Path) -> None:
    for legacy in (False, True):
        encoder = Encoder()
        encoder.blocks._modules["again"] = encoder
        save_module(encoder, tmp_path / "encoder.pkl", legacy)
        assert open_tokenizer(str(tmp_path)).vocab_size == 32


@pytest.mark.parametrize("legacy", [False, True])
def test_a_tensor_larger_than_its_storage_is_refused(tmp_path: Path, legacy: bool) -> None:
    encoder = Encoder()
    encoder.blocks.output.conv.b = torch.nn.Parameter(torch.zeros(1).expand(1 << 40), requires_grad=False)
    path = save_module(encoder, tmp_path / "encoder.pkl", legacy)
    with pytest.raises(StorageError, match=r"blocks\.output\.conv\.b is larger than what is stored of it"):
        open_tokenizer(str(path))


# Pixels and codes by hand


def by_hand() -> DiscreteVAE:
    """Red above the middle anywhere in a 2 x 2 patch is token 1, else 0; token 1 is decoded to red 1, 0 to red 0.

    All residual paths are zero. Encoder: the centre tap of the 7x7 copies red, whose mapped value x in [0.1, 0.9] goes
    through the pool; logits are 0.5 and x. Decoder: token 1 sets channel 0 to 1; outputs are ln 9 (2 c - 1) for red,
    0 for green, -7 for blue: sigmoid 0.9 or 0.1, 0.5, 0.0009, which are 1 or 0, 0.5, and below 0 cut to 0.
    """
    model = DiscreteVAE(DVAEArchitecture(vocab_size=2, width=4, groups=2, blocks_per_group=1, decoder_init_width=8))
    for parameter in model.parameters():
        parameter.data.zero_()
    encoder, decoder = model.encoder, model.require_decoder()
    encoder.stem.weight.data[0, 0, 3, 3] = 1.0
    encoder.groups[1][0].skip.weight.data[0, 0] = 1.0
    encoder.head.bias.data[0] = 0.5
    encoder.head.weight.data[1, 0] = 1.0
    decoder.stem.weight.data[0, 1] = 1.0
    decoder.groups[1][0].skip.weight.data[0, 0] = 1.0
    decoder.head.weight.data[0, 0] = 2 * math.log(9)
    decoder.head.bias.data[:3] = torch.tensor([-math.log(9), 0.0, -7.0])
    return model


def test_encode_and_decode_by_hand() -> None:
    tokenizer = Tokenizer("hand", by_hand(), 28, "")
    red = torch.tensor([[0, 255, 0, 0], [0, 0, 0, 0], [120, 0, 0, 129], [0, 126, 0, 0]], dtype=torch.uint8)
    images = torch.stack([red, 255 - red, 255 - red])[None]
    tokens = tokenizer.encode(images)
    assert tokens.tolist() == [[1, 0, 0, 1]]
    decoded = tokenizer.decode(tokens, (2, 2))
    expected = torch.tensor([[1.0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]])
    torch.testing.assert_close(decoded[0, 0], expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(decoded[0, 1], torch.full((4, 4), 0.5))
    assert decoded[0, 2].eq(0).all()


def test_decoded_pixels_follow_from_the_bias_by_hand(tmp_path: Path) -> None:
    decoder = Decoder()
    for parameter in decoder.parameters():
        parameter.data.zero_()
    # sigmoid: 0.2, 0.5, 0.95; (0.2 - 0.1) / 0.8 = 0.125, 0.5, 1.0625 cut to 1; ln b of the density is not looked at
    decoder.blocks.output.conv.b.data = torch.tensor([math.log(1 / 4), 0.0, math.log(19), 5.0, -5.0, 3.0])
    tokenizer = open_tokenizer(str(released((Encoder(), decoder), tmp_path / "dalle")))
    decoded = tokenizer.decode(torch.tensor([[3, 31]]), (1, 2))
    assert decoded.shape == (1, 3, 8, 16)
    expected = torch.tensor([0.125, 0.5, 1.0]).view(1, 3, 1, 1).expand(1, 3, 8, 16)
    torch.testing.assert_close(decoded, expected, atol=1e-6, rtol=0)


# Words


@pytest.mark.parametrize("word", ["dalle", "DALL-E", "dall_e", "dal-e"])
def test_misspelt_words_get_a_suggestion(word: str) -> None:
    with pytest.raises(StorageError, match=f"no tokenizer '{word}'") as refused:
        open_tokenizer(word)
    assert refused.value.hint == "Did you mean 'dall-e'?"


def test_pixels_are_no_tokenizer() -> None:
    with pytest.raises(UsageError, match="has no codes") as refused:
        open_tokenizer("pixels")
    assert "--target pixels" in refused.value.hint
