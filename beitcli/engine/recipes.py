"""`beit recipes`: the recipes of every command, with what each is for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from beitcli.config.about import RecipesConfig
from beitcli.config.fields import suggestion
from beitcli.config.resolve import RECIPES, read_recipe, recipe_names
from beitcli.errors import UsageError

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
        """The file as it stands."""
        return (RECIPES / self.command / f"{self.name}.toml").read_text(encoding="utf-8").rstrip()


def list_recipes(config: RecipesConfig) -> list[Recipe]:
    """Returns all recipes in order of commands and names, or those called `config.name`.

    Raises:
        UsageError: No command has a recipe of that name.
    """
    commands = sorted((path.name for path in RECIPES.iterdir() if path.is_dir()), key=_turn)
    names = {command: recipe_names(command) for command in commands}
    all_names = sorted({name for each in names.values() for name in each})
    if config.name and config.name not in all_names:
        raise UsageError(
            f"There is no recipe '{config.name}'.", f"{suggestion(config.name, all_names)} See `beit recipes`.".strip()
        )
    return [_recipe(command, name) for command in commands for name in names[command] if config.name in ("", name)]


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
