"""PNG's one transparent colour, in every depth, also interlaced."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest

from beitcli.data.decode import decode_rgb
from tests.data.decoding.test_tiff import packed
from tests.data.test_decode import chunk

ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def keyed_png(values: np.ndarray, bits: int, key: list[int], interlaced: bool) -> bytes:
    passes = ADAM7 if interlaced else ((0, 0, 1, 1),)
    parts = [values[top::down, left::right] for top, left, down, right in passes]
    rows = [row.reshape(1, -1) for part in parts if part.size for row in part]
    colour = 2 if values.shape[2] == 3 else 0
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, colour, 0, 0, interlaced)
    body = zlib.compress(b"".join(b"\0" + packed(row, bits, ">") for row in rows))
    transparent = chunk(b"tRNS", struct.pack(f">{len(key)}H", *key))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + transparent + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(("bits", "samples"), [(1, 1), (2, 1), (4, 1), (8, 1), (16, 1), (8, 3), (16, 3)])
def test_transparent_colour_is_white_and_no_other(bits: int, samples: int, interlaced: bool) -> None:
    values = np.random.default_rng(bits).integers(0, 1 << bits, (9, 11, samples), dtype=np.uint32)
    key = values[3, 4].tolist()
    values[5, 6] = key
    if bits > 1:
        values[7, 8] = [*key[:-1], key[-1] ^ 1]  # of the same high byte
    is_key = (values == key).all(axis=2)
    top = (1 << bits) - 1
    seen = np.asarray(decode_rgb(keyed_png(values, bits, key, interlaced))).astype(float)
    assert (seen[is_key] == 255).all()
    assert np.abs(seen - values * 255 / top)[~is_key].max() <= 1


def test_only_the_low_bits_of_the_transparent_gray_count() -> None:
    values = np.array([[[0], [1], [2]]], np.uint32)
    assert np.asarray(decode_rgb(keyed_png(values, 2, [0xFFF1], False)))[0, :, 0].tolist() == [0, 255, 170]
