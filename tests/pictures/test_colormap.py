"""Colours for amounts and classes."""

from __future__ import annotations

import numpy as np
import pytest

from beitcli.pictures.colormap import apply, class_colours


def test_heat_runs_from_dark_to_pale():
    colours = apply(np.array([[0.0, 1.0]]))
    assert colours.dtype == np.uint8
    assert colours.tolist() == [[[9, 0, 40], [244, 243, 226]]]


def test_heat_clips_what_lies_outside():
    assert np.array_equal(apply(np.array([[-3.0, 7.0]])), apply(np.array([[0.0, 1.0]])))


def test_heat_grows_brighter_all_the_way():
    luminance = apply(np.linspace(0, 1, 41)[None])[0] @ np.array([0.299, 0.587, 0.114])
    assert (np.diff(luminance) > 0).all()


def test_heat_refuses_nan():
    with pytest.raises(ValueError, match="NaN"):
        apply(np.array([[np.nan]]))


def test_class_colours_differ_and_stay():
    colours = class_colours(150)
    assert len(np.unique(colours, axis=0)) == 150
    assert np.array_equal(class_colours(7), colours[:7])
    first = class_colours(12).astype(int)
    distances = np.abs(first[:, None] - first[None]).sum(-1) + 1000 * np.eye(12)
    assert distances.min() > 60


def test_class_colours_of_none_are_empty():
    assert class_colours(0).shape == (0, 3)
