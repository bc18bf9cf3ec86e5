"""Tables of starts: a row a start, a column a figure, each beside its difference to the reference row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from paper_tables.beside import (
    commands,
    hardware_words,
    image_words,
    pretrained_words,
    read,
    search_words,
    spread_words,
)
from paper_tables.cells import Cell, Runner
from paper_tables.chains import Chains, once
from paper_tables.columns import Column
from paper_tables.comparison import Claim, Values, Verdict, cell, delta, judged, markdown


@dataclass(frozen=True)
class Row:
    """A start.

    Attributes:
        about: What the start is, in words.
        paper: The paper's figures, as text.
    """

    variant: str
    about: str
    paper: str


@dataclass(frozen=True)
class Table:
    """One table of the paper.

    Attributes:
        about: Below the heading; `{b.NAME}` in it and in the notes is a setting of the budget.
        reference: The row that others are compared with.
        paper: What the paper's figures are, title of their column.
        command_row: Whose commands are shown.
        notes: Lines after the claims.
    """

    title: str
    about: str
    starts: tuple[Row, ...]
    columns: tuple[Column, ...]
    reference: str
    claims: tuple[Claim, ...]
    paper: str
    command_row: str = "beit"
    notes: tuple[str, ...] = ()

    def cells(self, seeds: Sequence[int], budget: str) -> list[Cell]:
        """Returns all cells, each behind those that it needs; whole seeds first."""
        return once(cell for seed in seeds for cell in self._seed(seed, budget))

    def _seed(self, seed: int, budget: str) -> Iterator[Cell]:
        chains = Chains(budget)
        for row in self.starts:
            for column in self.columns:
                if column.has(row.variant):
                    yield from stage_cells(chains, row.variant, seed, column.stage)

    def values(self, runner: Runner, seeds: Sequence[int], budget: str) -> dict[tuple[str, str], Values]:
        """Returns the figures in percent by row and column title, each of the seeds that have it."""
        chains = Chains(budget)
        found: dict[tuple[str, str], dict[int, float]] = {}
        for row, column in ((row, column) for row in self.starts for column in self.columns if column.has(row.variant)):
            measured = {seed: metric(runner, chains, row.variant, seed, column) for seed in seeds}
            found[row.variant, column.title] = {
                seed: 100 * value for seed, value in measured.items() if value is not None
            }
        return found

    def rows(self, runner: Runner, seeds: Sequence[int], budget: str) -> list[str]:
        """Returns the section in Markdown; nothing where nothing has run."""
        values = self.values(runner, seeds, budget)
        n = max((len(each) for each in values.values()), default=0)
        if not n:
            return []
        b = Chains(budget).budget
        titles = ["start", "", *self._titles(), f"the paper's: {self.paper}"]
        documents = [found for each in self.cells(seeds, budget) if (found := runner.result(each))]
        return [
            f"### {self.title} Budget `{budget}`, n = {n}\n",
            f"{self.about.format(b=b)}\n",
            f"{b.words}\n",
            *markdown(titles, [self._row(row, values, n) for row in self.starts]),
            "",
            f"{spread_words(n, self.reference)}\n",
            *image_words(values, self.columns, budget),
            *(each.sentence() for each in self._judged(values) if each.difference is not None),
            "",
            *pretrained_words(runner, seeds, budget),
            *search_words(runner, budget, self._searched()),
            *(f"{note.format(b=b)}\n" for note in self.notes),
            *hardware_words(documents),
            *commands(runner, budget, self.command_row, self.columns),
        ]

    def verdicts(self, runner: Runner, seeds: Sequence[int], budget: str) -> list[Verdict]:
        """Returns what became of each claim in each figure that it is about, those that have not run too."""
        return list(self._judged(self.values(runner, seeds, budget)))

    def _titles(self) -> Iterator[str]:
        for column in self.columns:
            yield column.title
            if column.is_compared:
                yield "Δ"

    def _searched(self) -> list[str]:
        """Returns the rows whose classifiers have a learning rate that was chosen."""
        stages = ("few", "many")
        columns = [column for column in self.columns if column.stage in stages]
        return [row.variant for row in self.starts if any(column.has(row.variant) for column in columns)]

    def _row(self, row: Row, values: Mapping[tuple[str, str], Values], n: int) -> list[str]:
        shown = [f"`{row.variant}`", row.about]
        for column in self.columns:
            mine = values.get((row.variant, column.title), {})
            reference = column.reference or self.reference
            shown.append(cell(mine, usual=n) if column.has(row.variant) else "")
            if column.is_compared:
                is_other = row.variant != reference
                shown.append(delta(mine, values[reference, column.title], n) if is_other else "")
        return [*shown, row.paper]

    def _judged(self, values: Mapping[tuple[str, str], Values]) -> Iterator[Verdict]:
        for claim in self.claims:
            for column in self.columns:
                better = values.get((claim.better, column.title))
                worse = values.get((claim.worse, claim.worse_column or column.title))
                is_meant = column.is_claimed and (not claim.stages or column.stage in claim.stages)
                if is_meant and better is not None and worse is not None:
                    yield judged(claim, column.title, column.stage, better, worse)


def stage_cells(chains: Chains, variant: str, seed: int, stage: str) -> Iterator[Cell]:
    """Yields the cells of one figure, in order."""
    if stage in ("few", "many"):
        yield from chains.classifier(variant, seed, stage)
    elif stage == "segment":
        yield from chains.segmenter(variant, seed)
    elif stage == "pretrain":
        yield from chains.pretraining(variant, seed)
    elif stage == "iou":
        yield from chains.attention(variant, seed)
    else:
        yield from chains.probes(variant, seed)


def metric(runner: Runner, chains: Chains, variant: str, seed: int, column: Column) -> float | None:
    """Returns a figure as a share; None if its cell has not run."""
    document = read(runner, chains.place(variant, seed, column.stage))
    return None if document is None else document["figures"].get(column.key)
