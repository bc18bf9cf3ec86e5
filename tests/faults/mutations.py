"""Seeded damage: what disks, networks and people do to a file, as pure functions of (content, seed)."""

from __future__ import annotations

import json
import random
from typing import Any

_EXTREMES = (b"\0", b"\xff", b"\x7f", b"\x80", b"\x01")
_VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2**31, 2**64, 1e308, -1.5, float("nan"), "", "x", "../../../x", "/etc/passwd", "\0", "\ud800",
    [], [[]], [1, 2, 3, 4, 5], {}, {"x": 1}, "9" * 5000,
)  # fmt: skip


def mutated(content: bytes, seed: int) -> bytes:
    """One to four damages to bytes: bits, runs, lengths, pieces moved, the end cut off."""
    draw = random.Random(seed)
    data = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 4))):
        if not data:
            break
        _DAMAGES[draw.randrange(len(_DAMAGES))](data, draw)
    return bytes(data)


def _bit(data: bytearray, draw: random.Random) -> None:
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)


def _early_bit(data: bytearray, draw: random.Random) -> None:
    """Headers stand at the beginning."""
    data[draw.randrange(min(64, len(data)))] ^= 1 << draw.randrange(8)


def _extreme(data: bytearray, draw: random.Random) -> None:
    """A field of 1 to 8 bytes at its least or greatest."""
    place, length = draw.randrange(len(data)), draw.choice((1, 2, 4, 8))
    data[place : place + length] = (draw.choice(_EXTREMES) * length)[: len(data) - place]


def _noise(data: bytearray, draw: random.Random) -> None:
    place = draw.randrange(len(data))
    length = min(len(data) - place, draw.randrange(1, 64))
    data[place : place + length] = draw.randbytes(length)


def _cut(data: bytearray, draw: random.Random) -> None:
    del data[draw.randrange(len(data)) :]


def _remove(data: bytearray, draw: random.Random) -> None:
    place = draw.randrange(len(data))
    del data[place : place + draw.randrange(1, 64)]


def _insert(data: bytearray, draw: random.Random) -> None:
    place = draw.randrange(len(data))
    data[place:place] = draw.randbytes(draw.randrange(1, 64))


def _repeat(data: bytearray, draw: random.Random) -> None:
    place, to = draw.randrange(len(data)), draw.randrange(len(data))
    data[to:to] = data[place : place + draw.randrange(1, 600)]


_DAMAGES = (_bit, _early_bit, _early_bit, _extreme, _extreme, _noise, _cut, _remove, _insert, _repeat)


def mutated_json(content: bytes, seed: int) -> bytes:
    """Valid JSON that says something else somewhere; every fourth damages its bytes, every 50th is deeply nested."""
    draw = random.Random(seed)
    if seed % 50 == 49:
        return b"[" * 200_000 if draw.random() < 0.5 else b'{"a":' * 100_000
    if seed % 4 == 3:
        return mutated(content, seed)
    document = json.loads(content)
    for _ in range(draw.choice((1, 1, 2))):
        document = _changed(document, draw)
    return json.dumps(document).encode()


def _changed(value: Any, draw: random.Random) -> Any:
    """Another value at a place that is drawn by walking down from the top."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice(sorted(value))
        rest = {name: each for name, each in value.items() if name != key}
        how = draw.random()
        if how < 0.1:
            return rest
        if how < 0.2:
            return rest | {draw.choice(("", "x", "beit", "architecture", "model_type")): value[key]}
        return rest | {key: _changed(value[key], draw)}
    if isinstance(value, list) and value and draw.random() < 0.8:
        place = draw.randrange(len(value))
        return [*value[:place], _changed(value[place], draw), *value[place + 1 :]]
    if type(value) in (int, float) and draw.random() < 0.5:
        half = value // 2 if isinstance(value, int) else value / 2
        return draw.choice((value + 1, -value, value * 1000, half, value * 10**9))
    return draw.choice(_VALUES)
