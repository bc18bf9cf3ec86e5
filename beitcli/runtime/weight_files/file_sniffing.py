"""Recognizes files that are not weights by their first bytes: a web page, an error message, an archive, an image.

Dead links and expired logins are the usual cause: the download succeeds, and loading the file fails with a message
about pickles ("invalid load key, '<'").
"""

from __future__ import annotations

import json
import re

from beitcli.runtime.storage.safe_json import parse_json

HEAD_BYTES = 8192
_AGAIN = "Check its address in a browser, then download it again."
_UNPACK = "Unpack it and give the weights file in it."
_MAGIC = (
    (b"\x1f\x8b", "a gzip archive", _UNPACK),
    (b"BZh", "a bzip2 archive", _UNPACK),
    (b"\xfd7zXZ\x00", "an xz archive", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (b"\x89PNG\r\n", "a PNG image", _AGAIN),
    (b"\xff\xd8\xff", "a JPEG image", _AGAIN),
    (b"GIF8", "a GIF image", _AGAIN),
    (b"%PDF", "a PDF document", _AGAIN),
    (b"\x89HDF", "an HDF5 file", "Give the weights as safetensors or as a torch file."),
    (b"\x93NUMPY", "a NumPy array", "Give the weights as safetensors or as a torch file."),
)
_LOG = re.compile(r"\A--\d{4}-\d\d-\d\d \d\d:\d\d:\d\d--|\ASaving to: |\Acurl: \(\d+\)|% Total\s+% Received")


def one_line(text: str, limit: int = 80) -> str:
    """Returns one line of at most `limit` characters, with whitespace collapsed and control characters escaped."""
    line = " ".join(text.split())
    line = line if len(line) <= limit else line[: limit - 1] + "…"
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in line)


def sniff(head: bytes) -> tuple[str, str] | None:
    """Returns a description of the file and a hint for the user; None if it may hold weights.

    Args:
        head: The first HEAD_BYTES of the file.
    """
    if not head:
        return "is empty", "Download it again, and see that the disk has room."
    for magic, what, hint in _MAGIC:
        if head.startswith(magic):
            return f"is {what}", hint
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "is a WebP image", _AGAIN
    if head[257:262] == b"ustar":
        return "is a tar archive", _UNPACK
    text = _text(head)
    return None if text is None else _sniff_text(text)


def _text(head: bytes) -> str | None:
    """Decodes the head as text; None if it is binary."""
    encoding = "utf-16" if head.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    text = head.decode(encoding, errors="replace").strip()
    controls = sum(ord(char) < 32 and char not in "\t\n\r\f\x1b\b" for char in text)
    undecoded = text.count("�")
    return text if text and controls == 0 and undecoded <= max(4, len(text) // 20) else None


def _sniff_text(text: str) -> tuple[str, str]:
    start = text[:2000].lower()
    if start.startswith("version https://git-lfs"):
        size = re.search(r"^size (\d+)$", text, re.MULTILINE)
        of = f" of {int(size[1]):,} bytes" if size else ""
        return (
            f"is a Git LFS pointer: it only names the file{of}",
            "Run `git lfs install` and `git lfs pull` in its repository, or download the file itself.",
        )
    if "<html" in start or start.startswith("<!doctype html"):
        return _web_page(text)
    if start.startswith(("<?xml", "<error")):
        return _xml(text)
    if start.startswith(("{", "[")):
        return _json(text)
    if _LOG.search(text):
        last = text.splitlines()[-1]
        return f"is the log of a download, not what it fetched; it ends '{one_line(last)}'", _AGAIN
    return f"is text that begins '{one_line(text)}'", _AGAIN


def _web_page(text: str) -> tuple[str, str]:
    title = re.search(r"<title[^>]*>(.*?)</title", text, re.IGNORECASE | re.DOTALL)
    named = f" with the title '{one_line(title[1])}'" if title and title[1].strip() else ""
    return f"is a web page{named}, not weights", "The link is dead or wants a login. " + _AGAIN


def _xml(text: str) -> tuple[str, str]:
    code = re.search(r"<Code>(.*?)</Code>", text, re.IGNORECASE | re.DOTALL)
    message = re.search(r"<Message>(.*?)</Message>", text, re.IGNORECASE | re.DOTALL)
    if code is None:
        return f"is XML that begins '{one_line(text)}'", _AGAIN
    said = f": {one_line(message[1])}" if message else ""
    return (
        f"is a storage server's error '{one_line(code[1])}'{said}",
        "The link is dead or not public any more. Take the weights from another publisher, such as a model hub.",
    )


def _json(text: str) -> tuple[str, str]:
    try:
        document = parse_json(text)
    except ValueError:  # invalid, or longer than the head
        document = None
    if isinstance(document, dict):
        for key in ("error", "message", "detail", "errors"):
            if document.get(key):
                said = document[key] if isinstance(document[key], str) else json.dumps(document[key])
                return f"is a server's error message '{one_line(said)}'", _AGAIN
    return f"is JSON that begins '{one_line(text)}'", "Give the weights file that lies beside it."
