"""A line on what a finetuning takes with the recipe that it has if none is named, and on a smaller start."""

from __future__ import annotations

from beitcli.config.finetune import FinetuneConfig
from beitcli.config.recipe_files import read_recipe, recipe_names
from beitcli.config.tasks import DEFAULT_TASK, TASKS

_LENGTH = ("steps", "epochs", "batch_size")
_DATA = {"classify": "ImageNet", "segment": "ADE20K", "detect": "COCO"}  # of the recipes


def what_a_large_recipe_takes(config: FinetuneConfig) -> str:
    """Returns the line; empty with another recipe than a default one, or with another length than its own."""
    command = FinetuneConfig.command
    own = TASKS.entries()[config.task].recipe
    defaults = [own] if own else [FinetuneConfig.recipe, *FinetuneConfig.recipes_of["init"].values()]
    own_settings = read_recipe(command, config.recipe) if config.recipe in defaults else {}
    if not own_settings or any(getattr(config, name) != own_settings.get(name) for name in _LENGTH):
        return ""  # another recipe, or another length
    length = f"{config.steps:,} steps" if config.steps else f"{config.epochs:g} epochs"
    begin = f"Recipe {config.recipe}: {length} in batches of {config.batch_size:,}, on GPUs"
    begin += f", for data like {_DATA[config.task]}." if config.task in _DATA else "."
    suffix = "" if config.task == DEFAULT_TASK else f"-{config.task}"
    smaller = [name for name in (f"small{suffix}", f"tiny{suffix}") if name in recipe_names(command)]
    if not smaller:
        return begin
    first = read_recipe(command, smaller[0])
    tiny = f", or --recipe {smaller[1]} for minutes" if len(smaller) > 1 else ""
    size, epochs = first.get("size"), first.get("epochs")
    facts = ", ".join([f"{size} x {size} pixels"] * bool(size) + [f"{epochs} epochs"] * bool(epochs))
    return f"{begin} A smaller start: --recipe {smaller[0]}{f' ({facts})' if facts else ''}{tiny}."
