"""JPEG: segments that have nothing to do with the pixels are left out where Pillow stumbles over one of them."""

from __future__ import annotations

_START_OF_SCAN = 0xDA
_COMMENT = 0xFE
_APPLICATION = range(0xE0, 0xF0)


def without_metadata(data: bytes) -> bytes:
    """Returns the JPEG with EXIF and whole JFIF and Adobe headers as its only metadata; libjpeg reads nothing else."""
    parts, place = [data[:2]], 2
    while place + 4 <= len(data) and data[place] == 0xFF and data[place + 1] != _START_OF_SCAN:
        marker, end = data[place + 1], place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        if end > len(data) or _is_needed(marker, data[place + 4 : end]):
            parts.append(data[place:end])
        place = end
    return b"".join((*parts, data[place:]))


def _is_needed(marker: int, body: bytes) -> bool:
    if marker in _APPLICATION:
        least = {0xE0: (b"JFIF\0", 14), 0xE1: (b"Exif\0\0", 6), 0xEE: (b"Adobe", 12)}.get(marker)
        return least is not None and body.startswith(least[0]) and len(body) >= least[1]
    return marker != _COMMENT
