"""Text of any script in pictures: the built-in font has little beyond ASCII, and draws boxes for other letters.

A line with such letters is set in a font of the system that has them. A letter that no font has becomes its base
letter (`o` for `ö`) or its code (`U+65E5`). Lines that the built-in font can set do not depend on the system.
"""

from __future__ import annotations

import os
import re
import sys
import unicodedata
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

from PIL import ImageDraw, ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

# In order of preference: first those that look like the built-in font, then those of more scripts
_PREFERRED = (
    *("liberationsans-regular.ttf", "arial.ttf", "helvetica.ttc", "segoeui.ttf", "notosans-regular.ttf"),
    *("notosans[wght].ttf", "dejavusans.ttf", "freesans.ttf", "notosanscjk-regular.ttc", "notosanscjk-vf.ttc"),
    *("notosanscjk-vf.otf.ttc", "notosanscjkjp-regular.otf", "notosanscjksc-regular.otf", "pingfang.ttc"),
    *("hiragino sans gb.ttc", "applesdgothicneo.ttc", "msyh.ttc", "yugothm.ttc", "malgun.ttf", "arial unicode.ttf"),
    *("wqy-microhei.ttc", "wqy-zenhei.ttc", "droidsansfallbackfull.ttf", "droidsansfallback.ttf", "unifont.otf"),
)
_OTHER = re.compile(r"notosans\w*(-regular|\[w[\w,]*\])\.(ttf|otf)")  # one script each
_LATIN = re.compile(r"LATIN (SMALL|CAPITAL) (?:LETTER|LIGATURE) ([A-Z]{1,2})(?: WITH .*)?")
_NAMELESS = {"ß": "ss", "ẞ": "SS", "\u0131": "i", "þ": "th", "Þ": "Th", "ð": "d", "Ð": "D"}
_NO_LETTER = "\U0010ffff"  # a font draws its box for it
_ASCII = "Aaz09"
_SIZE = 24  # in pixels, to tell letters from the box


def write(
    draw: ImageDraw.ImageDraw,
    place: tuple[float, float],
    text: str,
    ink: str | tuple[int, ...],
    font: Font,
    anchor: str,
) -> None:
    """Draws a line of text of any script, like `ImageDraw.text`."""
    shown, chosen = set_in(text, font)
    draw.text(place, shown, ink, chosen, anchor=anchor)


def length(text: str, font: Font) -> float:
    """Returns how many pixels wide `write` draws a line."""
    shown, chosen = set_in(text, font)
    return chosen.getlength(shown)


def set_in(text: str, font: Font) -> tuple[str, Font]:
    """Returns the text as it can be set, and the font for it: `font`, or one of the system in its size.

    Args:
        font: The built-in font, in the size of the text.
    """
    text = composed(text)
    if text.isascii() or not isinstance(font, ImageFont.FreeTypeFont):
        return text if text.isascii() else spelled(text, str.isascii), font
    foreign = frozenset(letter for letter in text if not letter.isascii())
    path = _best(foreign, _system_fonts(tuple(_folders())))
    chosen = None if path is None else _open(path, font.size)
    return spelled(text, lambda letter: _has(path, letter)), chosen or font


def composed(text: str) -> str:
    """Joins letters and their marks, which some systems keep apart in names."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def spelled(text: str, has: Callable[[str], bool]) -> str:
    """Replaces each letter that a font lacks by its base letter, or by its code."""
    return "".join(letter if letter.isascii() or has(letter) else _spelled(letter) for letter in text)


def _spelled(letter: str) -> str:
    if letter in _NAMELESS:
        return _NAMELESS[letter]
    parts = unicodedata.normalize("NFKD", letter)
    base = "".join(part for part in parts if not unicodedata.category(part).startswith("M"))
    if base.isascii() and base.isprintable() and (base or parts == letter):
        return base  # empty for a mark
    if found := _LATIN.fullmatch(unicodedata.name(letter, "")):
        return found[2] if found[1] == "CAPITAL" else found[2].lower()
    return f"U+{ord(letter):04X}"


@cache
def _best(letters: frozenset[str], paths: tuple[str, ...]) -> str | None:
    """Returns the first font that has all letters, or else most of them; None for the built-in one."""
    choice, most = None, sum(_has(None, letter) for letter in letters)
    for path in paths:
        if most == len(letters):
            break
        if not all(_has(path, letter) for letter in _ASCII):  # the whole line is set in it
            continue
        had = sum(_has(path, letter) for letter in letters)
        if had > most:
            choice, most = path, had
    return choice


@cache
def _has(path: str | None, letter: str) -> bool:
    """Returns whether a font has a letter: it draws something else for it than its box."""
    font = _open(path, _SIZE)
    if font is None:
        return False
    try:
        return bytes(font.getmask(letter)) != bytes(font.getmask(_NO_LETTER))
    except (OSError, RuntimeError, ValueError):  # a damaged font; a separator of paragraphs, which no layout takes
        return False


@cache
def _open(path: str | None, size: float) -> Font | None:
    """Opens a font, the built-in one for None; None if the file is no font that can be read."""
    try:
        return ImageFont.load_default(size) if path is None else ImageFont.FreeTypeFont(path, size)
    except OSError:
        return None


@cache
def _system_fonts(folders: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the paths of the fonts that may be used, the preferred ones first."""
    found = _files(folders)
    names = [name for name in _PREFERRED if name in found]
    return tuple(found[name] for name in (*names, *sorted(filter(_OTHER.fullmatch, found.keys() - set(names)))))


@cache
def _files(folders: tuple[str, ...]) -> dict[str, str]:
    """Returns the path of each file below some folders by its name in small letters."""
    found: dict[str, str] = {}
    for folder in folders:
        for parent, below, names in os.walk(folder):
            below.sort()
            for name in sorted(names):
                found.setdefault(name.lower(), os.path.join(parent, name))
    return found


def _folders() -> Iterator[str]:
    """Yields the folders where a system keeps its fonts."""
    home = os.path.expanduser("~")
    if sys.platform == "darwin":
        yield from (f"{home}/Library/Fonts", "/Library/Fonts", "/System/Library/Fonts")
    elif sys.platform == "win32":
        yield str(Path(os.environ.get("WINDIR", r"C:\Windows"), "Fonts"))
        yield str(Path(os.environ.get("LOCALAPPDATA", home), "Microsoft", "Windows", "Fonts"))
    else:
        data = os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share"
        for each in (os.environ.get("XDG_DATA_HOME") or f"{home}/.local/share", *data.split(":")):
            yield os.path.join(each, "fonts")
        yield f"{home}/.fonts"
