"""Numbers of the confusion matrix are read on their tints, in light and dark."""

from __future__ import annotations

import re

import pytest

from beitcli.pictures.page_file import page_part

READABLE = 4.5  # WCAG 2.1, contrast of normal text


def themes() -> dict[str, dict[str, tuple[int, ...]]]:
    """The colours of `base.css` by theme and name."""
    blocks = {"light": r":root \{(.*?)\}", "dark": r':root\[data-theme="dark"\] \{(.*?)\}'}
    found = {name: re.search(block, page_part("base.css"), re.DOTALL)[1] for name, block in blocks.items()}
    colours = {name: re.findall(r"--([a-z-]+): #([0-9a-f]{6})", text) for name, text in found.items()}
    return {name: {each: tuple(bytes.fromhex(code)) for each, code in pairs} for name, pairs in colours.items()}


def luminance(colour: tuple[float, ...]) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (each / 255 for each in colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_of_black_and_white_is_21() -> None:
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("colour", ["good", "bad"])
def test_the_strongest_tint_leaves_its_number_readable(theme: str, colour: str) -> None:
    share = int(re.search(r"const TINT = ([0-9]+);", page_part("report/page.js"))[1]) / 100
    colours = themes()[theme]
    ground = tuple(share * c + (1 - share) * p for c, p in zip(colours[colour], colours["paper"], strict=True))
    assert contrast(ground, colours["ink"]) >= READABLE
