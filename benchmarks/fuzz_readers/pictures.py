"""Targets: images and masks."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import suppress

import numpy as np
from PIL import Image, PngImagePlugin

from fuzz_readers.mutators import png_mutation
from fuzz_readers.target import Place, Prepared, Target

# Pixels of the largest image here. The real limit, 179 million, takes the gigabyte that would be a finding.
MAX_PIXELS = 2_000_000


def _photograph(size: tuple[int, int] = (29, 21)) -> Image.Image:
    knots = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(knots).resize(size, Image.Resampling.BICUBIC)


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _frames(image: Image.Image) -> list[Image.Image]:
    return [image.rotate(angle) for angle in (20, 40)]


def jpegs() -> list[bytes]:
    rgb, exif = _photograph(), Image.Exif()
    exif[0x0112] = 6
    return [
        _saved(rgb, "JPEG", quality=80, exif=exif),
        _saved(rgb, "JPEG", progressive=True, quality=60, icc_profile=b"x" * 200),
        _saved(rgb.convert("L"), "JPEG"),
        _saved(rgb.convert("CMYK"), "JPEG", comment=b"words"),
    ]


def pngs() -> list[bytes]:
    rgb, texts = _photograph(), PngImagePlugin.PngInfo()
    texts.add_text("a", "b" * 300, zip=True)
    texts.add_itxt("c", "d" * 300, zip=True)
    exif = Image.Exif()
    exif[0x0112] = 8
    gray = rgb.convert("L")
    return [
        _saved(rgb, "PNG", icc_profile=b"x" * 200, pnginfo=texts),
        _saved(rgb.convert("RGBA"), "PNG", exif=exif),
        _saved(rgb.quantize(16), "PNG", transparency=3),
        _saved(gray.convert("I;16"), "PNG"),
        _saved(gray.convert("1"), "PNG"),
        _saved(rgb, "PNG", save_all=True, append_images=_frames(rgb)),
    ]


def tiffs() -> list[bytes]:
    rgb = _photograph()
    gray = rgb.convert("L")
    kinds = [(rgb, "tiff_lzw"), (rgb, "tiff_deflate"), (gray, "raw"), (gray.convert("1"), "group4"), (rgb, "jpeg")]
    made = [_saved(image, "TIFF", compression=how) for image, how in kinds]
    made.append(_saved(gray.convert("1"), "TIFF", compression="packbits"))
    made += [_saved(image, "TIFF") for image in (gray.convert("I;16"), gray.convert("F"), gray.convert("I"))]
    made += [_saved(rgb.quantize(8), "TIFF"), _saved(rgb.convert("RGBA"), "TIFF"), _saved(rgb.convert("CMYK"), "TIFF")]
    white = bytearray(_saved(gray, "TIFF"))
    at = white.find(b"\x06\x01\x03\x00\x01\x00\x00\x00\x01\x00")  # photometric interpretation
    white[at + 8] = 0
    return [*made, bytes(white)]


def netpbms() -> list[bytes]:
    rgb = _photograph((7, 5))
    gray = rgb.convert("L")
    made = [_saved(rgb, "PPM"), _saved(gray, "PPM"), _saved(gray.convert("1"), "PPM"), _saved(gray.convert("I"), "PPM")]
    made += [b"P1\n3 2\n1 0 1\n0 1 0\n", b"P2\n# words\n3 2\n2\n0 1 2\n2 1 0\n", b"P3 2 1 255 1 2 3 4 5 6\n"]
    made += [b"P5 3 2 2\n\0\1\2\2\1\0", b"P5 2 1 65535\n\0\1\2\3", b"P6 1 1 300\n\0\1\0\2\1\3"]
    return [
        *made,
        b"Pf\n2 1\n-1.0\n" + np.float32([0.5, 2]).tobytes(),
        b"PF\n1 1\n1.0\n" + bytes(12),
        b"P0CMYK 1 1 255\n",
    ]


def gifs() -> list[bytes]:
    rgb = _photograph()
    frames = [each.quantize(16) for each in _frames(rgb)]
    return [
        _saved(rgb.quantize(16), "GIF", save_all=True, append_images=frames, transparency=2, comment=b"words"),
        _saved(rgb.convert("L"), "GIF", interlace=True),
    ]


def webps() -> list[bytes]:
    rgb = _photograph()
    exif = Image.Exif()
    exif[0x0112] = 3
    return [
        _saved(rgb, "WEBP", quality=50, exif=exif),
        _saved(rgb.convert("RGBA"), "WEBP", lossless=True),
        _saved(rgb, "WEBP", save_all=True, append_images=_frames(rgb)),
    ]


def bmps() -> list[bytes]:
    rgb = _photograph()
    kinds = (rgb, rgb.convert("L"), rgb.convert("1"), rgb.quantize(16), rgb.convert("RGBA"))
    return [_saved(image, "BMP") for image in kinds]


def newer() -> list[bytes]:
    rgb = _photograph()
    made = [_saved(rgb, "JPEG2000"), _saved(rgb.convert("L"), "JPEG2000", irreversible=True)]
    with suppress(KeyError, OSError):
        made.append(_saved(rgb, "AVIF"))
    return made


def _decoder(seeds: Callable[[], list[bytes]]) -> Callable[[Place], Prepared]:
    def prepare(place: Place) -> Prepared:
        from beitcli.data import decode
        from beitcli.errors import BeitError

        decode.MAX_PIXELS = MAX_PIXELS
        Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2

        def use(data: bytes) -> None:
            outcomes = []
            for read in (decode.decode_rgb, decode.decode_pixels):
                try:
                    outcomes.append(np.asarray(read(data)))
                except BeitError:
                    outcomes.append(None)
            first, second = outcomes
            assert (first is None) == (second is None), "one decoder reads it, the other does not"
            if first is not None and second is not None:
                assert (first.dtype, first.ndim, first.shape[2]) == (np.uint8, 3, 3)
                assert np.array_equal(first, second), "the decoders read other pixels"
            try:
                size = decode.read_upright_size(data)
            except BeitError:
                size = None
            if first is not None and size is not None:
                assert size == (first.shape[1], first.shape[0]), "the header's size is not the image's"

        return Prepared(use, seeds(), png_mutation if seeds is pngs else None)

    return prepare


def _masks(place: Place) -> Prepared:
    from beitcli.data import decode
    from beitcli.data.annotations.label_maps import IGNORED, LabelMapping
    from beitcli.errors import BeitError

    decode.MAX_PIXELS = MAX_PIXELS
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2
    rules = [LabelMapping(), LabelMapping(classes=3, reduce_zero_label=True, ignore_index=7)]

    def use(data: bytes) -> None:
        mask = decode.decode_index_mask(data)
        assert (mask.dtype, mask.ndim) == (np.uint8, 2)
        for rule in rules:
            with suppress(BeitError):
                labels = rule.to_labels(mask)
                assert rule.classes is None or bool(((labels < rule.classes) | (labels == IGNORED)).all())

    return Prepared(use, [*pngs(), *tiffs(), *netpbms(), *gifs(), *bmps(), *newer()], png_mutation)


_KINDS: dict[str, Callable[[], list[bytes]]] = {
    "jpeg": jpegs, "png": pngs, "tiff": tiffs, "netpbm": netpbms, "gif": gifs, "webp": webps, "bmp": bmps,
    "jpeg2000, avif": newer,
}  # fmt: skip
TARGETS = [
    *(Target(f"image {name}", f"{name.upper()}: pixels and sizes", _decoder(seeds)) for name, seeds in _KINDS.items()),
    Target("mask", "masks of any image format, label mappings", _masks),
]
