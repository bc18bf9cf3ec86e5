"""Reference points: pixels of the upright image to patches of the square that the model sees, and back."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from beitcli.errors import UsageError

Pixel = tuple[int, int]
Patch = tuple[int, int]
Box = tuple[float, float, float, float]

_POINT = re.compile(r"\s*(-?[0-9]{1,9})\s*,\s*(-?[0-9]{1,9})\s*")


def parse_point(text: str) -> Pixel:
    """`X,Y` as whole pixels.

    Raises:
        UsageError: It is anything else.
    """
    found = _POINT.fullmatch(text)
    if not found:
        raise UsageError(f"--point is '{text}'.", "Give two whole numbers of pixels, X,Y, as in --point 120,80.")
    return int(found[1]), int(found[2])


@dataclass(frozen=True)
class SquareCrop:
    """Where `fit_square` looks in an image, and which patch shows which pixel.

    Attributes:
        width: Of the whole image, in pixels; `height` likewise.
        size: Side of the model's input, in pixels.
        patches: Patches a side.
    """

    width: int
    height: int
    size: int
    patches: int

    @property
    def box(self) -> Box:
        """(left, upper, right, lower) in pixels of the whole image."""
        (left, right), (upper, lower) = self._span(self.width), self._span(self.height)
        return left, upper, right, lower

    def _span(self, side: int) -> tuple[float, float]:
        resized = max(self.size, round(side * (self.size / min(self.width, self.height))))  # as fit_square rounds
        before = (resized - self.size) // 2
        return before * side / resized, (before + self.size) * side / resized

    def inside(self) -> tuple[int, int, int, int]:
        """(left, upper, right, lower), the first and last pixels of which the crop holds the centres."""
        left, upper, right, lower = (math.ceil(edge - 0.5) for edge in self.box)
        return left, upper, right - 1, lower - 1

    def patch_of(self, point: Pixel) -> Patch:
        """(row, column) of the patch that shows the centre of the pixel (x, y).

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
            raise UsageError(
                f"--point {x},{y} lies outside the central square of the image, which is what the model sees.",
                f"Give X from {left} to {right} and Y from {upper} to {lower}.",
            )
        return self._place(y, *self.box[1::2]), self._place(x, *self.box[0::2])

    def _place(self, pixel: int, begin: float, end: float) -> int:
        return min(self.patches - 1, max(0, int((pixel + 0.5 - begin) / (end - begin) * self.patches)))

    def reference_points(self) -> list[Pixel]:
        """The pixels amid four patches, at about 1/4 and 3/4 of each side; fewer where they coincide."""
        near = (self.patches - 1) // 4
        left, upper, right, lower = self.box
        shares = [(place + 0.5) / self.patches for place in (near, self.patches - 1 - near)]
        points = [(int(left + x * (right - left)), int(upper + y * (lower - upper))) for y in shares for x in shares]
        return list(dict.fromkeys(points))

    def to_picture(self, point: Pixel, side: int) -> tuple[float, float]:
        """(x, y) of the pixel's centre in a picture of the crop of `side` pixels, counted as its pixels are."""
        left, upper, right, lower = self.box
        return (
            (point[0] + 0.5 - left) / (right - left) * side - 0.5,
            (point[1] + 0.5 - upper) / (lower - upper) * side - 0.5,
        )
