"""Foreign names in each medium: what they must not do there, and that plain names stay as they are."""

from __future__ import annotations

import subprocess

import pytest

from beitcli.escaping import html, markdown, shell_line, shell_word, terminal, terminal_line

PLAIN = ["photos/a_1.png", "runs/mine-2", "hf://OWNER/NAME", "mean of pixels in [-1, 1]", "café 猫.png", "a:smile:b"]


@pytest.mark.parametrize("text", PLAIN)
def test_plain_text_is_unchanged(text: str) -> None:
    assert terminal(text) == terminal_line(text) == markdown(text) == html(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]52;c;cm0=\x07", "\\x1b]52;c;cm0=\\x07"),
        ("\x9b2J", "\\x9b2J"),
        ("\r\x7f", "\\x0d\\x7f"),
        ("gpj.\u202etxt", "gpj.\\u202etxt"),
        ("\udcff.png", "\\udcff.png"),
    ],
)
def test_terminal_shows_controls_as_text(text: str, shown: str) -> None:
    assert terminal(text) == shown


def test_terminal_line_is_one_line() -> None:
    assert terminal("a\n\tb") == "a\n\tb"
    assert terminal_line("a.png\nerror: forged") == "a.png\\nerror: forged"


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("<script>x</script>", "&lt;script&gt;x&lt;/script&gt;"),
        ("![t](http://x.invalid/a)", "\\![t\\](http\\://x.invalid/a)"),
        ("[a][b] [c]: d", "[a\\][b] [c\\]: d"),
        ("x | 1.0 |\n| AP", "x \\| 1.0 \\| \\| AP"),
        ("```\n# title", "\\`\\`\\` # title"),
        ("__bold__ *i* ~~s~~ snake_case", "\\_\\_bold\\_\\_ \\*i\\* \\~~s\\~~ snake_case"),
        ("&lt;", "&amp;lt;"),
    ],
)
def test_markdown_has_no_markup_of_a_name(text: str, escaped: str) -> None:
    assert markdown(text) == escaped


def test_html_has_no_markup_of_a_name_and_is_encodable() -> None:
    assert html("\"><script>'\udcff") == "&quot;&gt;&lt;script&gt;&#x27;\\udcff"
    html("\ud800").encode()


WORDS = [
    "d $(touch x)",
    "it's",
    "a;b",
    "-x",
    "",
    "~/a",
    "*",
    "a\nb",
    "\x1b[2J\\'",
    "tab\tbed",
    "\udcff\udcfe.png",
    "é\x07",
]


def test_shell_line_is_split_into_the_same_words_and_holds_no_control() -> None:
    line = shell_line(WORDS)
    assert line.isprintable()
    done = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, check=True)
    assert done.stdout.split(b"\0")[:-1] == [word.encode(errors="surrogateescape") for word in WORDS]
    assert shell_word("runs/mine") == "runs/mine"
