"""Format of image files that DATA lists one by one or by a pattern."""

from __future__ import annotations

import os

from beitcli.data.sources.base import Source
from beitcli.data.sources.files import is_image_name
from beitcli.data.sources.format import Format, Request
from beitcli.data.sources.formats.list_file import ListSource


def _open(paths: list[str], request: Request) -> list[Source]:
    return [ListSource([os.fsencode(path) for path in paths], name=request.name)]


FORMAT = Format(looks="an image", recognizes=lambda path: is_image_name(os.fsencode(path)), open=_open, rank=60)
