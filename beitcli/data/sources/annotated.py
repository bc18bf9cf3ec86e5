"""Images of another source with annotations beside them, such as masks or boxes, in place of image labels."""

from __future__ import annotations

import numpy as np
from PIL import Image

from beitcli.data.sources.base import Source


class AnnotatedSource(Source):
    """Passes on the images of a source, without their labels; the annotations are the subclass's.

    Args:
        images: Whose name and splits it has.
    """

    def __init__(self, images: Source) -> None:
        self.images = images
        self.name, self.splits = images.name, images.splits

    def __len__(self) -> int:
        return len(self.images)

    def global_index(self, index: int) -> int:
        return self.images.global_index(index)

    def path(self, index: int) -> str:
        return self.images.path(index)

    def read(self, index: int) -> bytes:
        return self.images.read(index)

    def stored_bytes(self, index: int) -> int | None:
        return self.images.stored_bytes(index)

    def inner(self) -> tuple[Source, ...]:
        return (self.images,)

    def image(self, index: int) -> Image.Image:
        return self.images.image(index)

    def pixels(self, index: int) -> np.ndarray:
        return self.images.pixels(index)
