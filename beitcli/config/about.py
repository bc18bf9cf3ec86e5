"""Settings of the commands that tell about this program, its recipes and its runs: `recipes`, `runs`, `env`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from beitcli.config.fields import option

RUN_FACTS = ("when", "run", "state", "step")
KEY_FIGURES = ("top1", "miou", "ap", "masked_accuracy", "psnr", "cosine", "perplexity", "loss")  # most telling first


@dataclass(frozen=True, kw_only=True)
class RecipesConfig:
    command: ClassVar[str] = "recipes"
    name: tuple[str, ...] = option(
        (),
        "Recipe to show, command whose recipes to list, or both in either order; without it, list all.",
        argument=True,
        panel="Data",
        metavar="NAME",
    )


@dataclass(frozen=True, kw_only=True)
class RunsConfig:
    command: ClassVar[str] = "runs"
    folder: str = option("runs", "Folder with runs, at any depth.", argument=True, panel="Data", metavar="DIR")
    sort: str = option(
        "when",
        "Sort by when (newest first), run, state, step, or a metric such as top1 (best first).",
        panel="Output",
        offered=(*RUN_FACTS, *KEY_FIGURES),
    )


@dataclass(frozen=True, kw_only=True)
class EnvConfig:
    command: ClassVar[str] = "env"
