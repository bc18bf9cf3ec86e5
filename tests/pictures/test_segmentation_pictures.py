"""Label maps as pictures: colours that differ, pixels that stay what they were, edges, and a legend."""

from __future__ import annotations

import numpy as np
from PIL import Image

from beitcli.pictures.palette import VOID, class_colours, from_oklab, seen_by_the_colour_blind, to_oklab
from beitcli.pictures.segmentation import edges, indexed, overlay


def closest(count: int) -> float:
    lab = to_oklab(class_colours()[:count])
    between = np.linalg.norm(lab[:, None] - lab[None], axis=-1)
    return float(between[np.triu_indices(count, 1)].min())


def test_class_colours_differ_and_the_first_ones_most():
    assert class_colours().shape == (256, 3)
    assert len(np.unique(class_colours(), axis=0)) == 256
    assert class_colours()[255].tolist() == list(VOID)
    assert closest(12) > 0.14
    assert closest(20) > 0.12
    assert closest(150) > 0.05


def test_neighbouring_classes_differ_and_for_the_colour_blind_too():
    lab = to_oklab(class_colours()[:20])
    assert np.linalg.norm(lab[1:] - lab[:-1], axis=1).min() > 0.15
    colour = lab[:12, 1:]  # without lightness, which an overlay takes from the photograph
    apart = np.linalg.norm(colour[:, None] - colour[None], axis=-1)
    assert apart[np.triu_indices(12, 1)].min() > 0.05
    assert apart[np.arange(11), np.arange(1, 12)].min() > 0.1
    for seen in seen_by_the_colour_blind(class_colours()[:20]):
        assert np.linalg.norm(seen[1:] - seen[:-1], axis=1).min() > 0.08
        between = np.linalg.norm(seen[:12, None] - seen[None, :12], axis=-1)
        assert between[np.triu_indices(12, 1)].min() > 0.06


def test_the_green_blind_see_red_and_green_alike_and_greys_as_they_are():
    red_and_green = np.array([[200, 90, 60], [120, 130, 60]])
    most, (_, green_blind) = to_oklab(red_and_green), seen_by_the_colour_blind(red_and_green)
    assert np.linalg.norm(green_blind[0] - green_blind[1]) < 0.35 * np.linalg.norm(most[0] - most[1])
    grey = np.array([120, 120, 120])
    np.testing.assert_allclose(seen_by_the_colour_blind(grey), np.stack([to_oklab(grey)] * 2), atol=1e-4)


def test_oklab_of_known_colours_and_back():
    white, red = to_oklab(np.array([[255, 255, 255], [255, 0, 0]]))
    np.testing.assert_allclose(white, [1, 0, 0], atol=1e-3)
    np.testing.assert_allclose(red, [0.628, 0.2249, 0.1258], atol=1e-3)  # Ottosson's own figures
    np.testing.assert_array_equal(from_oklab(to_oklab(class_colours())), class_colours())


def test_indexed_picture_keeps_its_values():
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    picture = indexed(values)
    assert picture.mode == "P"
    np.testing.assert_array_equal(np.asarray(picture), values)
    shown = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    np.testing.assert_array_equal(shown[1:], class_colours()[1:])
    assert shown[0].tolist() == [0, 0, 0]
    assert indexed(values, has_background=False).convert("RGB").getpixel((0, 0)) == tuple(class_colours()[0].tolist())


def test_overlay_mixes_the_colour_of_the_class_in_and_leaves_a_background():
    pixels = np.full((60, 640, 3), 200, np.uint8)
    values = np.zeros((60, 640), np.uint8)
    values[:, 200:400], values[:, 500:] = 1, 255
    picture = np.asarray(overlay(pixels, values, {0: "background", 1: "cat"}))
    half = np.rint(0.5 * 200 + 0.5 * class_colours()[1]).tolist()
    assert picture[30, 300].tolist() == half
    assert (picture[30, 200] == class_colours()[1]).all()  # its edge
    assert (picture[30, 202:398] == half).all()
    assert (picture[:60, 2:198] == 200).all()
    assert len(np.unique(picture[:60, 510:], axis=0)) > 1  # hatched
    assert picture.shape[0] > 60  # the legend
    assert picture.shape[1] == 640
    named = np.asarray(overlay(pixels, values, {0: "sky", 1: "cat"}))
    assert (named[30, 100] == np.rint(0.5 * 200 + 0.5 * class_colours()[0])).all()


def test_overlay_of_a_small_image_is_enlarged_and_names_each_class():
    values = np.repeat(np.arange(3, dtype=np.uint8), 12)[None].repeat(20, axis=0)
    picture = overlay(np.zeros((20, 36, 3), np.uint8), values, {0: "a", 1: "b", 2: "c"})
    assert picture.width == 18 * 36
    below = np.asarray(picture)[18 * 20 :]
    for value in range(3):
        assert (below == class_colours()[value]).all(axis=-1).sum() > 100


def test_edges_are_on_both_sides():
    labels = np.array([[0, 0, 0, 1, 1, 1]])
    assert edges(labels, 1).tolist() == [[False, False, True, True, False, False]]
    assert edges(labels, 2).tolist() == [[False, True, True, True, True, False]]
    assert Image.fromarray(edges(labels.T, 1)).size == (1, 6)
