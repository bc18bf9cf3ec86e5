"""`beit recipes`."""

from __future__ import annotations

from dataclasses import asdict

from beitcli.cli.command_table import Declaration
from beitcli.cli.console import CommandConsole
from beitcli.config.about import RecipesConfig
from beitcli.runtime.storage.safe_json import dump_json


def _run(config: RecipesConfig, console: CommandConsole) -> None:
    from beitcli.engine.recipes import list_recipes

    recipes = list_recipes(config)
    if console.wants_json:
        console.print_line(dump_json([asdict(recipe) for recipe in recipes]))
    elif config.name:
        for recipe in recipes:
            console.print_text(f"# beit {recipe.command} --recipe {recipe.name}\n{recipe.text}\n")
    else:
        rows = [{"command": each.command, "recipe": each.name, "about": each.about} for each in recipes]
        console.print_rows(rows)


DECLARATION = Declaration(
    config=RecipesConfig,
    examples=(
        "beit recipes small",
        "beit recipes --json | jq -r '.[] | select(.command == \"finetune\") | .name'",
    ),
    run=_run,
)
