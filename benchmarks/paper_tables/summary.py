"""The summary on top of the tables: what became of each claim, and how much of it chance alone would give."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from paper_tables.beside import hardware_words
from paper_tables.comparison import Verdict

ORDER = ("did not hold", "held", "undecided")
"""What does not fit the paper comes first."""


def chance_words(verdicts: Sequence[Verdict]) -> str:
    """Returns how many claims would be decided if no difference were real."""
    tested = sum(each.difference is not None and math.isfinite(each.difference.low) for each in verdicts)
    if not tested:
        return "None has an interval yet (that takes two seeds that differ), so all are undecided."
    return (
        f"{tested} have an interval of 95%: if no difference were real, {0.05 * tested:.1f} of them would be decided "
        "by chance all the same, half as held. Claims share seeds, runs and images, so such errors come together."
    )


def rows(verdicts: Mapping[str, Sequence[Verdict]], documents: Sequence[Mapping[str, Any]], budget: str) -> list[str]:
    """Returns the section in Markdown; nothing where no claim has figures.

    Args:
        verdicts: By table, all claims that it makes, in each figure.
        documents: Results of all cells that have run.
    """
    every = [(place, each) for place, of_place in verdicts.items() for each in of_place]
    count = {word: sum(each.word == word for _, each in every) for word in (*ORDER, "not run")}
    run = len(every) - count["not run"]
    if not run:
        return []
    shown = ", ".join(f"{count[word]} {word}" for word in ORDER)
    left = f"; {count['not run']} more have not run" if count["not run"] else ""
    listed = [each.sentence(place) for word in ORDER for place, each in every if each.word == word]
    return [
        f"### Summary: budget `{budget}`\n",
        f"**{run} claims, each in one figure: {shown}**{left}. {chance_words([each for _, each in every])}\n",
        *listed,
        "",
        *hardware_words(documents),
    ]
