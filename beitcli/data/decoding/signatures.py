"""What image files begin with: by it bytes without a name are known as an image, or as a damaged one."""

from __future__ import annotations

import re

from beitcli.data.decoding.heif import is_heif

TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two BigTIFF
_BEGINNINGS: tuple[tuple[tuple[bytes, ...], str], ...] = (
    ((b"\xff\xd8",), "JPEG"),
    ((b"\x89PNG",), "PNG"),
    ((b"GIF87a", b"GIF89a"), "GIF"),
    (TIFF, "TIFF"),
    ((b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"), "JPEG 2000"),  # in its box, or the codestream alone
)
_SPACE = rb"(?:\s|#[^\r\n]*[\r\n])+"
_TEXTUAL = (  # with what follows their letters: a list of files may begin with the name P6
    (re.compile(rb"P[14]" + _SPACE + rb"[0-9]+" + _SPACE + rb"[0-9]+\s"), "PNM"),
    (re.compile(rb"P[2356]" + 2 * (_SPACE + rb"[0-9]+") + _SPACE + rb"[0-9]+\s"), "PNM"),  # and the largest value
    (re.compile(rb"P[Ff]\s+[0-9]+\s+[0-9]+\s+[-+.0-9]+\s"), "PFM"),
    (re.compile(rb"P7\n(?:#|WIDTH |HEIGHT )"), "PAM"),
)


def image_kind(data: bytes) -> str | None:
    """Returns the format whose signature a file begins with; None if there is none.

    Of the files of ISO's base format only HEIC and AVIF are images: MP4 is none.
    """
    for beginnings, kind in _BEGINNINGS:
        if data.startswith(beginnings):
            return kind
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WebP"
    if data.startswith(b"BM") and data[6:10] == bytes(4):
        return "BMP"
    if is_heif(data):
        return "HEIC"
    if data[4:8] == b"ftyp" and any(brand in data[8:48] for brand in (b"avif", b"avis")):
        return "AVIF"
    return next((kind for form, kind in _TEXTUAL if form.match(data[:256])), None)
