"""`beit recipes`: the recipes of every command, with what each is for."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from beitcli.config.about import RecipesConfig
from beitcli.config.nearest import suggestion
from beitcli.config.recipe_files import RECIPES, read_recipe, recipe_names
from beitcli.errors import UsageError

_COLUMNS = 80
_SENTENCE = re.compile(r"(?<=[\w)])\.\s+(?=[A-Z])")


@dataclass(frozen=True)
class Recipe:
    """A recipe of one command.

    Attributes:
        about: First sentence of its header: what it is for.
        header: The whole comment that the file begins with: source and result expected.
        settings: Its values.
    """

    command: str
    name: str
    about: str
    header: str
    settings: dict[str, Any]

    @property
    def text(self) -> str:
        """The file, its comments wrapped at 80 columns: the same TOML."""
        file = RECIPES / self.command / f"{self.name}.toml"
        return "\n".join(_wrapped(file.read_text(encoding="utf-8").splitlines())).rstrip()


def _wrapped(lines: Iterable[str]) -> Iterator[str]:
    """Wraps comments of a line each; one that ends within a sentence goes on in the next."""
    sentence = ""
    for line in (*lines, ""):
        if line.startswith("# ") and not sentence.endswith((".", ":")):
            sentence = f"{sentence} {line[2:]}".strip()
            continue
        if sentence:
            yield from textwrap.wrap(
                sentence, _COLUMNS, initial_indent="# ", subsequent_indent="# ",
                break_long_words=False, break_on_hyphens=False,
            )  # fmt: skip
        sentence = line[2:] if line.startswith("# ") else ""
        if not sentence:
            yield line


def list_recipes(config: RecipesConfig) -> list[Recipe]:
    """Returns all recipes in order of commands and names, or those that `config.name` asks for.

    Raises:
        UsageError: A word is neither a command with recipes nor a recipe, or the command has none of that name.
    """
    commands = sorted((path.name for path in RECIPES.iterdir() if path.is_dir()), key=_turn)
    names = {command: recipe_names(command) for command in commands}
    all_names = sorted({name for each in names.values() for name in each})
    for word in config.name:
        if word not in names and word not in all_names:
            hint = f"{suggestion(word, [*names, *all_names])} {_there_are(names, config.name)}"
            raise UsageError(f"There is no recipe '{word}'.", hint.strip())
    asked = [word for word in config.name if word in names] or commands
    named = [word for word in config.name if word not in names]
    found = [_recipe(command, name) for command in commands if command in asked for name in names[command]]
    found = [recipe for recipe in found if not named or recipe.name in named]
    lacking = next((word for word in named if not _has(found, word)), None)
    if lacking is not None:
        raise UsageError(f"{' and '.join(asked)} has no recipe '{lacking}'.", _there_are(names, asked))
    return found


def _has(recipes: Iterable[Recipe], name: str) -> bool:
    return any(recipe.name == name for recipe in recipes)


def _there_are(names: dict[str, list[str]], words: Iterable[str]) -> str:
    """Returns the recipes of the commands among `words`; of no command, how to list all."""
    listed = [f"{command} has {', '.join(names[command])}." for command in names if command in words]
    return " ".join(listed) or f"`beit recipes` lists all; those of one command: `beit recipes {next(iter(names))}`."


def _turn(command: str) -> int:
    order = ("train-tokenizer", "pretrain", "finetune")
    return order.index(command) if command in order else len(order)


def _recipe(command: str, name: str) -> Recipe:
    lines = (RECIPES / command / f"{name}.toml").read_text().splitlines()
    comment = []
    for line in lines:
        if not line.startswith("#"):
            break
        comment.append(line.removeprefix("#").strip())
    header = " ".join(comment)
    about = _SENTENCE.split(header)[0].rstrip(".")
    return Recipe(command, name, about, header, read_recipe(command, name))
