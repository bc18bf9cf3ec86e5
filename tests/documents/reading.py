"""What the documents tell people to type: shell blocks, and each `beit` command, also in tables and in paragraphs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

from beitcli.cli.command_table import COMMANDS
from beitcli.cli.typer_app import build

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    str(path.relative_to(ROOT))
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md"))
)
_TOLD_AS_GUIDES = (
    "README.md",
    "docs/index.md",
    "docs/gallery.md",
    "docs/segmentation.md",
    "docs/detection.md",
    "docs/python.md",
)
GUIDES = [name for name in DOCUMENTS if name in _TOLD_AS_GUIDES or "guides/" in name]
FENCE = re.compile(r"```(\w*)[^\n]*\n(.*?)```", re.DOTALL)


def blocks(document: str, language: str) -> list[str]:
    return [code for found, code in FENCE.findall((ROOT / document).read_text()) if found == language]


def inline(document: str) -> list[str]:
    """Every piece of code inside a paragraph or a table."""
    return re.findall(r"`([^`\n]+)`", FENCE.sub("", (ROOT / document).read_text()))


def typed(document: str) -> list[str]:
    shell = "".join(blocks(document, "sh")).replace("\\\n", " ")
    return shell.splitlines() + inline(document)


def commands(document: str) -> list[str]:
    """Each `beit COMMAND ...`, without what is piped, chained, redirected, remarked or left to the reader."""
    found = []
    for line in typed(document):
        for part in re.split(r"\||&&|\$\(|\)|;| # | > | >> |     ", line):
            if words := re.search(
                r"(?<![\w./-])beit (?:(?:env|recipes|runs)$|(?!help )[a-z][a-z-]* .*)", part.rstrip()
            ):
                found.append(words[0].replace(" ...", "").strip())
    return found


def flags_of(command: str) -> tuple[type, dict[str, Any]]:
    """The config class, and what the line gives by setting, parsed by the program's own parser."""
    _, name, *words = shlex.split(command)
    (config,) = (each.config for each in COMMANDS if each.name == name)
    group = build([name, *words], {name}, own_options=False)
    given = group.commands[name].make_context(name, words).params
    shell = {"as_json", "quiet", "debug", "help_all"}
    return config, {key: value for key, value in given.items() if value not in (None, [], ()) and key not in shell}
