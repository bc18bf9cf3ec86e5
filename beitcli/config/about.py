"""Settings of the commands that tell about this program, its recipes and its runs: `recipes`, `runs`, `env`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from beitcli.config.fields import option


@dataclass(frozen=True, kw_only=True)
class RecipesConfig:
    command: ClassVar[str] = "recipes"
    name: str = option(
        "", "The recipe to show; without it all are listed.", argument=True, panel="Data", metavar="NAME"
    )


@dataclass(frozen=True, kw_only=True)
class RunsConfig:
    command: ClassVar[str] = "runs"
    folder: str = option("runs", "Folder with runs, at any depth.", argument=True, panel="Data", metavar="DIR")
    sort: str = option(
        "when", "when (newest first), run, state, step, or a figure such as top1 (best first).", panel="Output"
    )


@dataclass(frozen=True, kw_only=True)
class EnvConfig:
    command: ClassVar[str] = "env"
