"""What a finetuning says of a recipe for large data, which it has where none is named."""

from __future__ import annotations

from typing import Any

import pytest

from beitcli.config.finetune import FinetuneConfig
from beitcli.config.resolve import resolve
from beitcli.engine.trainer.large_recipe import what_a_large_recipe_takes


def told(**flags: Any) -> str:
    given = {"data": ["labelled/"], "init": "runs/mine"}
    return what_a_large_recipe_takes(resolve(FinetuneConfig, given | flags).config)


def test_the_default_recipe_says_what_it_takes_and_names_a_smaller_one() -> None:
    assert told() == (
        "Recipe base: 100 epochs in batches of 1,024, on GPUs, for data like ImageNet. A smaller start: --recipe small "
        "(64 x 64 pixels, 20 epochs), or --recipe tiny for minutes."
    )
    assert told(init="random").startswith("Recipe deit: 300 epochs in batches of 1,024")
    assert "--recipe small-segment (96 x 96 pixels" in told(task="segment")
    assert told(task="detect").endswith("A smaller start: --recipe tiny-detect (64 x 64 pixels, 6 epochs).")


@pytest.mark.parametrize("recipe", ["small", "tiny", "base-22k"])
def test_of_a_recipe_that_is_named_nothing_is_said(recipe: str) -> None:
    assert told(recipe=recipe) == ""
