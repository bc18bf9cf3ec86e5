"""Format `-`: paths of image files on stdin, one per line, or NUL-separated with `-0`."""

from __future__ import annotations

import sys
from typing import BinaryIO

from beitcli.data.sources.base import Source
from beitcli.data.sources.format import Format, Request
from beitcli.data.sources.formats.list_file import ListSource
from beitcli.errors import DataError


def _open(paths: list[str], request: Request) -> list[Source]:
    if request.stdin is None and sys.stdin is None:
        raise DataError("No paths on stdin: it is closed.", hint="Pipe paths in, or name the images.")
    return [_read(request.stdin or sys.stdin.buffer, request.nul_separated)]


def _read(stdin: BinaryIO, nul_separated: bool) -> ListSource:
    """Reads paths, relative to the working directory, to the end of stdin.

    Args:
        nul_separated: Whether paths end in NUL (`find -print0`), so that they may contain newlines.

    Raises:
        DataError: There are no paths, or NUL bytes without `nul_separated`.
    """
    content = stdin.read()
    if b"\0" in content and not nul_separated:
        raise DataError("The paths on stdin are separated by NUL.", hint="Add -0.")
    separator = b"\0" if nul_separated else b"\n"
    paths = [path for path in content.split(separator) if path.strip(b"\r")]
    if not paths:
        raise DataError("No paths on stdin.", hint="Pipe one path a line, or NUL-separated ones with -0.")
    if not nul_separated:
        paths = [path.removesuffix(b"\r") for path in paths]
    return ListSource(paths, name="-")


FORMAT = Format(looks="- (paths on stdin)", words=("-",), open=_open, rank=90)
