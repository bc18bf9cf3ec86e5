"""`beit recipes`."""

from __future__ import annotations

import re
from dataclasses import asdict
from itertools import groupby

from beitcli.cli.command_table import Declaration
from beitcli.cli.console import CommandConsole
from beitcli.config.about import RecipesConfig
from beitcli.runtime.storage.safe_json import dump_rows

_SOURCE = re.compile(r" \(arXiv [^)]*\)|(:|; source:) arXiv .*")


def _size(name: str) -> int:
    """Sort key: recipes for minutes, those for a laptop, all others."""
    return next((place for place, word in enumerate(("tiny", "small")) if name.startswith(word)), 2)


def _run(config: RecipesConfig, console: CommandConsole) -> None:
    from beitcli.engine.recipes import list_recipes

    recipes = list_recipes(config)
    if console.wants_json:
        console.print_line(dump_rows(asdict(recipe) for recipe in recipes))
    elif any(recipe.name in config.name for recipe in recipes):
        for recipe in recipes:
            console.print_text(f"# beit {recipe.command} --recipe {recipe.name}\n{recipe.text}\n")
    else:
        for command, of_command in groupby(recipes, lambda each: each.command):
            smallest_first = sorted(of_command, key=lambda each: _size(each.name))
            rows = [{"recipe": each.name, "about": _SOURCE.sub("", each.about)} for each in smallest_first]
            console.print_rows(rows, whole="recipe", title=f"beit {command} --recipe ...")
            console.print_line("")
        console.print_line("`beit recipes NAME` shows the settings of one, with their source and the result expected.")


DECLARATION = Declaration(
    config=RecipesConfig,
    examples=(
        "beit recipes small",
        "beit recipes pretrain",
        "beit recipes finetune base",
        "beit recipes --json | jq -r '.[] | select(.command == \"finetune\") | .name'",
    ),
    run=_run,
)
