"""The formats of DATA, and what help says of them without loading any."""

from __future__ import annotations

from collections.abc import Iterable

from beitcli.config.registry import Registry

DATA_FORMATS = Registry("beitcli.data.sources.formats", "FORMAT", "data format")


def data_formats() -> str:
    """What DATA may look like, in the order of the formats' ranks."""
    written = sorted(DATA_FORMATS.written, key=lambda each: each.get("rank") or 0)
    *looks, last = (each["looks"] for each in written if each.get("looks"))
    return f"{', '.join(looks)} or {last}"


def is_data_word(reference: str) -> bool:
    """Whether it is DATA that names no file, such as `sample`."""
    return any(is_word(reference, each.get("words") or ()) for each in DATA_FORMATS.written)


def is_word(reference: str, words: Iterable[str]) -> bool:
    """Whether the reference is one of the words; one that ends in `/` stands for all that begin so."""
    return any(reference.startswith(word) if word.endswith("/") else reference == word for word in words)


def data_help() -> str:
    """Of arguments that are DATA."""
    return f"Images: {data_formats()}."
