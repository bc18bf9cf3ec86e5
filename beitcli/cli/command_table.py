"""The commands of `beit`, in the order of its help; the module `cli/commands/NAME.py` declares the rest of each.

That module is imported when its command is called, completed or asked for its help: `beit --help` needs none of them.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from beitcli.cli.console import CommandConsole
    from beitcli.errors import UsageError

ALL = "--help-all"  # of every command
COMPLETING = "_BEIT_COMPLETE"  # set by a shell that asks for completions, and passes the words in other variables

Run = Callable[[Any, "CommandConsole"], None]


class Declaration(NamedTuple):
    """What a command's module declares.

    Attributes:
        config: Config class, whose settings are the command's options.
        examples: Command lines, shown first in the command's own help.
        run: Runs the engine and prints the result.
        about: Additional help, a paragraph.
        pipes_json: Whether it prints JSON where stdout is no terminal; commands that print a path do not.
        json_of: Its actions that do, where not all of them do.
    """

    config: type
    examples: tuple[str, ...]
    run: Run
    about: str = ""
    pipes_json: bool = True
    json_of: str = ""

    @property
    def json_help(self) -> str:
        """Help of `--json`."""
        if not self.pipes_json:
            return "Results as JSON."
        of = f"of {self.json_of} " if self.json_of else ""
        return f"Results as JSON; {of}the default where stdout is not a terminal."


class Command(NamedTuple):
    """A command of the table.

    Attributes:
        name: Its word, and with `_` for `-` the name of its module, whose `DECLARATION` the other attributes come from.
        panel: Heading in `beit --help`.
        summary: One line for `beit --help`.
    """

    name: str
    panel: str
    summary: str

    @property
    def module(self) -> str:
        return f"beitcli.cli.commands.{self.name.replace('-', '_')}"

    @property
    def declaration(self) -> Declaration:
        """Imports the command's module."""
        declared: Declaration = import_module(self.module).DECLARATION
        return declared

    @property
    def config(self) -> type:
        return self.declaration.config

    @property
    def examples(self) -> tuple[str, ...]:
        return self.declaration.examples

    @property
    def about(self) -> str:
        return self.declaration.about


COMMANDS = (
    Command("pretrain", "Train", "Pretrain a BEiT by masked image modeling."),
    Command("finetune", "Train", "Finetune a classifier, a segmenter or a detector."),
    Command("train-tokenizer", "Train", "Train a visual tokenizer, a discrete VAE or another."),
    Command("eval", "Use", "Measure models or frozen features on labelled images."),
    Command("predict", "Use", "Classify images, segment them, or detect objects."),
    Command("embed", "Use", "Write features of images, or find the nearest images."),
    Command("tokenize", "Look", "Turn images into visual tokens, and back."),
    Command("mask-preview", "Look", "Show what pretraining hides of an image."),
    Command("attn-map", "Look", "Draw what a BEiT attends to from points of an image."),
    Command("doctor", "Look", "Check every image: damaged, odd or duplicate."),
    Command("pack", "Look", "Write images into shards that are fast to train from."),
    Command("inspect", "Weights", "Describe a checkpoint: format, size, grid, classes."),
    Command("export", "Weights", "Write a model for timm, transformers or ONNX, verified."),
    Command("recipes", "About", "List the recipes of every command, or show one."),
    Command("runs", "About", "List runs with state, step and metrics."),
    Command("report", "About", "Write the report of a run, or of several, as a page."),
    Command("env", "About", "Show versions, machine and GPUs, for a bug report."),
    Command("cache", "About", "Show what is in the cache folder, or delete from it."),
)
HELP = ("help", "About", "Show the help of a command, or all as a manual page.")  # parsed by `app`
BY_NAME = {command.name: command for command in COMMANDS}


def unknown_command(name: str) -> UsageError:
    """Returns the error of a word that is no command, with the nearest one."""
    from beitcli.config.nearest import suggestion
    from beitcli.config.synonyms import COMMANDS as SYNONYMS
    from beitcli.errors import UsageError

    meant = SYNONYMS.get(name.lower())
    hint = f"Did you mean `{meant}`?" if meant else suggestion(name, [*BY_NAME, HELP[0]])
    return UsageError(f"There is no command '{name}'.", f"{hint} See `beit --help`.".strip())
