"""Class indices of a segmentation mask: the numbers that its file stores."""

from __future__ import annotations

import numpy as np
from PIL import Image

from beitcli.data.decoding import jpeg2000, netpbm, png, tiff
from beitcli.errors import BadImage


def refuse_as_mask(image: Image.Image, data: bytes) -> None:
    """Raises BadImage for an opened mask whose numbers are not class indices, or not surely so."""
    lossy = {"JPEG": "JPEG", "MPO": "JPEG", "AVIF": "lossy AVIF"}.get(image.format or "")
    if image.format == "TIFF":
        lossy = tiff.lossy_compression(image)
    if image.format == "JPEG2000" and _is_irreversible(data):
        lossy = "JPEG 2000"
    if lossy:
        raise BadImage(f"a {lossy} as mask: its compression changes class indices", "Store masks as PNG.")
    if image.mode not in ("1", "L", "P") and not image.mode.startswith("I"):
        raise BadImage(f"a mask in mode {image.mode}, not class indices in gray or palette", "Store masks as PNG.")


def _is_irreversible(data: bytes) -> bool:
    """Tells whether a JPEG 2000 file has the wavelet that rounds: byte 13 of its COD segment is 0."""
    segment = data.find(b"\xff\x52")
    return segment >= 0 and data[segment + 13 : segment + 14] == b"\0"


def stored_indices(image: Image.Image, data: bytes) -> np.ndarray:
    """Returns (H, W) integers as the file stores them: gray values or palette indices; loads the image."""
    if image.format == "PPM" and image.mode == "1":  # Pillow's True is white, which a PBM stores as 0
        image.load()
        return ~np.asarray(image)
    if image.format == "PPM":
        return netpbm.stored_gray(image, data)
    image.load()
    if image.format == "TIFF":
        return tiff.stored_gray(image, *tiff.sample_type(image))
    if image.format == "JPEG2000" and image.mode != "P":
        return jpeg2000.stored_gray(image, data)
    values = np.asarray(image)
    return values // png.gray_step(data) if image.format == "PNG" else values
