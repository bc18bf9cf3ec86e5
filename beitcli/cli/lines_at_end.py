"""Lines of a file that holds what a command made of all images: they stand below what is said of each image."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from beitcli.cli.console import CommandConsole
from beitcli.errors import DataError


@contextmanager
def lines_at_end(console: CommandConsole) -> Iterator[Callable[[str], None]]:
    """Yields what takes a line; each is printed once, when the block ends, also if some images were unreadable."""
    lines: dict[str, None] = {}
    unreadable = None
    try:
        yield lambda line: lines.update({line: None})
    except DataError as error:
        unreadable = error
    for line in lines:
        console.print_line(line)
    if unreadable is not None:
        raise unreadable
