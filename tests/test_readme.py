"""What README.md and CONTRIBUTING.md tell people to type: it installs into an environment, parses, and runs."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer

import beitcli
from beitcli.cli.app import COMMANDS, _build
from beitcli.config.resolve import dump_toml, resolve

ROOT = Path(__file__).parent.parent
DOCUMENTS = ("README.md", "CONTRIBUTING.md")
ENVIRONMENT = "python3 -m venv .venv && . .venv/bin/activate && "
FENCE = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)


def blocks(document: str, language: str) -> list[str]:
    return [code for found, code in FENCE.findall((ROOT / document).read_text()) if found == language]


def typed(document: str) -> list[str]:
    """Every line of the shell blocks, and every piece of code inside a paragraph or a table."""
    text = (ROOT / document).read_text()
    lines = [line for code in blocks(document, "sh") for line in code.splitlines()]
    return lines + re.findall(r"`([^`\n]+)`", FENCE.sub("", text))


def commands(document: str) -> list[str]:
    """Each `beit COMMAND ...`, without what is piped, chained or left to the reader."""
    found = []
    for line in typed(document):
        for part in re.split(r"\||&&|\$\(|\)|;", line):
            if re.match(r"beit (?!help )[a-z]", part.strip()):
                found.append(part.replace(" ...", "").strip())
    return found


def flags_of(command: str) -> tuple[type, dict[str, Any]]:
    """The config class, and what the line gives by setting, parsed by the program's own parser."""
    _, name, *words = shlex.split(command)
    (config,) = (each.config for each in COMMANDS if each.name == name)
    group: Any = typer.main.get_command(_build([name, *words], {name}, own_options=False))
    given = group.commands[name].make_context(name, words).params
    shell = {"as_json", "quiet", "debug", "help_all"}
    return config, {key: value for key, value in given.items() if value not in (None, [], ()) and key not in shell}


EXAMPLES = sorted({line for document in DOCUMENTS for line in commands(document)})


def test_the_documents_show_most_commands() -> None:
    assert {shlex.split(line)[1] for line in EXAMPLES} >= {command.name for command in COMMANDS}


@pytest.mark.parametrize("line", EXAMPLES)
def test_every_command_line_parses_and_its_settings_are_valid(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    saved = dump_toml(resolve(beitcli.PretrainConfig, {"data": ["photos/"], "recipe": "small"}).config)
    for run in ("runs/mine", "RUN"):  # what `--resume` and `--config` of the examples read
        (tmp_path / run).mkdir(parents=True)
        (tmp_path / run / "config.toml").write_text(saved)
    config, flags = flags_of(line)
    assert resolve(config, flags).config


def test_a_wrong_command_line_would_be_noticed() -> None:
    with pytest.raises(typer.TyperException, match="No such option"):
        flags_of("beit pretrain photos/ --recipes small")
    with pytest.raises(beitcli.UsageError, match="no pretrain recipe"):
        resolve(*flags_of("beit pretrain photos/ --recipe smal"))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_whatever_is_installed_goes_into_an_environment_made_in_the_same_line(document: str) -> None:
    lines = [line for line in typed(document) if re.search(r"\bpip install .", line)]
    assert lines
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for line in lines:
        assert line.startswith(f"{ENVIRONMENT}pip install -e "), line
        named = re.search(r"'\.\[([\w,]+)\]'", line)
        assert set(named[1].split(",") if named else []) <= set(extras), line


def test_the_python_examples_run(
    labelled_folder: Path, tokenizer_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they stand, but for the data and for settings that make them small."""
    monkeypatch.chdir(tmp_path)
    example = "\n".join(blocks("README.md", "python"))
    small = f'"tiny", image_size=32, num_masked=6, tokenizer={str(tokenizer_run)!r}, device="cpu", workers=0'
    photo = repr(str(labelled_folder / "red" / "00.jpg"))
    photos = repr(str(labelled_folder))
    for shown, used in (
        ('"photos/"', photos), ('"photo.jpg"', photo), ('"small"', small), ("steps=100", "steps=2"),
    ):  # fmt: skip
        assert shown in example
        example = example.replace(shown, used)
    names: dict[str, Any] = {}
    exec(compile(example, "README.md", "exec"), names)
    assert isinstance(names["report"], beitcli.PretrainReport)
    assert not names["model"].training
    assert [len(tokens) for tokens in names["tokens"]] == [16] * 24
    assert names["features"].shape[0] == 1
    assert names["attention"]["maps"]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_and_file_that_is_named_exists(document: str) -> None:
    text = (ROOT / document).read_text()
    links = {link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link}
    files = set(re.findall(r"`((?:beitcli|tests|docs|benchmarks)/[\w./-]+)`", text))
    assert [name for name in links | files if not (ROOT / name).exists()] == []
