"""Signatures: every format that is decoded is told by its bytes, and nothing else is."""

from __future__ import annotations

from io import BytesIO

import pytest
from PIL import Image, features

from beitcli.data.decode import decode_rgb
from beitcli.data.decoding.signatures import image_kind
from beitcli.errors import BadImage


def written(form: str, mode: str = "RGB", **options: object) -> bytes:
    file = BytesIO()
    Image.new(mode, (6, 4), 1).save(file, form, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("form", "mode", "options", "kind"),
    [
        ("JPEG", "RGB", {}, "JPEG"),
        ("PNG", "RGB", {}, "PNG"),
        ("GIF", "L", {}, "GIF"),
        ("WEBP", "RGB", {}, "WebP"),
        ("BMP", "RGB", {}, "BMP"),
        ("TIFF", "RGB", {}, "TIFF"),
        ("TIFF", "RGB", {"big_tiff": True}, "TIFF"),
        ("JPEG2000", "RGB", {}, "JPEG 2000"),
        ("JPEG2000", "RGB", {"no_jp2": True}, "JPEG 2000"),
        ("PPM", "RGB", {}, "PNM"),
        ("PPM", "L", {}, "PNM"),
        ("PPM", "1", {}, "PNM"),
        ("PPM", "F", {}, "PFM"),
        pytest.param(
            *("AVIF", "RGB", {}, "AVIF"),
            marks=pytest.mark.skipif(not features.check("avif"), reason="this Pillow writes no AVIF"),
        ),
    ],
)
def test_what_pillow_writes_is_told_by_its_first_bytes(form: str, mode: str, options: dict, kind: str) -> None:
    content = written(form, mode, **options)
    assert image_kind(content) == image_kind(content[:256]) == kind


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x20ftypmif1\0\0\0\0mif1avifmiaf", "AVIF"),
        (b"\0\0\0\x1cftypavis\0\0\0\0avismsf1", "AVIF"),
        (b"MM\0+\0\x08\0\0", "TIFF"),
        (b"P1\n# made by hand\n# twice\n6 4\n0 1", "PNM"),
        (b"P2 6 4 255 0", "PNM"),
        (b"P7\nWIDTH 6\nHEIGHT 4\n", "PAM"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom", None),
        (b"RIFF\x24\0\0\0WAVEfmt ", None),
        (b"BMW.png\nBMX.png\n", None),
        (b"P6\nphoto.png\n", None),
        (b"P2\n3\n4\n", None),
        (b"P7\nP8\n", None),
        (b"GIF8/photo.png\n", None),
        (b"", None),
    ],
)
def test_other_beginnings_are_told_apart(content: bytes, kind: str | None) -> None:
    assert image_kind(content) == kind


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff\x4f\xff\x51\0", "damaged: it begins like JPEG 2000"),
        (b"P7\nWIDTH 6\nHEIGHT 4\n", "begins like PAM"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom", "begins like MP4"),
        (b"BMW is no picture", "begins like text"),
        (b"RIFF\x24\0\0\0WAVEfmt ", "not an image"),
    ],
)
def test_the_reason_names_what_a_file_begins_like(content: bytes, said: str) -> None:
    with pytest.raises(BadImage, match=said):
        decode_rgb(content)
