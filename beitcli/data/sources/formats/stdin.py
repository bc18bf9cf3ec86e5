"""Format `-`: paths of image files on stdin, one per line, or NUL-separated with `-0`; or the bytes of one image."""

from __future__ import annotations

import os
import sys
from typing import BinaryIO

from beitcli.data.sources.base import Source
from beitcli.data.sources.files import require_readable
from beitcli.data.sources.format import Format, Request
from beitcli.data.sources.formats.list_file import BYTE_ORDER_MARK, ListSource
from beitcli.errors import DataError

_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*")
_NAME = "stdin"


class StdinImage(Source):
    """The image whose bytes are on stdin."""

    name = "-"

    def __init__(self, content: bytes) -> None:
        self._content = content

    def __len__(self) -> int:
        return 1

    def path(self, index: int) -> str:
        return _NAME

    def read(self, index: int) -> bytes:
        require_readable(len(self._content))
        return self._content


def _open(paths: list[str], request: Request) -> list[Source]:
    if request.stdin is None and sys.stdin is None:
        raise DataError("No paths on stdin: it is closed.", hint="Pipe paths in, or name the images.")
    return [_read(request.stdin or sys.stdin.buffer, request.nul_separated)]


def _read(stdin: BinaryIO, nul_separated: bool) -> Source:
    """Reads paths, relative to the working directory, or an image, to the end of stdin.

    Args:
        nul_separated: Whether paths end in NUL (`find -print0`), so that they may contain newlines.

    Raises:
        DataError: There are no paths, or they are separated otherwise than `nul_separated` says.
    """
    content = stdin.read()
    if _is_image(content):
        return StdinImage(content)
    if b"\0" in content and not nul_separated:
        raise DataError("The paths on stdin are separated by NUL.", hint="Add -0.")
    if nul_separated and b"\0" not in content and b"\n" in content and not os.path.exists(content):
        raise DataError("The paths on stdin are separated by newlines, and -0 expects NUL.", hint="Leave -0 out.")
    separator = b"\0" if nul_separated else b"\n"
    content = content if nul_separated else content.removeprefix(BYTE_ORDER_MARK)  # as of a list from an editor
    paths = [path for path in content.split(separator) if path.strip(b"\r")]
    if not paths:
        raise DataError("No paths on stdin.", hint="Pipe one path a line, or NUL-separated ones with -0.")
    if not nul_separated:
        paths = [path.removesuffix(b"\r") for path in paths]
    return ListSource(paths, name="-")


def _is_image(content: bytes) -> bool:
    """Whether bytes begin as an image file does, and as no path: of BMP and WebP also by what follows their letters."""
    is_webp = content.startswith(b"RIFF") and content[8:12] == b"WEBP"
    is_bmp = content.startswith(b"BM") and content[6:10] == bytes(4)
    return content.startswith(_BEGINNINGS) or is_webp or is_bmp


FORMAT = Format(looks="- (on stdin: paths, or one image)", words=("-",), open=_open, rank=90)
