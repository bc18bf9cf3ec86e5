"""Names and other foreign text, made safe for each medium that shows them (stdlib only).

    terminal        escape codes can write the clipboard, set the title, or rewrite earlier lines
    markdown        HTML, images, links, table rows and fences in a model card
    html            a page of `attn-map`
    shell_word      `$(...)`, quotes and line breaks in a command that is printed to be pasted

Text that holds none of these is returned as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

# C0 and C1 but for tab and newline; DEL; separators of lines and paragraphs; bidirectional controls; surrogates
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_MARKDOWN = re.compile(
    r"[\\`*|]|~(?=~)|!(?=\[)|\](?=[(\[:])|(?<![^\W_])_|_(?![^\W_])|(?<=http):(?=//)|(?<=https):(?=//)"
)
_SHELL_ESCAPES = {"\\": "\\\\", "'": "\\'", "\n": "\\n", "\t": "\\t"}


def terminal(text: str) -> str:
    """Replaces characters that steer a terminal by `\\x1b` and the like; tabs and line breaks stay."""
    return _CONTROLS.sub(_code, text)


def terminal_line(text: str) -> str:
    """Like `terminal`, on one line: a name with a line break cannot forge a line of its own."""
    return terminal(text).replace("\n", "\\n")


def markdown(text: str) -> str:
    """Returns text that Markdown shows as it is, also in a cell of a table, on one line."""
    from html import escape

    line = terminal(" ".join(text.split("\n"))).replace("\t", " ")
    return escape(_MARKDOWN.sub(lambda found: "\\" + found[0], line), quote=False)


def html(text: str) -> str:
    """Returns text for an HTML element or a quoted attribute, which UTF-8 can encode."""
    from html import escape

    return escape(_CONTROLS.sub(_code, text))


def shell_word(word: object) -> str:
    """Quotes one word for a POSIX shell; control characters and bytes that are no text as `$'\\x1b'` (bash, zsh)."""
    text = str(word)
    if not _CONTROLS.search(text) and "\n" not in text and "\t" not in text:
        from shlex import quote

        return quote(text)
    escaped = "".join(_SHELL_ESCAPES.get(c) or (_shell_code(c) if _CONTROLS.match(c) else c) for c in text)
    return f"$'{escaped}'"


def shell_line(words: Iterable[object]) -> str:
    """Returns a command line that a shell splits into exactly these words."""
    return " ".join(map(shell_word, words))


def _code(found: re.Match[str]) -> str:
    number = ord(found[0])
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"


def _shell_code(character: str) -> str:
    if 0xDC80 <= ord(character) <= 0xDCFF:
        return f"\\x{ord(character) - 0xDC00:02x}"  # a byte of a file name that is not UTF-8
    return "".join(f"\\x{byte:02x}" for byte in character.encode(errors="replace"))
