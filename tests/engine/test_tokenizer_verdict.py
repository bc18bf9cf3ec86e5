"""`tokenize --stats`: figures by hand, and a verdict of each level on real tokenizers, as text and as JSON."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from beitcli.config.train_tokenizer import KINDS
from beitcli.tokenizers.open import open_tokenizer
from beitcli.tokenizers.pretrained import PRETRAINED

PALETTE = '''
"""`palette/N` and, without pictures, `palette-blind/N`: mean colours of 4 x 4 pixels, a channel in N steps."""

import torch
import torch.nn.functional as F

from beitcli.tokenizers.base import Tokenizer, TokenizerModel
from beitcli.tokenizers.pretrained import PretrainedTokenizer


class Blind(TokenizerModel):
    def __init__(self, steps):
        super().__init__()
        self.steps, self.vocab_size, self.downsample = steps, steps**3, 4

    def encode(self, images):
        red, green, blue = (F.avg_pool2d(images, 4) * self.steps).long().clamp(max=self.steps - 1).unbind(1)
        return ((red * self.steps + green) * self.steps + blue).flatten(1)


class Palette(Blind):
    def decode(self, tokens, grid):
        parts = [tokens // self.steps**2, tokens // self.steps % self.steps, tokens % self.steps]
        colors = (torch.stack(parts, 1).unflatten(2, grid) + 0.5) / self.steps
        return F.interpolate(colors, scale_factor=4)


class Exact(Palette):
    def decode(self, tokens, grid):
        return super().decode(tokens, grid).sub(0.5 / self.steps).mul(self.steps / (self.steps - 1))


def recognizes(reference):
    return reference.startswith("palette")


def open_palette(reference, on_progress):
    kind, steps = reference.split("/")
    kinds = {"palette": Palette, "palette-blind": Blind, "palette-exact": Exact}
    return Tokenizer(reference, kinds[kind](int(steps)), 16, "0" * 64)


TOKENIZER = PretrainedTokenizer(recognizes, open_palette, lambda reference, on_progress: None)
'''


def forget() -> None:
    for registry in (KINDS, PRETRAINED):
        vars(registry).pop("_points", None)


@pytest.fixture
def stats(beit: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable]:
    """`stats(TOKENIZER, DATA...)`: the document and what is told on stderr."""
    site = tmp_path / "site"
    info = site / "palettes-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "palettes.py").write_text(PALETTE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: palettes\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[beitcli.tokenizers.pretrained]\npalette = palettes\n")

    def run(tokenizer: object, *data: object) -> tuple[dict, str]:
        ended = beit("tokenize", *data, "--tokenizer", tokenizer, "--stats", "--workers", 0, "--device", "cpu")
        assert ended.code == 0, ended.err
        (document,) = ended.lines
        assert ended.err.count(document["reason"]) == 1  # text and JSON say the same
        return document, ended.err

    with monkeypatch.context() as patch:
        patch.syspath_prepend(str(site))
        forget()
        yield run
    forget()
    sys.modules.pop("palettes", None)


def save(folder: Path, colors: np.ndarray, noise: float = 0.0) -> Path:
    """Saves images of 4 x 4 patches: (images, 4, 4, 3) colours in [0, 1]."""
    folder.mkdir()
    rng = np.random.default_rng(1)
    for number, each in enumerate(colors):
        pixels = each.repeat(4, axis=0).repeat(4, axis=1)
        pixels = np.clip(pixels + noise * rng.normal(size=pixels.shape), 0, 1)
        Image.fromarray((255 * pixels).round().astype(np.uint8)).save(folder / f"{number:02d}.png")
    return folder


def colorful(images: int = 24, low: float = 0.0, high: float = 1.0) -> np.ndarray:
    return np.random.default_rng(0).uniform(low, high, (images, 4, 4, 3))


def test_stats_figures_equal_those_by_hand(stats: Callable, tmp_path: Path) -> None:
    data = save(tmp_path / "data", colorful(), noise=0.1)
    document, _ = stats("palette/3", data)
    images = np.stack([np.asarray(Image.open(path)) for path in sorted(data.iterdir())]) / 255
    patches = images.reshape(-1, 4, 4, 4, 4, 3).swapaxes(2, 3)  # (images, h, w, 4, 4, 3)
    means = patches.mean(axis=(3, 4), keepdims=True)
    bins = (means * 3).astype(int).clip(max=2)
    tokens = (bins * [9, 3, 1]).sum(axis=-1).ravel()
    shares = np.bincount(tokens, minlength=27) / tokens.size
    entropy = -(shares[shares > 0] * np.log(shares[shares > 0])).sum()
    squared = ((patches - (bins + 0.5) / 3) ** 2).mean()
    around_image = ((images - images.mean(axis=(1, 2), keepdims=True)) ** 2).mean()
    expected = {
        "tokens_per_image": 16,
        "entropy_share": entropy / np.log(27),
        "commonest_share": shares.max(),
        "psnr": -10 * np.log10(squared),
        "psnr_image_mean": -10 * np.log10(around_image),
        "psnr_patch_mean": -10 * np.log10(((patches - means) ** 2).mean()),
        "explained_variance": 1 - squared / around_image,
    }
    assert {name: document[name] for name in expected} == pytest.approx(expected, rel=1e-4)


def test_a_tokenizer_whose_codes_are_even_and_whose_pictures_are_close_suits(stats: Callable, tmp_path: Path) -> None:
    data = save(tmp_path / "data", colorful())
    document, told = stats("palette/3", data)
    assert document["verdict"] == "suits"
    assert document["reason"].startswith("The tokenizer suits this data: 27 of 27 codes, perplexity ")
    assert "dB; one colour an image: " in document["reason"]
    assert "dB, a patch: no error)" in document["reason"]
    assert "warning" not in told
    blind, _ = stats("palette-blind/3", data)
    assert (blind["verdict"], blind["mae"], blind["explained_variance"]) == ("suits", None, None)
    assert "it has no decoder" in blind["reason"]


def test_a_tokenizer_that_a_plain_colour_a_patch_beats_does_not_suit_without_a_word(
    stats: Callable, tmp_path: Path
) -> None:
    """The noise within patches is no token's matter; a third of the range is coarser than each patch's own mean."""
    document, told = stats("palette/3", save(tmp_path / "data", colorful(), noise=0.1))
    own, plain = document["psnr"], document["psnr_patch_mean"]
    assert own < plain
    assert document["explained_variance"] > 0.5
    assert document["verdict"] == "usable"
    assert (
        f"but one plain colour a patch is closer to the images ({plain:.1f} dB) than its pictures ({own:.1f} dB). One "
        "trained on it may do better. Train one on this data, or this one longer if it was: beit train-tokenizer "
    ) in document["reason"]
    assert "warning: The tokenizer is usable" in told


def test_pictures_without_any_error_have_no_psnr_and_suit(stats: Callable, tmp_path: Path) -> None:
    """Black and white in two steps, decoded as black and white."""
    bits = np.random.default_rng(0).integers(0, 2, (24, 4, 4, 3)).astype(float)
    document, _ = stats("palette-exact/2", save(tmp_path / "data", bits))
    assert (document["verdict"], document["psnr"], document["explained_variance"]) == ("suits", None, 1.0)
    assert "(no error; one colour an image: " in document["reason"]


def test_a_common_code_makes_it_usable_and_names_the_way_out(stats: Callable, tmp_path: Path) -> None:
    colors = colorful()
    colors[:, 0] = 1.0  # a quarter of each image is white
    data = save(tmp_path / "the data", colors)
    document, told = stats("palette/3", data)
    assert document["verdict"] == "usable"
    assert f"{document['commonest_share']:.0%} of the tokens are one code" in document["reason"]
    assert document["reason"].endswith(
        f"beit train-tokenizer '{data}' --recipe small --out runs/tokenizer"
    )  # a name with a space is quoted
    assert "warning: The tokenizer is usable" in told


@pytest.mark.parametrize(("tokenizer", "low", "high", "said"), [
    ("palette/3", 0.4, 0.6, "its codes are used unevenly (1 of 27 codes"),
    ("palette/3", 0.4, 0.6, "100% of the tokens are one code"),
    ("palette/2", 0.45, 0.55, "its pictures are worse than one colour an image"),
])  # fmt: skip
def test_a_tokenizer_that_sees_nothing_does_not_suit(
    stats: Callable, tmp_path: Path, tokenizer: str, low: float, high: float, said: str
) -> None:
    document, told = stats(tokenizer, save(tmp_path / "data", colorful(low=low, high=high)))
    assert document["verdict"] == "does not suit"
    assert said in document["reason"]
    assert "Train one on this data, or this one longer if it was: beit train-tokenizer" in document["reason"]
    assert "warning: The tokenizer does not suit" in told


def test_a_tokenizer_of_four_steps_does_not_suit(stats: Callable, tokenizer_run: Path, labelled_folder: Path) -> None:
    document, _ = stats(tokenizer_run, labelled_folder)
    assert document["verdict"] == "does not suit"
    assert document["vocab_size"] == open_tokenizer(str(tokenizer_run)).vocab_size == 16


def test_images_of_one_colour_are_named_as_such(stats: Callable, tmp_path: Path) -> None:
    same = np.broadcast_to(np.array([0.3, 0.5, 0.7]), (24, 4, 4, 3))
    document, _ = stats("palette/3", save(tmp_path / "data", same))
    assert (document["verdict"], document["explained_variance"]) == ("does not suit", None)
    assert "each image is of one colour (1 of 27 codes used)" in document["reason"]
    assert "train-tokenizer" not in document["reason"]


def test_too_few_tokens_give_no_verdict(stats: Callable, tmp_path: Path) -> None:
    document, _ = stats("palette/3", save(tmp_path / "one", colorful(1)))
    assert document["verdict"] == "cannot tell"
    told = "1 image has 16 tokens, and 27 codes need 108. Give 7 images or more."
    assert document["reason"] == f"Whether the tokenizer suits this data cannot be told: {told}"
    assert stats("palette/3", save(tmp_path / "seven", colorful(7)))[0]["verdict"] != "cannot tell"


def test_no_readable_image_gives_no_verdict(stats: Callable, beit: Callable, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    words = ("--tokenizer", "palette/3", "--stats", "--on-bad", "skip", "--workers", 0)
    (document,) = beit("tokenize", tmp_path / "a.png", *words).lines
    assert (document["verdict"], document["entropy_share"], document["commonest_share"]) == ("cannot tell", None, None)
    assert "no image was read" in document["reason"]
