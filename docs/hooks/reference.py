"""The reference pages of the site, written from the program's own declarations while MkDocs builds it.

reference/index.md       commands, where settings come from, exit codes, variables
reference/NAME.md        a command: examples, options, fields of its JSON
reference/all-recipes.md every recipe, with its source and the settings it makes
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import beitcli
from beitcli.cli.command_table import COMMANDS, Command
from beitcli.cli.man_page import ENVIRONMENT, EXIT_CODES
from beitcli.config.about import RecipesConfig
from beitcli.config.fields import Setting, Size, settings_of
from beitcli.engine.cache import Cache, Entry, Pruned
from beitcli.engine.classification.finetune import MultiLabelReport
from beitcli.engine.classification.label_vectors import MultiLabelEvalReport, RegressionEvalReport
from beitcli.engine.doctor.report import DoctorReport
from beitcli.engine.export import ExportReport
from beitcli.engine.inspect import InspectReport
from beitcli.engine.pack.run import PackReport
from beitcli.engine.recipes import Recipe, list_recipes
from beitcli.engine.report.run_state import Run

sys.path.insert(0, str(Path(__file__).parent))  # MkDocs runs a hook as a file
from json_documents import ERROR, LINES, Fields

REPORTS: dict[str, tuple[type, ...]] = {  # of the commands that end with one document
    "pretrain": (beitcli.PretrainReport,),
    "finetune": (
        beitcli.FinetuneReport,
        MultiLabelReport,
        beitcli.SegmentReport,
        beitcli.DetectReport,
    ),
    "train-tokenizer": (beitcli.TrainTokenizerReport,),
    "eval": (
        beitcli.EvalReport,
        MultiLabelEvalReport,
        RegressionEvalReport,
        beitcli.SegmentationEvalReport,
        beitcli.DetectionEvalReport,
        beitcli.ProbeReport,
        beitcli.ElboReport,
    ),
    "doctor": (DoctorReport,),
    "pack": (PackReport,),
    "inspect": (InspectReport,),
    "export": (ExportReport,),
    "runs": (Run,),
    "recipes": (Recipe,),
    "cache": (Cache, Entry, Pruned),
}
LISTS = ("runs", "recipes")  # commands whose document is a list
KINDS = {int: "N", float: "NUMBER", Size: "PX[,PX]"}
LAST = ("Machine", "Output")  # panels, as in the help
EVERYWHERE = (
    ("--json", "Results as JSON, also on a terminal."),
    ("-q, --quiet", "Print results and errors only."),
    ("--debug", "Print full tracebacks."),
    ("-h, --help", "The common settings; --help-all shows every one."),
)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Lists the pages in the navigation, under `Reference`."""
    for entry in config.nav or []:
        if "Reference" in entry:
            entry["Reference"] = [f"reference/{name}.md" for name in pages()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for name, text in pages().items():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files


def pages() -> dict[str, str]:
    """Returns the Markdown of each page by its name, in the order of the navigation."""
    commands = {command.name: "\n".join(_command(command)) + "\n" for command in COMMANDS}
    return {"index": "\n".join(_index()) + "\n", **commands, "all-recipes": "\n".join(_recipes()) + "\n"}


def _index() -> Iterator[str]:
    yield from ("# Reference", "")
    yield from _table(("command", "what it does"), [(f"[{c.name}]({c.name}.md)", _text(c.summary)) for c in COMMANDS])
    yield from ("## Settings", "")
    yield "`--batch-size 64`, `BEIT_BATCH_SIZE=64` and `batch_size = 64` in TOML are one setting; from Python it is the"
    yield "keyword `batch_size=64`. An option wins over its variable, which wins over `--config FILE.toml`, then"
    yield "`--recipe NAME`, then the default."
    yield from ("", "## Options of every command", "")
    yield from _table(("option", "meaning"), [(f"`{flags}`", meaning) for flags, meaning in EVERYWHERE])
    yield from ("## Exit codes", "")
    yield from _table(("code", "meaning"), EXIT_CODES)
    yield from ("## Variables", "")
    yield from _table(("variable", "meaning"), [(f"`{name}`", _text(meaning)) for name, meaning in ENVIRONMENT])


def _command(command: Command) -> Iterator[str]:
    yield from (f"# beit {command.name}", "", _text(command.summary), "")
    yield from ("```sh", *map(_example, command.examples), "```", "")
    if command.about:
        yield from (_text(command.about), "")
    settings = [each for each in settings_of(command.config).values() if not each.option.hidden]
    arguments = [each for each in settings if each.option.argument]
    if arguments:
        yield from ("## Arguments", "")
        yield from _table(("argument", "meaning"), [(f"`{each.flag}`", _text(each.help)) for each in arguments])
    panels: dict[str, list[Setting]] = {}
    for each in settings:
        if not each.option.argument:
            panels.setdefault(each.option.panel, []).append(each)
    for panel, members in sorted(panels.items(), key=lambda item: item[0] in LAST):
        yield from (f"## {panel}", "")
        yield from _table(("option", "value", "meaning", "default"), [_row(each) for each in members])
    for report in REPORTS.get(command.name, ()):
        yield from _fields(report, "a list of these" if command.name in LISTS else report.__name__)
    for document in LINES.get(command.name, ()):
        yield from _documented(document.title, document.fields)
    if any(document.fields[0] in ERROR for document in LINES.get(command.name, ())):
        yield from _documented("one line an image that cannot be read", ERROR)


def _example(line: str) -> str:
    """Makes the remark of an example a comment of the shell."""
    command, _, remark = line.partition("     ")
    return f"{command}  # {remark.strip()}" if remark else command


def _row(setting: Setting) -> tuple[str, str, str, str]:
    flags = [part for flag in setting.option.flags or (setting.flag,) for part in flag.split("/")]
    named = (setting.option.metavar or KINDS.get(setting.kind, "TEXT")).split("|")
    values = [] if setting.kind is bool else setting.choices or named
    plain = setting.plain(setting.default)
    default = [] if plain is None or plain is False or plain == () else [plain]
    return _codes(flags), _codes(values), _text(setting.help), _codes(default)


def _fields(report: type, title: str) -> Iterator[str]:
    notes = _attributes(report)
    rows = tuple((each.name, str(each.type), notes.get(each.name, "")) for each in fields(report))
    yield from _documented(title, rows, (inspect.getdoc(report) or "").partition("\n")[0])


def _documented(title: str, rows: Fields, about: str = "") -> Iterator[str]:
    yield from (f"## JSON: {title}", "", *((_text(about), "") if about else ()))
    cells = [(f"`{name}`", _codes(kind.split(" | "), " or "), _text(meaning)) for name, kind, meaning in rows]
    yield from _table(("field", "type", "meaning"), cells)


def _attributes(report: type) -> dict[str, str]:
    """What the docstrings of a dataclass and its bases say of each field."""
    notes: dict[str, str] = {}
    for each in reversed(report.__mro__):
        _, _, text = (inspect.cleandoc(each.__doc__ or "")).partition("Attributes:\n")
        name = ""
        for line in text.splitlines():
            if line.startswith("    ") and not line.startswith("     ") and ":" in line:
                name, _, note = line.strip().partition(":")
                notes[name] = note.strip()
            elif name and line.startswith("     "):
                notes[name] += " " + line.strip()
            else:
                name = ""
    return notes


def _recipes() -> Iterator[str]:
    yield from ("# Recipes", "", "`beit recipes` lists them, `beit recipes NAME` shows one.", "")
    recipes = list_recipes(RecipesConfig())
    columns = ("model", "image_size", "size", "patch_size", "vocab_size", "epochs", "steps", "batch_size", "lr")
    rows = [[each.command, each.name, *(str(each.settings.get(name, "")) for name in columns)] for each in recipes]
    yield from _table(("command", "recipe", *columns), rows)
    for recipe in recipes:
        yield from (f"## beit {recipe.command} --recipe {recipe.name}", "", "```toml", recipe.text, "```", "")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"
    yield ""


def _codes(words: Iterable[object], between: str = ", ") -> str:
    return between.join(f"`{word}`" for word in words)


def _text(text: str) -> str:
    """Escapes what Markdown would take for markup in help that is meant for a terminal, but leaves `code`."""
    parts = text.replace("\n", " ").split("`")
    for index in range(0, len(parts), 2):
        for sign in "\\*_[]<>":
            parts[index] = parts[index].replace(sign, "\\" + sign)
    return "`".join(parts)
