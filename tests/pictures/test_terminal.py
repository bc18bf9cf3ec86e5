"""Pictures in a terminal: what each kind is told by, and that what is sent decodes to the picture."""

from __future__ import annotations

import base64
import fcntl
import io
import os
import pty
import re
import struct
import termios

import numpy as np
import pytest
from PIL import Image

from beitcli.errors import UsageError
from beitcli.pictures.canvas import Panel
from beitcli.pictures.terminal import cell_width, draw_panels, draw_picture, protocol_of, xterm_colours


def noise(size, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("environment", "protocol"),
    [
        ({"TERM": "xterm-kitty", "COLORTERM": "truecolor"}, "kitty"),
        ({"TERM": "xterm-256color", "KITTY_WINDOW_ID": "1"}, "kitty"),
        ({"TERM": "xterm-ghostty"}, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app"}, "iterm2"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "WezTerm"}, "iterm2"),
        ({"TERM": "foot"}, "sixel"),
        ({"TERM": "xterm-sixel"}, "sixel"),
        ({"TERM": "xterm-256color", "COLORTERM": "truecolor"}, "truecolor"),
        ({"TERM": "xterm-256color"}, "256"),
        ({"TERM": "tmux-256color", "KITTY_WINDOW_ID": "1", "COLORTERM": "24bit"}, "truecolor"),
        ({"TERM": "xterm-kitty", "TMUX": "/tmp/tmux"}, "256"),
        ({"TERM": "xterm-256color", "KONSOLE_VERSION": "220400", "COLORTERM": "truecolor"}, "kitty"),
        ({"TERM": "xterm-256color", "KONSOLE_VERSION": "211204", "COLORTERM": "truecolor"}, "truecolor"),
        ({"TERM": "screen", "KONSOLE_VERSION": "230800"}, "256"),
        ({"TERM": "xterm-256color", "BEIT_TERMINAL_IMAGES": "kitty"}, "kitty"),
        ({"TERM": "tmux-256color", "TMUX": "/tmp/tmux", "BEIT_TERMINAL_IMAGES": "sixel"}, "sixel"),
        ({"TERM": "xterm-kitty", "BEIT_TERMINAL_IMAGES": "iTerm"}, "iterm2"),
        ({"TERM": "xterm-kitty", "COLORTERM": "truecolor", "BEIT_TERMINAL_IMAGES": "blocks"}, "truecolor"),
        ({"TERM": "xterm-kitty", "BEIT_TERMINAL_IMAGES": ""}, "kitty"),
        ({"TERM": "dumb", "BEIT_TERMINAL_IMAGES": "kitty"}, None),
        ({"TERM": "xterm", "NO_COLOR": "1", "BEIT_TERMINAL_IMAGES": "kitty"}, None),
        ({"TERM": "dumb", "COLORTERM": "truecolor"}, None),
        ({"TERM": "xterm-kitty", "NO_COLOR": "1"}, None),
        ({}, None),
    ],
)
def test_protocol_is_told_by_the_environment(environment, protocol):
    assert protocol_of(environment) == protocol


def test_a_protocol_that_there_is_not_is_refused():
    with pytest.raises(UsageError, match="BEIT_TERMINAL_IMAGES is 'kity'") as caught:
        protocol_of({"TERM": "xterm", "BEIT_TERMINAL_IMAGES": "kity"})
    assert "kitty, iterm, sixel, blocks" in caught.value.hint


@pytest.mark.parametrize("cell", [7.0, 9.6, 10.0, 21.0])
def test_pictures_take_the_columns_of_their_texts_whatever_a_cell_is(cell):
    """Two panels of 39 columns and a gap of 2: 80 columns, which the terminal scales the picture to."""
    panels = [Panel(Image.new("RGB", (64, 64), colour), colour) for colour in ("red", "blue")]
    for protocol, keys in (("kitty", r"\x1b_Ga=T,[^;]*\bc=80,"), ("iterm2", r";width=80;")):
        drawn = draw_panels(panels, protocol, 80, cell)
        assert re.search(keys, drawn)
        assert drawn.splitlines()[-1].index("blue") == 41
    pixels = round(80 * cell)
    assert f'"1;1;{pixels};{round(39 * cell)}#' in draw_panels(panels, "sixel", 80, cell)
    small = draw_picture(noise((30, 20)), "kitty", 80, cell)
    assert f"c={round(30 / cell)}," in small


@pytest.mark.parametrize(("size", "width"), [((80, 720), 9.0), ((80, 0), 10.0), ((0, 0), 10.0), ((100, 962), 9.62)])
def test_the_width_of_a_cell_is_the_terminal_s_own_where_it_tells(size, width):
    terminal, own = pty.openpty()
    try:
        fcntl.ioctl(own, termios.TIOCSWINSZ, struct.pack("HHHH", 24, size[0], size[1], 400))
        assert cell_width(own) == width
    finally:
        os.close(terminal)
        os.close(own)
    read, write = os.pipe()
    assert cell_width(read) == 10.0
    os.close(read)
    os.close(write)


def test_kitty_and_iterm_send_the_picture_as_png():
    picture = noise((60, 40))
    commands = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", draw_picture(picture, "kitty", 80))
    assert [keys[-3:] for keys, _ in commands] == ["m=1"] * (len(commands) - 1) + ["m=0"]
    assert len(commands) > 1
    assert max(len(part) for _, part in commands) <= 4096
    (whole,) = re.findall(r":([^:\x07]*)\x07", draw_picture(picture, "iterm2", 80))
    for text in ("".join(part for _, part in commands), whole):
        with Image.open(io.BytesIO(base64.b64decode(text))) as sent:
            assert np.array_equal(np.asarray(sent), np.asarray(picture))


def test_half_blocks_hold_two_pixels_a_cell():
    picture = noise((7, 6))
    lines = draw_picture(picture, "truecolor", 80).splitlines()
    assert len(lines) == 3
    number = r"(\d+);(\d+);(\d+)"
    cells = [re.findall(rf"\x1b\[38;2;{number};48;2;{number}m▀", line) for line in lines]
    pixels = np.array(cells, dtype=np.uint8).reshape(3, 7, 2, 3).transpose(0, 2, 1, 3).reshape(6, 7, 3)
    assert np.array_equal(pixels, np.asarray(picture))


def test_blocks_fit_the_columns():
    for line in draw_picture(noise((300, 100)), "256", 40).splitlines():
        assert len(re.sub(r"\x1b\[[\d;]*m", "", line)) == 40


def test_xterm_colours_are_exact_where_they_can_be_and_right_on_average():
    pure = np.array([[[0, 0, 0], [255, 255, 255], [255, 0, 0], [95, 135, 175], [118, 118, 118]]], np.uint8)
    assert xterm_colours(Image.fromarray(pure)).tolist() == [[16, 231, 196, 16 + 36 + 12 + 3, 243]]
    levels = np.array([0, 95, 135, 175, 215, 255])
    for colour in ((200, 180, 160), (30, 60, 20)):
        numbers = xterm_colours(Image.new("RGB", (40, 40), colour)).ravel()
        cube, grey = numbers - 16, 8 + 10 * (numbers - 232)
        shown = np.stack([levels[np.clip(cube // 36, 0, 5)], levels[cube // 6 % 6], levels[cube % 6]], axis=1)
        shown = np.where(numbers[:, None] >= 232, grey[:, None], shown)
        assert np.abs(shown.mean(axis=0) - colour).max() < 8


def test_sixels_decode_to_the_picture():
    picture = Image.fromarray(np.array([[[255, 0, 0], [0, 0, 255]] * 4] * 8, np.uint8))
    sent = draw_picture(picture, "sixel", 80)
    body = sent[sent.index("q") + 1 : sent.index("\x1b\\")]
    table = {
        int(number): tuple(round(int(level) * 2.55) for level in levels)
        for number, *levels in re.findall(r"#(\d+);2;(\d+);(\d+);(\d+)", body)
    }
    body = re.sub(r'^"1;1;8;8|#\d+;2;\d+;\d+;\d+', "", body)
    pixels = np.zeros((12, 8, 3), int)
    for top, band in enumerate(body.split("-")):
        for row in band.split("$"):
            colour, column = int(re.match(r"#(\d+)", row)[1]), 0
            for length, letter in re.findall(r"!(\d+)(.)", row):
                for bit in range(6):
                    if (ord(letter) - 63) >> bit & 1:
                        pixels[6 * top + bit, column : column + int(length)] = table[colour]
                column += int(length)
            assert column == 8
    assert np.array_equal(pixels[:8], np.asarray(picture))


def plain_lines(panels, columns):
    drawn = draw_panels(panels, "truecolor", columns)
    return [re.sub(r"\x1b\[[\d;]*m", "", line) for line in drawn.splitlines()]


def test_panels_stand_side_by_side_with_their_lines():
    panels = [Panel(noise((64, 64)), f"panel {number}", ("a\x1b[31m" + "b" * 40,)) for number in range(3)]
    lines = plain_lines(panels, 80)
    pictures, texts = lines[:13], lines[13:]
    assert {len(line) for line in pictures} == {80 - (80 - 4) % 3}
    assert pictures[0][25:27] == "  "
    assert [texts[0].index(f"panel {number}") for number in range(3)] == [0, 27, 54]
    assert "\x1b" not in "".join(texts)
    assert "".join(texts[1:]).count("bb") == 3 * 20  # wrapped, not cut
    assert max(map(len, texts)) <= 80


def test_panels_take_no_more_lines_than_there_are_where_they_can():
    panels = [Panel(noise((64, 64)), f"panel {number}", ("a note",)) for number in range(2)]
    drawn = {lines: draw_panels(panels, "truecolor", 80, lines=lines).count("\n") for lines in (None, 40, 21, 10, 5)}
    assert drawn == {None: 20 + 2, 40: 20 + 2, 21: 21, 10: 10, 5: 20 + 2}


def test_panels_that_would_be_narrow_stand_in_rows_of_equal_length():
    panels = [Panel(noise((64, 64)), f"panel {number}") for number in range(4)]
    assert [line.split() for line in plain_lines(panels, 80) if "panel" in line] == [
        ["panel", "0", "panel", "1"],
        ["panel", "2", "panel", "3"],
    ]
    assert len([line for line in plain_lines(panels, 120) if "panel" in line]) == 1
