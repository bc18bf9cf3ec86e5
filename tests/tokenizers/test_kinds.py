"""A tokenizer of another kind, added by one file of an installed package, goes through every command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from beitcli.config.train_tokenizer import KINDS
from beitcli.errors import StorageError
from beitcli.tokenizers.dvae import DiscreteVAE
from beitcli.tokenizers.open import build_on_meta, open_tokenizer
from beitcli.tokenizers.pretrained import PRETRAINED

TOY = '''
"""The mean colour of a patch, each channel in `levels` steps; a palette of the codes is learned to decode them."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from beitcli.config.fields import option
from beitcli.tokenizers.base import Tokenizer, TokenizerModel, to_unit
from beitcli.tokenizers.kind import Objective, TokenizerKind, own_settings
from beitcli.tokenizers.pretrained import PretrainedTokenizer, TokenizerFacts


@dataclass(frozen=True, kw_only=True)
class Settings:
    levels: int = option(3, "Steps of a channel.", ge=2, le=8)


class MeanColour(TokenizerModel):
    def __init__(self, levels, patch):
        super().__init__()
        self.levels, self.vocab_size, self.downsample = levels, levels**3, patch
        self.palette = nn.Parameter(torch.rand(levels**3, 3))
        self.register_buffer("steps_seen", torch.zeros(1))

    def preprocess(self, images):
        return 2 * to_unit(images) - 1

    @torch.no_grad()
    def encode(self, images):
        assert images.dtype == torch.float32 and images.min() < 0, "not as `preprocess` gives them"
        means = F.avg_pool2d(images, self.downsample) / 2 + 0.5
        red, green, blue = (means * self.levels).long().clamp(max=self.levels - 1).unbind(1)
        return ((red * self.levels + green) * self.levels + blue).flatten(1)

    def forward(self, tokens, grid):
        return F.interpolate(self.palette[tokens].mT.unflatten(2, grid), scale_factor=self.downsample)

    @torch.no_grad()
    def decode(self, tokens, grid):
        return self(tokens, grid).clamp(0, 1)


class Colours(Objective):
    purpose = "toy"

    def before_step(self, step, images, places):
        self.weight = (step + 1) / self.steps

    def loss(self, forward, images, seeds):
        assert images.dtype == torch.uint8 and seeds.shape == images.shape[:1]
        grid = (images.shape[2] // self.model.downsample, images.shape[3] // self.model.downsample)
        decoded = forward(self.model.encode(self.model.preprocess(images)), grid)
        error = F.mse_loss(decoded, to_unit(images))
        return self.weight * error, {"colour_loss": error.detach()}

    def after_step(self, step):
        self.model.steps_seen += 1

    def log_metrics(self):
        return {"colour_weight": self.weight}

    def held_out_metrics(self, images, tokens):
        return {"red_share": images[:, 0].mean((1, 2)) / images.mean((1, 2, 3)) / 3}


def architecture(config):
    return {"levels": own_settings(config).levels, "patch": 2 ** (config.groups - 1)}


def build(architecture, stored):
    return MeanColour(**architecture)


KIND = TokenizerKind("palette of mean colours", architecture, build, Colours, Settings)


class Blind(TokenizerModel):
    """Codes without pictures."""

    def __init__(self):
        super().__init__()
        self.vocab_size, self.downsample = 2, 4
        self.threshold = nn.Parameter(torch.tensor(0.25))

    def encode(self, images):
        return (F.avg_pool2d(images.mean(1), 4) > self.threshold).long().flatten(1)

    def forward(self, images):
        return (images.mean() - self.threshold).square()


class Threshold(Objective):
    def loss(self, forward, images, seeds):
        assert seeds is None
        return forward(self.model.preprocess(images)), {}


BLIND = TokenizerKind("threshold", lambda config: {}, lambda architecture, stored: Blind(), Threshold)


def recognizes(reference):
    return reference in ("paint", "hf://toys/paint")


def open_paint(reference, on_progress):
    model = MeanColour(2, 8)
    return Tokenizer(reference, model, 32, "0" * 64, notes=("Paint is wet.",))


def facts(reference, on_progress):
    if not recognizes(reference):
        return None
    return TokenizerFacts("toy", {"levels": 2}, 8, 32, 8, 24, [], {"palette": [8, 3]})


TOKENIZER = PretrainedTokenizer(recognizes, open_paint, facts)
'''


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package of one module, and one more that has a kind without a decoder."""
    site = tmp_path / "site"
    info = site / "toy_tokenizers-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "toy_tokenizers.py").write_text(TOY)
    (site / "blind_tokenizer.py").write_text("from toy_tokenizers import BLIND as KIND\n")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-tokenizers\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[beitcli.tokenizers.kinds]\ntoy = toy_tokenizers\nblind = blind_tokenizer\n"
        "[beitcli.tokenizers.pretrained]\npaint = toy_tokenizers\n"
    )
    with monkeypatch.context() as patch:
        patch.syspath_prepend(str(site))
        forget()
        yield site
    forget()
    for name in ("toy_tokenizers", "blind_tokenizer"):
        sys.modules.pop(name, None)


def forget() -> None:
    """What the registries know of installed packages."""
    for registry in (KINDS, PRETRAINED):
        vars(registry).pop("_points", None)


SHORT = ("--workers", 0, "--device", "cpu", "--batch-size", 8)
SMALL = ("--size", 16, "--groups", 3, "--lr", 0.1, "--weight-decay", 0)


@pytest.fixture
def toy_run(beit: Callable, installed: Path, labelled_folder: Path, tmp_path: Path) -> Path:
    """40 steps of the toy: 16 x 16 pixels in 4 x 4 tokens of 27 codes."""
    run = tmp_path / "toy"
    ended = beit("train-tokenizer", labelled_folder, "--kind", "toy", *SMALL, *SHORT, "--steps", 40, "--out", run)
    assert ended.code == 0, ended.err
    assert "palette of mean colours, 81 parameters, 27 codes" in ended.err
    return run


def test_a_kind_of_an_installed_package_is_trained(
    beit: Callable, toy_run: Path, labelled_folder: Path, tmp_path: Path
) -> None:
    lines = [json.loads(each) for each in (toy_run / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["colour_weight"] == 1
    assert lines[-1]["colour_loss"] < lines[0]["colour_loss"] / 2
    assert 0 < lines[-1]["held_out_red_share"] < 1
    card = (toy_run / "README.md").read_text()
    assert "# A visual tokenizer (palette of mean colours)" in card
    assert "| red share | " in card
    assert 'kind = "toy"' in (toy_run / "config.toml").read_text()
    stats = beit("tokenize", labelled_folder, "--tokenizer", toy_run, "--stats").lines[0]
    assert (stats["vocab_size"], stats["images"]) == (27, 24)
    assert stats["psnr"] > 10
    facts = beit("inspect", toy_run).lines[0]
    assert (facts["format"], facts["vocab_size"], facts["grid"]) == ("beit", 27, [4, 4])
    assert (facts["architecture"], facts["parameters"]) == (
        {"name": "palette of mean colours (toy)", "levels": 3, "patch": 4},
        81,
    )
    assert load_file(toy_run / "checkpoints" / "step-0000040" / "model.safetensors")["steps_seen"] == 40


def test_tokens_of_an_installed_kind_are_those_of_its_encoder(
    beit: Callable, toy_run: Path, labelled_folder: Path, tmp_path: Path
) -> None:
    red = beit("tokenize", labelled_folder / "red" / "00.jpg", "--tokenizer", toy_run).lines[0]["tokens"]
    blue = beit("tokenize", labelled_folder / "blue" / "00.jpg", "--tokenizer", toy_run).lines[0]["tokens"]
    assert len(red) == 16
    assert min(red) // 9 >= max(blue) // 9  # the code's first digit is its red
    tokenizer = open_tokenizer(str(toy_run))
    white = torch.full((1, 3, 16, 16), 255, dtype=torch.uint8)
    white[:, :, 0, 0] = 0
    assert tokenizer.encode(white).tolist() == [[26] * 16]
    drawn = beit("tokenize", labelled_folder, "--tokenizer", toy_run, "--reconstruct", tmp_path / "drawn", "--limit", 2)
    assert drawn.code == 0, drawn.err
    assert len(list((tmp_path / "drawn").rglob("*.png"))) == 4


def test_pretraining_learns_from_an_installed_kind(
    beit: Callable, toy_run: Path, labelled_folder: Path, tmp_path: Path
) -> None:
    """In low precision, which the kind does not have: its tokens stay fp32's."""
    run = tmp_path / "pretrained"
    flags = ("--recipe", "tiny", "--image-size", 32, "--num-masked", 6, "--steps", 2, *SHORT)
    line = ("pretrain", labelled_folder, "--tokenizer", toy_run, *flags)
    ended = beit(*line, "--token-precision", "bf16", "--out", run)
    assert ended.code == 0, ended.err
    assert "computes in fp32: its kind has no bf16" in ended.err
    assert beit(*line, "--out", tmp_path / "fp32").code == 0
    weights = [each / "checkpoints" / "step-0000002" / "model.safetensors" for each in (run, tmp_path / "fp32")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert beit("inspect", run).lines[0]["vocab_size"] == 27
    shown = beit("mask-preview", labelled_folder / "red" / "00.jpg", "--model", run, "-o", tmp_path / "masked.png")
    assert shown.code == 0, shown.err


def test_a_kind_has_settings_of_its_own(beit: Callable, installed: Path, labelled_folder: Path, tmp_path: Path) -> None:
    line = ("train-tokenizer", labelled_folder, "--kind", "toy", *SMALL, *SHORT, "--steps", 1)
    plan = beit(*line, "--set", "levels=2", "--dry-run").lines[0]["plan"]
    assert plan["model"] == "palette of mean colours, 24 parameters, 8 codes"
    assert plan["images of"] == "16 x 16 pixels to 4 x 4 tokens"
    for given, wrong in (
        ("level=2", "It has levels=3: Steps of a channel."),
        ("levels", "is no setting"),
        ("levels=9", "--levels"),
    ):
        ended = beit(*line, "--set", given, "--dry-run")
        assert ended.code == 2
        assert wrong in ended.err, ended.err
    other = beit("train-tokenizer", labelled_folder, *SMALL, *SHORT, "--steps", 1, "--set", "levels=2", "--dry-run")
    assert other.code == 2
    assert "no setting of tokenizer kind 'vq'" in other.err
    assert beit(*line, "--set", "levels=2", "--out", tmp_path / "a").code == 0
    assert beit("inspect", tmp_path / "a").lines[0]["vocab_size"] == 8
    changed = beit("train-tokenizer", "--out", tmp_path / "a", "--resume", "--set", "levels=4")
    assert changed.code == 2
    assert "--set: the run has" in changed.err


def test_a_size_that_the_kind_does_not_divide_is_refused(
    beit: Callable, installed: Path, labelled_folder: Path
) -> None:
    for kind in ("toy", "dvae"):
        ended = beit("train-tokenizer", labelled_folder, "--kind", kind, "--groups", 3, "--size", 18, "--steps", 1)
        assert ended.code == 2
        assert "--size 18 is not divided by 4" in ended.err


def test_a_kind_without_a_decoder_is_measured_by_its_codes(
    beit: Callable, installed: Path, labelled_folder: Path, tmp_path: Path
) -> None:
    run = tmp_path / "blind"
    line = ("train-tokenizer", labelled_folder, "--kind", "blind", *SMALL, *SHORT, "--steps", 2, "--out", run)
    report = beit(*line, "--json").lines[0]
    assert (report["psnr"], report["mae"], report["vocab_size"]) == (None, None, 2)
    assert 1 <= report["codes_used"] <= 2
    card = (run / "README.md").read_text()
    assert "PSNR" not in card
    assert "--reconstruct" not in card
    stats = beit("tokenize", labelled_folder, "--tokenizer", run, "--stats").lines[0]
    assert stats["psnr"] is None
    refused = beit("tokenize", labelled_folder, "--tokenizer", run, "--reconstruct", tmp_path / "drawn")
    assert refused.code == 4
    assert "has no decoder" in refused.err


def test_a_run_of_a_kind_that_is_not_installed_says_so(
    beit: Callable, toy_run: Path, installed: Path, labelled_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each != str(installed)])
    forget()
    for command in (("tokenize", labelled_folder, "--tokenizer", toy_run), ("inspect", toy_run)):
        ended = beit(*command)
        assert ended.code == 4
        assert "of kind 'toy', which is not installed" in ended.err


def test_a_word_of_an_installed_package_opens_its_tokenizer(
    beit: Callable, installed: Path, labelled_folder: Path
) -> None:
    ended = beit("tokenize", labelled_folder, "--tokenizer", "paint", "--limit", 3)
    assert ended.code == 0, ended.err
    assert "Paint is wet." in ended.err
    assert ended.lines[0]["grid"] == [4, 4]
    assert max(max(each["tokens"]) for each in ended.lines) < 8
    assert beit("inspect", "paint").lines[0]["vocab_size"] == 8
    hub = beit("tokenize", labelled_folder, "--tokenizer", "hf://toys/paint", "--limit", 3)  # not taken for DALL-E's
    assert (hub.code, hub.lines[0]["grid"]) == (0, [4, 4]), hub.err
    assert beit("inspect", "hf://toys/paint").lines[0]["vocab_size"] == 8
    assert "Did you mean 'paint'?" in beit("tokenize", labelled_folder, "--tokenizer", "paints").err


def test_help_names_installed_kinds_without_torch(installed: Path) -> None:
    script = (
        "import sys; from beitcli.cli.app import main; code = main(['train-tokenizer', '--help']); "
        "sys.exit('loaded' if {'torch', 'toy_tokenizers'} & set(sys.modules) else code)"
    )
    paths = os.pathsep.join([str(installed), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": paths, "COLUMNS": "200"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "dvae|fsq|strided-dvae|vq|vqkd|blind|toy" in done.stdout


def test_checkpoints_that_do_not_name_their_kind_are_discrete_vaes(tokenizer_run: Path) -> None:
    """As runs of earlier versions."""
    section = json.loads((tokenizer_run / "checkpoints" / "step-0000004" / "config.json").read_text())["beit"]
    assert section.pop("tokenizer_kind") == "dvae"
    names = load_file(tokenizer_run / "checkpoints" / "step-0000004" / "model.safetensors")
    model, size = build_on_meta(section, names, "a")
    assert isinstance(model, DiscreteVAE)
    assert (model.vocab_size, model.downsample, size) == (16, 4, 16)
    many = section | {"architecture": section["architecture"] | {"blocks_per_group": 10**6}}
    with pytest.raises(StorageError, match="does not fit its own config: 3 groups of 1000000 blocks"):
        build_on_meta(many, names, "a")
    for kind in (["dvae"], None, "vae", 3):
        with pytest.raises(StorageError, match="which is not installed"):
            build_on_meta(section | {"tokenizer_kind": kind}, names, "a")


def test_a_run_whose_config_names_no_kind_goes_on(beit: Callable, labelled_folder: Path, tmp_path: Path) -> None:
    """As that of an earlier version, and it ends where one does that never stopped."""
    line = (
        "train-tokenizer",
        labelled_folder,
        "--kind",
        "dvae",
        *SMALL,
        *SHORT,
        "--width",
        8,
        "--steps",
        2,
        "--save-every",
        1,
    )
    assert beit(*line, "--out", tmp_path / "whole").code == 0
    assert beit(*line, "--out", tmp_path / "old").code == 0
    checkpoints = tmp_path / "old" / "checkpoints"
    last = checkpoints / "step-0000002"
    for file in last.iterdir():
        file.unlink()
    last.rmdir()
    config = tmp_path / "old" / "config.toml"
    kept = [each for each in config.read_text().splitlines() if not each.startswith(("kind", "# kind"))]
    config.write_text("\n".join(kept) + "\n")
    ended = beit("train-tokenizer", "--out", tmp_path / "old", "--resume", "--workers", 0, "--device", "cpu")
    assert ended.code == 0, ended.err
    whole = tmp_path / "whole" / "checkpoints" / "step-0000002" / "model.safetensors"
    assert (last / "model.safetensors").read_bytes() == whole.read_bytes()
