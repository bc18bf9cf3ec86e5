"""Every option that a message advises is one of those that `--help` shows: `tokenizer_steps` was only in `--help-all`.

Advice is any text of the program that names an option, but for what is wrong in an error (it names what was given), the
hint of a UsageError (it answers an option) and help texts. Texts that are put together elsewhere are found too, as
all of the source is read; what is found beside is listed with its reason.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import beitcli
from beitcli.cli.common_options import is_common
from beitcli.config.evaluate import EvalConfig
from beitcli.config.fields import settings_of
from beitcli.config.finetune import FinetuneConfig
from beitcli.config.pretrain import PretrainConfig
from beitcli.config.train_tokenizer import TrainTokenizerConfig

OPTION = re.compile(r"(?<![-\w])--[a-z][a-z0-9-]*")
PACKAGE = Path(beitcli.__file__).parent
HELP = ("config", "cli")  # folders whose texts are help, or answer what was given
NO_ADVICE = {
    **dict.fromkeys(
        ("--nodes", "--rdzv-endpoint", "--rdzv-timeout", "--process-timeout", "--max-restarts"),
        "of jobs on several machines, whose guide names them",
    ),
    "--grad-compression": "names what was given",
    "--set": "names what was given",
    "--probe-form": "names what was given",
    "--model": "of attn-map and mask-preview",
    "--normalization": "of attn-map, as it was given",
    "--short-side": "of pack",
}


class Advice(ast.NodeVisitor):
    """Collects the options in the texts of one file, with the lines that name them."""

    def __init__(self, file: Path) -> None:
        self.file, self.found = file, dict[str, set[str]]()
        self.visit(ast.parse(file.read_text()))

    def visit_Expr(self, node: ast.Expr) -> None:
        if not isinstance(node.value, ast.Constant):  # a docstring
            self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        if name == "UsageError":
            return
        told = node.args[1:] if name.endswith("Error") else node.args
        for each in (node.func, *told, *(keyword.value for keyword in node.keywords)):
            self.visit(each)

    def visit_Constant(self, node: ast.Constant) -> None:
        for option in OPTION.findall(node.value) if isinstance(node.value, str) else ():
            place = f"{self.file.relative_to(PACKAGE)}:{node.lineno}"
            self.found.setdefault(option, set()).add(place)


@pytest.fixture(scope="module")
def advised() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        if file.relative_to(PACKAGE).parts[0] not in HELP:
            for option, places in Advice(file).found.items():
                found.setdefault(option, set()).update(places)
    return found


def test_the_advice_of_messages_is_found(advised: dict[str, set[str]]) -> None:
    assert {"--tokenizer-steps", "--max-bad", "--intensity-range", "--workers"} <= set(advised)
    assert len(advised["--tokenizer-steps"]) >= 3
    assert set(NO_ADVICE) <= set(advised)


@pytest.mark.parametrize("config", [PretrainConfig, FinetuneConfig, TrainTokenizerConfig, EvalConfig])
def test_help_shows_every_option_that_a_message_advises(config: type, advised: dict[str, set[str]]) -> None:
    settings = settings_of(config).values()
    hidden = {each.flag for each in settings if not is_common(config.command, each)}  # type: ignore[attr-defined]
    unseen = {option: sorted(advised[option]) for option in hidden & set(advised) if option not in NO_ADVICE}
    assert not unseen
