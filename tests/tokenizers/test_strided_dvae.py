"""BEiT's own dVAE: the release's weights file against an independent network, and the objective against its formula."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from beitcli.config.resolve import resolve
from beitcli.config.train_tokenizer import TrainTokenizerConfig
from beitcli.errors import StorageError, UsageError
from beitcli.runtime.distributed.world import SINGLE_PROCESS
from beitcli.runtime.storage.checkpoint import newest_checkpoint
from beitcli.tokenizers.dvae_loss import gumbel_softmax
from beitcli.tokenizers.kind import kind_of, untrained
from beitcli.tokenizers.open import open_tokenizer
from beitcli.tokenizers.strided_dvae import StridedDVAE, StridedDVAEArchitecture, denormalize, normalize
from tests.helpers import released_dvae as released

SMALL = {"recipe": "imagenet-8k", "vocab_size": 32, "size": 16, "width": 8, "kind_settings": ("code_width=12",)}


@pytest.fixture
def weights() -> released.Weights:
    torch.manual_seed(0)
    return released.random_weights()


@pytest.fixture
def file(weights: released.Weights, tmp_path: Path) -> Path:
    return released.save_release(weights, tmp_path / "d_vae" / "pytorch_model.bin")


def test_default_architecture_is_the_release_s() -> None:
    with torch.device("meta"):
        model = StridedDVAE(StridedDVAEArchitecture())
    assert sum(parameter.numel() for parameter in model.parameters()) == 20_081_411
    assert (model.vocab_size, model.downsample) == (8192, 8)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert shapes["codebook.weight"] == (8192, 512)
    assert shapes["encoder.0.0.weight"] == (256, 3, 4, 4)
    assert shapes["encoder.5.net.4.weight"] == (256, 256, 1, 1)
    assert shapes["encoder.6.weight"] == (8192, 256, 1, 1)
    assert shapes["decoder.0.0.weight"] == (512, 256, 4, 4)
    assert shapes["decoder.6.weight"] == (3, 256, 1, 1)
    assert len(shapes) == 53


def test_tokens_and_pictures_of_the_release_s_file_equal_the_release_s(weights, file):
    for reference in (file, file.parent):
        tokenizer = open_tokenizer(str(reference))
        assert (tokenizer.vocab_size, tokenizer.size, tokenizer.grid(112)) == (32, 112, (14, 14))
        images = torch.randint(0, 256, (3, 3, 32, 48), dtype=torch.uint8)
        tokens = tokenizer.encode(images)
        assert torch.equal(tokens, released.tokens(weights, images / 255))
        assert len(tokens.unique()) > 10
        pictures = tokenizer.decode(tokens, (4, 6))
        assert ((pictures > 0) & (pictures < 1)).float().mean() > 0.2
        torch.testing.assert_close(pictures, released.pictures(weights, tokens, (4, 6)), rtol=1e-4, atol=1e-5)
        logits = tokenizer.model.code_logits(images / 255)
        of_release = released.logits(weights, images / 255).flatten(2).transpose(1, 2)
        torch.testing.assert_close(logits, of_release, rtol=1e-4, atol=1e-4)


def test_the_file_is_recognised_by_its_tensors_in_any_container_and_under_any_name(weights, file, tmp_path):
    images = torch.rand(2, 3, 16, 16)
    expected = released.tokens(weights, images)
    hashes = {open_tokenizer(str(file)).sha256}
    save_file(weights, tmp_path / "encoder.safetensors")  # as a file of DALL-E's would be called
    torch.save(weights, tmp_path / "anything.pth")
    torch.save({"weights": weights}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    torch.save({"weights": {f"module.{name}": each for name, each in weights.items()}}, tmp_path / "parallel.pt")
    for path in tmp_path.glob("*.*"):
        tokenizer = open_tokenizer(str(path))
        assert torch.equal(tokenizer.encode(images), expected), path
        hashes.add(tokenizer.sha256)
    assert len(hashes) == 1
    half = {name: tensor.half() for name, tensor in weights.items()}
    torch.save({"weights": half}, tmp_path / "half.pth")
    assert open_tokenizer(str(tmp_path / "half.pth")).sha256 not in hashes


def test_other_sizes_are_read_from_the_shapes(tmp_path):
    torch.manual_seed(0)
    weights = released.random_weights(codes=20, code_width=5, width=6, stages=2)
    tokenizer = open_tokenizer(str(released.save_release(weights, tmp_path / "a.bin")))
    assert (tokenizer.vocab_size, tokenizer.model.downsample, tokenizer.size) == (20, 4, 56)
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(tokenizer.encode(images), released.tokens(weights, images))


def test_an_encoder_alone_gives_the_same_tokens_and_no_pictures(weights, tmp_path, beit, labelled_folder):
    for kept in (("encoder.",), ("encoder.", "codebook.")):
        part = {name: tensor for name, tensor in weights.items() if name.startswith(kept)}
        torch.save({"weights": part}, tmp_path / "part.bin")
        tokenizer = open_tokenizer(str(tmp_path / "part.bin"))
        images = torch.rand(2, 3, 16, 16)
        assert torch.equal(tokenizer.encode(images), released.tokens(weights, images))
        assert not tokenizer.can_decode
        with pytest.raises(StorageError, match="no decoder"):
            tokenizer.decode(tokenizer.encode(images), (2, 2))
        facts = beit("inspect", tmp_path / "part.bin", "--json").lines[0]
        assert facts["architecture"]["name"] == "BEiT's own dVAE, encoder"
    torch.save({"weights": part | {"codebook.weight": torch.rand(5)}}, tmp_path / "odd.bin")  # a codebook is not read
    assert torch.equal(open_tokenizer(str(tmp_path / "odd.bin")).encode(images), tokenizer.encode(images))
    ended = beit("tokenize", labelled_folder, "--tokenizer", tmp_path / "part.bin", "--reconstruct", tmp_path / "out")
    assert ended.code == 4


def test_a_file_that_is_only_near_is_refused_with_the_tensor_that_differs(weights, tmp_path):
    def refusal(change: released.Weights, *without: str) -> str:
        torch.save({"weights": {k: v for k, v in (weights | change).items() if k not in without}}, tmp_path / "a.bin")
        with pytest.raises(StorageError) as caught:
            open_tokenizer(str(tmp_path / "a.bin"))
        return caught.value.message

    assert "decoder.3.net.2.bias is missing" in refusal({}, "decoder.3.net.2.bias")
    assert "encoder.6.weight is missing" in refusal({}, "encoder.6.weight")
    assert "codebook.weight is missing" in refusal({}, "codebook.weight")
    assert "codebook.weight is (31, 12), not (32, 12)" in refusal({"codebook.weight": torch.rand(31, 12)})
    assert "it has encoder.9.weight too" in refusal({"encoder.9.weight": torch.rand(1)})
    fewer = ("encoder.3.net.0.weight", "encoder.5.net.0.weight")
    assert "blocks_per_group is 0" in refusal({"encoder.4.weight": torch.rand(32, 8, 1, 1)}, *fewer)
    assert "encoder.6.bias holds no floats" in refusal({"encoder.6.bias": torch.zeros(32, dtype=torch.int64)})
    (tmp_path / "b.bin").write_bytes((tmp_path / "a.bin").read_bytes()[:-2000])
    with pytest.raises(StorageError, match="cut short"):
        open_tokenizer(str(tmp_path / "b.bin"))


def test_a_pickle_that_names_code_is_not_run(weights, tmp_path, beit, labelled_folder):
    class Bad:
        def __reduce__(self):
            return open, (str(tmp_path / "ran"), "w")

    torch.save({"weights": weights, "hparams": Bad()}, tmp_path / "bad.bin")
    ended = beit("tokenize", labelled_folder, "--tokenizer", tmp_path / "bad.bin")
    assert ended.code == 4
    assert "is not loaded: its pickle asks for" in ended.err
    assert not (tmp_path / "ran").exists()


def test_commands_take_the_file(weights, file, beit: Callable, labelled_folder: Path, tmp_path: Path):
    stats = beit("tokenize", labelled_folder, "--tokenizer", file, "--size", 16, "--stats").lines[0]
    assert (stats["vocab_size"], stats["images"]) == (32, 24)
    assert stats["mae_normalized"] == pytest.approx(2 * stats["mae"])
    facts = beit("inspect", file).lines[0]
    assert (facts["format"], facts["kind"], facts["container"]) == ("official", "tokenizer", "torch")
    assert (facts["vocab_size"], facts["image_size"], facts["grid"]) == (32, [112, 112], [14, 14])
    assert facts["architecture"] == {"name": "BEiT's own dVAE", "vocab_size": 32, "code_width": 12, "width": 8,
                                     "groups": 3, "blocks_per_group": 1}  # fmt: skip
    assert facts["parameters"] == sum(tensor.numel() for tensor in weights.values())
    run = tmp_path / "pretrained"
    flags = ("--recipe", "tiny", "--image-size", 32, "--num-masked", 6, "--steps", 1, "--batch-size", 4)
    machine = ("--workers", 0, "--device", "cpu")
    ended = beit("pretrain", labelled_folder, "--tokenizer", file, *flags, *machine, "--out", run)
    assert ended.code == 0, ended.err
    assert beit("inspect", run).lines[0]["vocab_size"] == 32
    moved = file.rename(tmp_path / "moved.bin")
    picture = labelled_folder / "red" / "00.jpg"
    shown = beit("mask-preview", picture, "--model", run, "--tokenizer", moved, "-o", tmp_path / "masked.png")
    assert shown.code == 0, shown.err


def test_the_name_of_the_module_is_no_word(beit: Callable, labelled_folder: Path):
    ended = beit("tokenize", labelled_folder, "--tokenizer", "beit-dvae")
    assert ended.code == 4
    assert "Did you mean" not in ended.err


def test_weights_of_a_run_are_those_that_the_release_reads(beit: Callable, labelled_folder: Path, tmp_path: Path):
    flags = ("--recipe", "imagenet-8k", "--vocab-size", 32, "--width", 8, "--size", 16, "--set", "code_width=12")
    machine = ("--steps", 2, "--batch-size", 8, "--workers", 0, "--device", "cpu", "--out", tmp_path / "run")
    ended = beit("train-tokenizer", labelled_folder, *flags, *machine, "--json")
    assert ended.code == 0, ended.err
    assert ended.lines[0]["mae_normalized"] == pytest.approx(2 * ended.lines[0]["mae"])
    card = (tmp_path / "run" / "README.md").read_text()
    assert f"| mean absolute error | {ended.lines[0]['mae']:.4f} |" in card
    assert "pixels in [-1, 1]" not in card  # twice as much
    own = open_tokenizer(str(tmp_path / "run"))
    state = own.model.state_dict()
    assert {name: each.shape for name, each in state.items()} == {
        name: each.shape for name, each in released.random_weights().items()
    }
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(own.encode(images), released.tokens(state, images))
    stored = newest_checkpoint(tmp_path / "run").path / "model.safetensors"
    facts = beit("inspect", tmp_path / "run").lines[0]
    assert (facts["format"], facts["grid"], facts["architecture"]["code_width"]) == ("beit", [2, 2], 12)
    elsewhere = tmp_path / "copy.safetensors"  # without its config.json
    elsewhere.write_bytes(stored.read_bytes())
    assert torch.equal(open_tokenizer(str(elsewhere)).encode(images), own.encode(images))


def test_loss_is_the_error_of_normalized_pixels_and_the_two_divergences():
    config = resolve(TrainTokenizerConfig, {"data": ["sample"], **SMALL}).config
    config = replace(config, kl_weight=0.25, usage_weight=0.5)
    torch.manual_seed(0)
    model = untrained(config)
    objective = kind_of(config).objective(model, config, 10, SINGLE_PROCESS)
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    seeds = torch.tensor([3, 4])
    objective.before_step(9, images, torch.arange(2))  # at the end of the schedules
    loss, metrics = objective.loss(model, images, seeds)
    state = model.state_dict()
    logits = released.logits(state, images / 255)
    drawn = released.decoded(state, gumbel_softmax(logits, 0.0625, seeds))
    error = (drawn - (images / 127.5 - 1)).square().mean()
    q = logits.softmax(dim=1)
    kl = (q * (q * 32).log()).sum(dim=1).mean()
    mean_q = q.mean(dim=(0, 2, 3))
    usage = (mean_q * (mean_q * 32).log()).sum()
    torch.testing.assert_close(loss, error + 0.25 * kl + 0.5 * usage)
    torch.testing.assert_close(metrics["reconstruction"], error)
    loss.backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters())


def test_pixels_are_normalised_by_hand():
    pixels = torch.tensor([0.0, 0.25, 1.0])
    assert normalize(pixels).tolist() == [-1.0, -0.5, 1.0]
    assert denormalize(torch.tensor([-1.5, -0.5, 2.0])).tolist() == [0.0, 0.25, 1.0]


def test_what_cannot_be_built_is_refused(beit: Callable, labelled_folder: Path):
    line = ("train-tokenizer", labelled_folder, "--recipe", "imagenet-8k", "--width", 8, "--dry-run")
    refused = beit(*line, "--reconstruction", "logit-laplace")
    assert refused.code == 2
    assert "does not go with --kind strided-dvae" in refused.err
    odd = beit(*line, "--size", 20)
    assert odd.code == 2
    assert "--size 20 is not divided by 8" in odd.err
    assert beit(*line, "--set", "code_width=0").code == 2
    with pytest.raises(UsageError, match="code_width is 0"):
        StridedDVAEArchitecture(code_width=0)


def test_training_lowers_the_error_and_uses_many_codes():
    config = resolve(TrainTokenizerConfig, {"data": ["sample"], **SMALL}).config
    torch.manual_seed(0)
    model = untrained(config)
    objective = kind_of(config).objective(model, config, 100, SINGLE_PROCESS)
    shades = (255 * torch.rand(32, 3, 2, 2)).to(torch.uint8).repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)

    def error() -> float:
        images = shades / 255
        return float((model.decode(model.encode(images), (2, 2)) - images).abs().mean())

    before = error()
    for step in range(100):
        objective.before_step(step, shades, torch.arange(32))
        loss, _ = objective.loss(model, shades, torch.arange(32) + 32 * step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert error() < 0.85 * before
    assert len(model.encode(shades / 255).unique()) >= 8
