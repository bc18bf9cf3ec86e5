"""Visual tokens drawn: like codes have like colours, every token has its cell, and the codebook's sheet shows all."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from beitcli.pictures.palette import to_oklab
from beitcli.pictures.tokens import CodeEntry, codebook_sheet, similarity_colours, token_map, token_panels, usage_chart


def distances(vectors: np.ndarray) -> np.ndarray:
    return np.linalg.norm(vectors[:, None] - vectors[None], axis=-1)[np.triu_indices(len(vectors), 1)]


@pytest.mark.parametrize(("codes", "width"), [(40, 3), (200, 16), (12, 64)])
def test_like_codes_have_like_colours(codes, width):
    """Four groups of codes: within one the colours are nearer than between any two."""
    rng = np.random.default_rng(0)
    group = np.arange(codes) % 4
    vectors = 4 * rng.standard_normal((4, width))[group] + 0.1 * rng.standard_normal((codes, width))
    lab = to_oklab(similarity_colours(vectors))
    between = np.linalg.norm(lab[:, None] - lab[None], axis=-1)
    same = group[:, None] == group[None]
    assert between[same].max() < between[~same].min()


def test_distances_of_codes_and_of_their_colours_rank_alike():
    vectors = np.random.default_rng(1).standard_normal((60, 3))
    near, far = (np.argsort(np.argsort(distances(each))) for each in (vectors, to_oklab(similarity_colours(vectors))))
    assert np.corrcoef(near, far)[0, 1] > 0.7


def test_colours_of_equal_codebooks_are_equal_and_no_sign_is_left_open():
    vectors = np.random.default_rng(2).standard_normal((50, 8))
    colours = similarity_colours(vectors)
    turned = similarity_colours(vectors @ np.linalg.qr(np.random.default_rng(3).standard_normal((8, 8)))[0])
    assert np.abs(turned.astype(int) - colours).max() <= 1
    assert similarity_colours(np.zeros((3, 2))).tolist() == [similarity_colours(np.zeros((1, 2)))[0].tolist()] * 3


def test_colours_are_turned_to_what_codes_look_like():
    """Vectors that hold the colours themselves, shuffled and with wrong signs: dark codes are dark, red ones red."""
    looks = np.random.default_rng(4).integers(0, 256, (120, 3), dtype=np.uint8)
    lab = to_oklab(looks)
    vectors = -lab[:, [2, 0, 1]] / lab.std(axis=0)[[2, 0, 1]]
    some = np.arange(0, 120, 3)
    colours = to_oklab(similarity_colours(vectors, (some, looks[some])))
    for axis in range(3):
        assert np.corrcoef(colours[:, axis], lab[:, axis])[0, 1] > 0.85


def test_token_map_has_a_cell_of_its_colour_for_each_token():
    colours = np.array([[10, 20, 30], [200, 0, 0], [0, 0, 250]], np.uint8)
    tokens = np.array([[0, 1], [2, 2]])
    pixels = np.asarray(token_map(tokens, colours, (40, 20)))
    assert pixels[5, 10].tolist() == colours[0].tolist()
    assert pixels[5, 30].tolist() == colours[1].tolist()
    assert (pixels[12:, :] == colours[2]).all()  # no seam between equal ones
    assert (pixels[10] == 255).all()
    assert (pixels[:10, 20] == 255).all()


def test_token_panels_are_two_or_with_a_decoder_three():
    image, tokens = Image.new("RGB", (56, 56)), np.arange(49).reshape(7, 7) % 5
    colours = np.zeros((5, 3), np.uint8)
    two = token_panels(image, tokens, colours, "a.jpg")
    assert [panel.picture.size for panel in two] == [(448, 448)] * 2
    assert two[1].notes[0].startswith("49 tokens, 5 different")
    assert len(token_panels(image, tokens, colours, "a.jpg", image)) == 3


def test_codebook_sheet_shows_mean_and_decoded_patch_of_every_code():
    reds = range(10, 130, 10)
    entries = [
        CodeEntry(red, 500 - red, Image.new("RGB", (8, 8), (red, 0, 0)), Image.new("RGB", (8, 8), (0, red, 0)))
        for red in reds
    ]
    pixels = np.asarray(codebook_sheet(entries, 9000, 12, 512, "40 images")).reshape(-1, 3)
    for red in reds:
        assert ((pixels == (red, 0, 0)).all(axis=1)).sum() == 70 * 70
        assert ((pixels == (0, red, 0)).all(axis=1)).sum() == 70 * 70


@pytest.mark.parametrize("counts", [np.array([7, 0, 3, 1]), np.array([0, 5]), np.arange(3000)])
def test_usage_chart_takes_any_counts(counts):
    figures = {"perplexity": 1.7, "verdict": "suits"}
    picture = usage_chart(counts, figures, "The tokenizer suits this data.")
    assert picture.width > 600
