"""Colour maps: a sequential one for values in [0, 1], and a palette for classes."""

from __future__ import annotations

import colorsys

import numpy as np

# Dark blue over red to pale yellow, in equal steps of OKLab lightness (0.14 to 0.96): equal differences look equal,
# and the map stays readable in greyscale.
_HEAT = np.array(
    [
        (9, 0, 40),
        (39, 1, 70),
        (76, 0, 90),
        (118, 2, 98),
        (163, 3, 94),
        (202, 37, 78),
        (228, 82, 60),
        (241, 127, 57),
        (243, 171, 93),
        (240, 211, 153),
        (244, 243, 226),
    ],
    dtype=np.float64,
)
_GOLDEN = 0.61803398875  # step between hues, which keeps any number of them apart
_TONES = [(0.75, 0.90), (0.55, 0.62), (0.42, 1.00)]  # (saturation, value), used in turn


def apply(values: np.ndarray) -> np.ndarray:
    """Maps values to colours, dark for 0 and pale for 1.

    Args:
        values: (H, W) in [0, 1]; values outside are clipped.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ValueError: A value is NaN.
    """
    values = np.asarray(values, dtype=np.float64)
    if np.isnan(values).any():
        raise ValueError("NaN has no colour")
    steps = np.linspace(0, 1, len(_HEAT))
    channels = [np.interp(values, steps, _HEAT[:, channel]) for channel in range(3)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


def class_colours(count: int) -> np.ndarray:
    """Returns one colour per class, (count, 3) uint8. The colour of a class does not depend on `count`."""
    colours = []
    for number in range(count):
        saturation, value = _TONES[number % len(_TONES)]
        colours.append(colorsys.hsv_to_rgb((0.58 + number * _GOLDEN) % 1, saturation, value))
    return np.rint(np.array(colours).reshape(count, 3) * 255).astype(np.uint8)


def apply_classes(labels: np.ndarray, ignore_index: int = 255) -> np.ndarray:
    """Maps class indices to colours.

    Args:
        labels: (H, W) integers, class indices from 0.
        ignore_index: The label without a class; drawn black.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ValueError: A label is negative.
    """
    labels = np.asarray(labels).astype(np.int64)
    classes = np.where(labels == ignore_index, -1, labels)
    if (classes[labels != ignore_index] < 0).any():
        raise ValueError(f"label {int(classes[labels != ignore_index].min())} is not a class")
    palette = np.concatenate([class_colours(int(classes.max(initial=-1)) + 1), np.zeros((1, 3), dtype=np.uint8)])
    return palette[classes]
