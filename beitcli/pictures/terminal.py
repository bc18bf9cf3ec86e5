"""Pictures in a terminal: kitty's, iTerm2's and sixel graphics where the terminal is known to have them, else blocks.

BEIT_TERMINAL_IMAGES (kitty, iterm, sixel or blocks) is believed before what the terminal says of itself.

A half block shows two pixels in a cell, the upper one as its ink and the lower one as its ground: in 24-bit colour
where COLORTERM says so, in the 256 colours of xterm elsewhere.
"""

from __future__ import annotations

import base64
import struct
import textwrap
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Literal

import numpy as np
from PIL import Image

from beitcli.errors import UsageError
from beitcli.escaping import terminal_line
from beitcli.pictures.canvas import Panel

Protocol = Literal["kitty", "iterm2", "sixel", "truecolor", "256"]

VARIABLE = "BEIT_TERMINAL_IMAGES"
_CHOICES: dict[str, Protocol | None] = {"kitty": "kitty", "iterm": "iterm2", "sixel": "sixel", "blocks": None}
_KONSOLE = 220_400  # the first version that has kitty's graphics
_CELL = 10.0  # pixels of a column, where the terminal does not tell
_CHUNK = 4096  # most characters of one of kitty's commands
_GAP = 2  # columns between panels
_LEAST_COLUMNS = 24  # of a panel that stands beside others
_SMALLEST = 16  # columns of a panel that is to fit the lines of a terminal
_LEVELS = np.array([0, 95, 135, 175, 215, 255])  # of a channel in xterm's cube of colours 16 to 231
_SIXEL_COLOURS = 255
_RESET = "\x1b[0m"


def protocol_of(environment: Mapping[str, str]) -> Protocol | None:
    """Returns how the terminal of an environment shows pictures; None with NO_COLOR, or on a dumb terminal.

    Within tmux or screen, which pass no graphics on, these are blocks unless BEIT_TERMINAL_IMAGES says otherwise.

    Raises:
        UsageError: BEIT_TERMINAL_IMAGES is none of its values.
    """
    choice = environment.get(VARIABLE, "").lower()
    if choice and choice not in _CHOICES:
        raise UsageError(f"{VARIABLE} is '{choice}'.", f"Give one of: {', '.join(_CHOICES)}.")
    term = environment.get("TERM", "").lower()
    if environment.get("NO_COLOR") or term in ("", "dumb", "unknown"):
        return None
    graphics = _CHOICES[choice] if choice else _graphics_of(environment, term)
    if graphics is not None:
        return graphics
    is_true = environment.get("COLORTERM", "").lower() in ("truecolor", "24bit") or term.endswith("-direct")
    return "truecolor" if is_true or "WT_SESSION" in environment else "256"


def _graphics_of(environment: Mapping[str, str], term: str) -> Protocol | None:
    """Returns the protocol of a terminal that is known to show pictures in pixels."""
    program, konsole = environment.get("TERM_PROGRAM", "").lower(), environment.get("KONSOLE_VERSION", "")
    if "TMUX" in environment or "STY" in environment or term.startswith(("tmux", "screen")):
        return None
    if "KITTY_WINDOW_ID" in environment or "kitty" in term or "ghostty" in (*term.split("-"), program):
        return "kitty"
    if program in ("iterm.app", "wezterm"):
        return "iterm2"
    if "sixel" in term or term.startswith(("mlterm", "foot", "yaft")):
        return "sixel"
    return "kitty" if konsole.isdecimal() and int(konsole) >= _KONSOLE else None


def cell_width(descriptor: int) -> float:
    """Returns the pixels of a column of the terminal behind a file descriptor; 10 if it does not tell its pixels."""
    try:
        import fcntl
        import termios

        answer = fcntl.ioctl(descriptor, termios.TIOCGWINSZ, bytes(8))
    except (ImportError, OSError):
        return _CELL
    _, columns, width, _ = struct.unpack("HHHH", answer)
    return width / columns if width >= columns > 0 else _CELL


def draw_picture(picture: Image.Image, protocol: Protocol, columns: int, cell: float = _CELL) -> str:
    """Returns what draws a picture at the cursor, ending in a line feed.

    Args:
        columns: The most columns that it may take; a picture of fewer pixels takes fewer.
        cell: Pixels of a column.
    """
    picture = picture.convert("RGB")
    if protocol in ("truecolor", "256"):
        return _blocks(fit(picture, columns), true=protocol == "truecolor")
    picture = fit(picture, round(columns * cell))
    if protocol == "sixel":
        return _sixel(picture)
    cells = max(1, round(picture.width / cell))
    file = BytesIO()
    picture.save(file, format="PNG")
    text = base64.b64encode(file.getvalue()).decode("ascii")
    if protocol == "iterm2":
        shape = f"inline=1;size={file.tell()};width={cells};preserveAspectRatio=1"
        return f"\x1b]1337;File={shape}:{text}\x07\n"
    parts = [text[start : start + _CHUNK] for start in range(0, len(text), _CHUNK)]
    commands = []
    for number, part in enumerate(parts):
        more = int(number + 1 < len(parts))
        keys = f"a=T,f=100,q=2,c={cells},m={more}" if number == 0 else f"m={more}"
        commands.append(f"\x1b_G{keys};{part}\x1b\\")
    return "".join(commands) + "\n"


def draw_panels(
    panels: Sequence[Panel], protocol: Protocol, columns: int, cell: float = _CELL, lines: int | None = None
) -> str:
    """Returns what draws pictures of one shape in rows, each with its title and notes as text beneath.

    As many stand side by side as have 24 columns or more. Lines are wrapped to the width of their picture, and hold no
    control characters.

    Args:
        cell: Pixels of a column.
        lines: That the drawing is to take at most, if pictures of 16 columns can; None for any number.
    """
    most = max(1, min(len(panels), (columns + _GAP) // (_LEAST_COLUMNS + _GAP)))
    rows = -(-len(panels) // most)
    beside = -(-len(panels) // rows)
    wide = max(8, (columns - _GAP * (beside - 1)) // beside)
    parts = [panels[start : start + beside] for start in range(0, len(panels), beside)]
    if lines is not None:
        wide = next((each for each in range(wide, _SMALLEST - 1, -1) if _height(parts, each) <= lines), wide)
    return "".join(_row(part, protocol, wide, cell) for part in parts)


def _height(parts: Sequence[Sequence[Panel]], wide: int) -> int:
    """Returns the lines that rows of panels take, each `wide` columns: a column is half as wide as a line is high."""
    pictures = sum(
        max(-(-round(panel.picture.height * wide / panel.picture.width) // 2) for panel in part) for part in parts
    )
    return pictures + sum(max(len(_written(panel, wide)) for panel in part) for part in parts)


def _written(panel: Panel, wide: int) -> list[str]:
    """Returns the lines beneath a panel."""
    return [line for text in (panel.title, *panel.notes) for line in textwrap.wrap(terminal_line(text), wide)]


def _row(panels: Sequence[Panel], protocol: Protocol, wide: int, cell: float) -> str:
    """Draws panels side by side, each `wide` columns."""
    is_blocks = protocol in ("truecolor", "256")
    scale, columns = 1 if is_blocks else cell, len(panels) * (wide + _GAP) - _GAP
    fitted = [_filled(panel.picture.convert("RGB"), round(wide * scale)) for panel in panels]
    size = (round(columns * scale), max(each.height for each in fitted))
    strip, shown = Image.new("RGB", size), np.zeros(size[::-1], dtype=bool)
    for number, each in enumerate(fitted):
        left = round(number * (wide + _GAP) * scale)
        strip.paste(each, (left, 0))
        shown[: each.height, left : left + each.width] = True
    if is_blocks:
        drawn = _blocks(strip, true=protocol == "truecolor", keep=shown)
    else:
        drawn = draw_picture(strip, protocol, columns, cell)
    written = [_written(panel, wide) for panel in panels]
    for row in range(max(len(lines) for lines in written)):
        cells = [lines[row] if row < len(lines) else "" for lines in written]
        drawn += (" " * _GAP).join(each.ljust(wide) for each in cells).rstrip() + "\n"
    return drawn


def fit(picture: Image.Image, width: int) -> Image.Image:
    """Returns the picture scaled down to at most `width` pixels across; a smaller one as it is."""
    if picture.width <= width:
        return picture
    return _filled(picture, width)


def _filled(picture: Image.Image, width: int) -> Image.Image:
    """Scales to `width` pixels across; blocks of one colour stay sharp where a picture is enlarged."""
    height = max(1, round(picture.height * width / picture.width))
    filter = Image.Resampling.LANCZOS if width < picture.width else Image.Resampling.NEAREST
    return picture.resize((width, height), filter)


def _blocks(picture: Image.Image, *, true: bool, keep: np.ndarray | None = None) -> str:
    """Draws two rows of pixels a line; pixels outside of `keep`, (H, W) bool, stay the terminal's own ground."""
    pixels = np.asarray(picture)
    shown = np.ones(pixels.shape[:2], dtype=bool) if keep is None else keep
    if len(pixels) % 2:  # the last line's lower half
        pixels = np.concatenate([pixels, pixels[-1:]])
        shown = np.concatenate([shown, np.zeros_like(shown[-1:])])
    codes = np.empty(pixels.shape[:2], dtype=object)
    if true:
        for place in np.ndindex(codes.shape):
            red, green, blue = pixels[place].tolist()
            codes[place] = f"2;{red};{green};{blue}"
    else:
        numbers = xterm_colours(Image.fromarray(pixels))
        codes[...] = np.array([f"5;{number}" for number in range(256)], dtype=object)[numbers]
    lines = []
    for row in range(0, len(pixels), 2):
        line, last = "", ""
        for column in range(pixels.shape[1]):
            upper, lower = bool(shown[row, column]), bool(shown[row + 1, column])
            ink, ground = codes[row, column], codes[row + 1, column]
            if upper and lower:
                style, letter = f"\x1b[38;{ink};48;{ground}m", "▀"
            elif upper or lower:
                style, letter = f"\x1b[0;38;{ink if upper else ground}m", "▀" if upper else "▄"
            else:
                style, letter = _RESET, " "
            line += (style if style != last else "") + letter
            last = style
        lines.append(f"{line}{_RESET}\n")
    return "".join(lines)


def xterm_colours(picture: Image.Image) -> np.ndarray:
    """Returns numbers of xterm's colours 16 to 255, (H, W) int64, their error spread over the neighbouring pixels."""
    cube = np.stack(np.meshgrid(_LEVELS, _LEVELS, _LEVELS, indexing="ij"), axis=-1).reshape(-1, 3)
    greys = np.arange(8, 248, 10)[:, None].repeat(3, axis=1)
    table = Image.new("P", (1, 1))
    table.putpalette(np.concatenate([cube, greys]).ravel().tolist())
    return 16 + np.asarray(picture.quantize(palette=table, dither=Image.Dither.FLOYDSTEINBERG)).astype(np.int64)


def _sixel(picture: Image.Image) -> str:
    """Encodes a picture as sixels: bands of six rows, in each the pixels of one colour after another."""
    few = picture.quantize(_SIXEL_COLOURS, dither=Image.Dither.NONE)
    table = np.array(few.getpalette() or [], dtype=np.int64).reshape(-1, 3)
    values = np.asarray(few)
    registers = "".join(
        f"#{number};2;{red * 100 // 255};{green * 100 // 255};{blue * 100 // 255}"
        for number, (red, green, blue) in enumerate(table.tolist())
    )
    bands = []
    for top in range(0, len(values), 6):
        band = values[top : top + 6]
        bits = 1 << np.arange(len(band))[:, None]
        rows = [f"#{colour}{_run_lengths(((band == colour) * bits).sum(axis=0))}" for colour in np.unique(band)]
        bands.append("$".join(rows))
    return f'\x1bPq"1;1;{picture.width};{picture.height}{registers}{"-".join(bands)}\x1b\\\n'


def _run_lengths(sixels: np.ndarray) -> str:
    starts = np.flatnonzero(np.diff(sixels, prepend=-1))
    lengths = np.diff(starts, append=len(sixels))
    return "".join(f"!{length}{chr(63 + sixels[start])}" for start, length in zip(starts, lengths, strict=True))
