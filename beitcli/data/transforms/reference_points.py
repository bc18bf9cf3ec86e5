"""Reference points of attention maps: from pixels of the upright image to patches of its center crop, and back."""

from __future__ import annotations

import math
from dataclasses import dataclass

from beitcli.data.transforms.base import center_box
from beitcli.errors import UsageError

Pixel = tuple[int, int]
Patch = tuple[int, int]
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class CentralCrop:
    """The center crop that `fit_center` takes of an image, and its patches.

    Attributes:
        width: Of the whole image, in pixels; `height` likewise.
        size: (H, W) of the model's input, in pixels.
        grid: (h, w) patches.
    """

    width: int
    height: int
    size: tuple[int, int]
    grid: tuple[int, int]

    @property
    def box(self) -> Box:
        """(left, upper, right, lower) in pixels of the whole image."""
        return center_box(self.width, self.height, self.size)

    def inside(self) -> tuple[int, int, int, int]:
        """Returns (left, upper, right, lower): the first and last pixels whose centres lie in the crop."""
        left, upper, right, lower = (math.ceil(edge - 0.5) for edge in self.box)
        return left, upper, right - 1, lower - 1

    def patch_of(self, point: Pixel) -> Patch:
        """Returns (row, column) of the patch that contains the centre of the pixel (x, y).

        Raises:
            UsageError: The pixel is not in the image, or not in the crop.
        """
        x, y = point
        if not (0 <= x < self.width and 0 <= y < self.height):
            raise UsageError(
                f"--point {x},{y} lies outside the image, which has {self.width} x {self.height} pixels.",
                f"Give X from 0 to {self.width - 1} and Y from 0 to {self.height - 1}.",
            )
        left, upper, right, lower = self.inside()
        if not (left <= x <= right and upper <= y <= lower):
            part = "square" if self.size[0] == self.size[1] else "part"
            raise UsageError(
                f"--point {x},{y} lies outside the central {part} of the image, which is what the model sees.",
                f"Give X from {left} to {right} and Y from {upper} to {lower}.",
            )
        (begin_x, begin_y, end_x, end_y), (rows, columns) = self.box, self.grid
        return _place(y, begin_y, end_y, rows), _place(x, begin_x, end_x, columns)

    def reference_points(self) -> list[Pixel]:
        """Returns up to four default points: pixels at the centres of the patches near 1/4 and 3/4 of each side."""
        left, upper, right, lower = self.box
        down, across = (_quarters(patches) for patches in self.grid)
        points = [(int(left + x * (right - left)), int(upper + y * (lower - upper))) for y in down for x in across]
        return list(dict.fromkeys(points))

    def to_picture(self, point: Pixel, size: tuple[int, int]) -> tuple[float, float]:
        """Returns (x, y) of the pixel's centre in a picture of the crop, whose pixel centres are whole numbers.

        Args:
            size: (width, height) of the picture.
        """
        left, upper, right, lower = self.box
        return (
            (point[0] + 0.5 - left) / (right - left) * size[0] - 0.5,
            (point[1] + 0.5 - upper) / (lower - upper) * size[1] - 0.5,
        )


def _place(pixel: int, begin: float, end: float, patches: int) -> int:
    """Returns the index of the patch that contains the centre of a pixel, along one side."""
    return min(patches - 1, max(0, int((pixel + 0.5 - begin) / (end - begin) * patches)))


def _quarters(patches: int) -> list[float]:
    """Returns the centres of the patches near 1/4 and 3/4 of a side, as fractions of the side."""
    near = (patches - 1) // 4
    return [(place + 0.5) / patches for place in (near, patches - 1 - near)]
