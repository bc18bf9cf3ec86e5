"""What a terminal, a dumb one and a pipe see of help and messages."""

from __future__ import annotations

import io
import re

import pytest

from beitcli.cli.app import main
from beitcli.cli.terminal_style import style_of
from tests.cli.test_contract import at_terminal

CODES = re.compile(r"\x1b\[([\d;]*)m")


@pytest.mark.parametrize(
    ("environ", "codes"),
    [
        ({"TERM": "xterm-256color"}, {"0", "1", "2", "1;36", "33"}),
        ({"TERM": "xterm", "NO_COLOR": "1"}, {"0", "1", "2"}),
        ({"TERM": "dumb"}, set()),
        ({"TERM": "xterm", "FORCE_COLOR": ""}, set()),
    ],
    ids=["colours", "NO_COLOR", "dumb", "FORCE_COLOR is empty"],
)
def test_help_is_styled_as_the_terminal_can(environ: dict[str, str], codes: set[str]) -> None:
    environ = {"COLUMNS": "80", "TTY_COMPATIBLE": ""} | environ
    seen, plain = set(), []
    for words in (["--help"], ["runs", "--help"]):
        code, said = at_terminal(lambda words=words: main(words), **environ)  # type: ignore[misc]
        assert code == 0
        seen |= set(CODES.findall(said))
        plain.append(CODES.sub("", said))
    assert seen == codes
    assert "│ pretrain           Pretrain a BEiT by masked image modeling." in plain[0]
    assert "│ -q, --quiet              Print results and errors only." in plain[1]
    assert {len(line) for text in plain for line in text.splitlines() if line.startswith(("╭", "│", "╰"))} == {80}


def test_a_pipe_that_is_not_utf8_gets_boxes_of_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    style = style_of(io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert (style.has_styles, style.has_colours, style.has_boxes) == (False, False, False)
    lines = style._replace(width=20).boxed("Title", [("one", "one")])
    assert lines == ["+- Title ----------+", "| one              |", "+------------------+"]


def test_text_is_styled_only_where_there_is_text() -> None:
    style = style_of(io.StringIO())._replace(has_styles=True, has_colours=True)
    assert style.styled("no", "bold red") == "\x1b[1;31mno\x1b[0m"
    assert style.styled("", "bold") == ""
    assert style._replace(has_colours=False).styled("no", "yellow") == "no"
