"""Colours for amounts."""

from __future__ import annotations

import numpy as np
import pytest

from beitcli.pictures.colormap import apply


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
