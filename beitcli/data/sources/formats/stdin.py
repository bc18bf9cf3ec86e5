"""Format `-`: paths of image files on stdin, one per line, or NUL-separated with `-0`; or the bytes of one image."""

from __future__ import annotations

import os
import sys
from typing import BinaryIO

from beitcli.data.decoding.signatures import image_kind
from beitcli.data.sources.base import Source
from beitcli.data.sources.files import require_readable
from beitcli.data.sources.format import Format, Request
from beitcli.data.sources.formats.list_file import BYTE_ORDER_MARK, ListSource
from beitcli.errors import DataError

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
        DataError: There are no paths, they are separated otherwise than `nul_separated` says, or it is another file.
    """
    content = stdin.read()
    if _is_image(content, nul_separated):
        return StdinImage(content)
    if b"\0" in content and not nul_separated:
        if os.path.exists(content.partition(b"\0")[0]):
            raise DataError("The paths on stdin are separated by NUL.", hint="Add -0.")
        raise DataError(
            "What is on stdin is neither a list of paths nor an image.",
            hint="Pipe one path a line, NUL-separated ones with -0, or the bytes of an image.",
        )
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


def _is_image(content: bytes, nul_separated: bool) -> bool:
    """Whether stdin holds an image, and not a list whose first path reads like the header of a netpbm image.

    The pixels of P1 to P3 are text as well, so that a file named `P1` decides; those of the others are not, and a file
    decides that is named by more than those two letters.
    """
    kind = image_kind(content)
    if kind not in ("PNM", "PFM"):
        return kind is not None
    first = content.partition(b"\0" if nul_separated else b"\n")[0].removesuffix(b"\r")
    may_be_path = len(first) > 2 or first in (b"P1", b"P2", b"P3")
    return not (may_be_path and os.path.exists(first))


FORMAT = Format(looks="- (on stdin: paths, or one image)", words=("-",), open=_open, rank=90)
