"""`beit recipes`."""

from __future__ import annotations

from dataclasses import asdict

from beitcli.cli.console import CommandConsole
from beitcli.cli.options import Command
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


COMMAND = Command(
    config=RecipesConfig,
    summary="List the recipes of every command, or show one.",
    examples=(
        "beit recipes small",
        "beit recipes --json | jq -r '.[] | select(.command == \"finetune\") | .name'",
    ),
    face=_run,
    panel="About",
)
