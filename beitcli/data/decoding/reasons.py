"""Why an image cannot be used, in a few words that name no path."""

from __future__ import annotations

from collections.abc import Sequence

from beitcli.data.decoding.signatures import TIFF, image_kind
from beitcli.data.decoding.tiff import unread_layout

_BEGINNINGS = (
    (b"<!doctype html", "HTML"),
    (b"<html", "HTML"),
    (b"<head", "HTML"),
    (b"<?xml", "XML"),
    (b"<svg", "SVG"),
    (b"version https://git-lfs", "a Git LFS pointer"),
    (b"%pdf", "PDF"),
    (b"%!ps", "PostScript"),
    (b"pk\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "gzip"),
    (b"{", "JSON"),
)
_NOT_CONVERTED = ("unknown raw mode", "conversion from", "image has wrong mode")  # said of layouts, not of damage
_UNREAD = ("PAM", "PFM")  # of PFM, Pillow reads gray


def unidentified(data: bytes, formats: Sequence[str]) -> str:
    """Tells what a file is that Pillow does not know as one of `formats`."""
    layout = unread_layout(data) if data.startswith(TIFF) else None
    if layout:
        return layout
    kind = image_kind(data)
    if kind in _UNREAD or (kind == "AVIF" and kind not in formats):
        return f"not an image that Pillow reads here (it begins like {kind})"
    if kind is not None:
        return f"damaged: it begins like {kind}, but its header cannot be read"
    if data[4:8] == b"ftyp":
        return "not an image that Pillow reads here (it begins like MP4)"
    head = data[:256].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for beginning, kind in _BEGINNINGS:
        if head.startswith(beginning):
            return f"not an image (it begins like {kind})"
    if not any(data):
        return f"not an image (all of its {len(data):,} bytes are zero)"
    if all(byte >= 32 or byte in b"\t\r\n" for byte in data[:256]) and head.isascii():
        return "not an image (it begins like text)"
    return f"not an image (or none of {', '.join(formats)})"


def damage(error: Exception, data: bytes) -> str:
    """Tells what is wrong with a file whose header Pillow has read."""
    what = " ".join(str(error).split())[:120]
    cut_webp = data.startswith(b"RIFF") and len(data) < 8 + int.from_bytes(data[4:8], "little")
    if isinstance(error, EOFError) or cut_webp or "truncated" in what.lower():
        return f"truncated: its {len(data):,} bytes end before its pixels do"
    layout = unread_layout(data) if what.startswith(_NOT_CONVERTED) and data[:2] in (b"II", b"MM") else None
    return layout or f"damaged: {what or type(error).__name__}"
