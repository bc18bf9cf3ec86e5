"""Tables of starts: a row a start, a column a figure, each beside its difference to the reference row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paper_tables.cells import Cell, Runner
from paper_tables.chains import Chains, once
from paper_tables.comparison import Claim, Values, cell, markdown, paired, sentence


@dataclass(frozen=True)
class Column:
    """A figure.

    Attributes:
        stage: The cells that have it.
        key: Its name in what they print; shown in percent.
        rows: Names of the rows that have it; empty for all.
        reference: The row that others are compared with; empty for the table's.
        is_claimed: Whether the claims are about it.
    """

    title: str
    stage: str
    key: str
    rows: tuple[str, ...] = ()
    reference: str = ""
    is_claimed: bool = True

    def has(self, variant: str) -> bool:
        return not self.rows or variant in self.rows


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
        about: Below the heading.
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
        """Returns the figures in percent by row and column title, of the seeds whose every cell has run."""
        chains = Chains(budget)
        shown = [(row.variant, column) for row in self.starts for column in self.columns if column.has(row.variant)]
        found: dict[tuple[str, str], dict[int, float]] = {(variant, column.title): {} for variant, column in shown}
        for seed in seeds:
            metrics = {
                (variant, column.title): metric(runner, chains, variant, seed, column) for variant, column in shown
            }
            if None not in metrics.values():
                for name, value in metrics.items():
                    found[name][seed] = 100 * float(value or 0)
        return found

    def rows(self, runner: Runner, seeds: Sequence[int], budget: str) -> list[str]:
        """Returns the section in Markdown; nothing where no seed is whole."""
        values = self.values(runner, seeds, budget)
        n = max((len(each) for each in values.values()), default=0)
        if not n:
            return []
        titles = ["start", "", *self._titles(), f"the paper's: {self.paper}"]
        body = [self._row(row, values) for row in self.starts]
        lines = [
            f"### {self.title}: budget `{budget}`, n = {n}\n",
            f"{self.about}\n",
            f"{Chains(budget).budget.words}\n",
        ]
        lines += [*markdown(titles, body), ""]
        lines.append(f"{spread_words(n, self.reference)}\n")
        lines += [*self.sentences(values), "", *pretrained_words(runner, seeds, budget), *self.notes]
        return [*lines, *commands(runner, budget, self.command_row, self.columns)]

    def _titles(self) -> Iterator[str]:
        for column in self.columns:
            yield column.title
            yield "Δ"

    def _row(self, row: Row, values: Mapping[tuple[str, str], Values]) -> list[str]:
        shown = [f"`{row.variant}`", row.about]
        for column in self.columns:
            mine = values.get((row.variant, column.title), {})
            reference = column.reference or self.reference
            is_compared = mine and row.variant != reference
            difference = paired(mine, values[reference, column.title]).shown() if is_compared else ""
            shown += [cell(mine) if column.has(row.variant) else "", difference]
        return [*shown, row.paper]

    def sentences(self, values: Mapping[tuple[str, str], Values]) -> Iterator[str]:
        """Yields a sentence for each claim and figure that both rows have."""
        for claim in self.claims:
            for column in self.columns:
                better, worse = (values.get((name, column.title)) for name in (claim.better, claim.worse))
                if column.is_claimed and better and worse:
                    yield sentence(claim, column.title, column.stage, better, worse)


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
    document = read(runner, chains.place(variant, seed, column.stage))
    return None if document is None else document["figures"][column.key]


def read(runner: Runner, name: str) -> dict[str, Any] | None:
    """Returns a cell's result by its name; None if it has not run."""
    return runner.result(Cell(name, "", 0))


def spread_words(n: int, reference: str) -> str:
    """Returns what the brackets and Δ of a table say."""
    if n < 2:
        return f"One seed; Δ: the difference to `{reference}` in points. Without an interval all claims are undecided."
    return (
        f"Means over {n} seeds, standard deviation in brackets; Δ: the difference to `{reference}` in points, paired "
        "by seed, with Student's 95% interval, which alone decides a claim. Of twenty intervals one errs by chance."
    )


def pretrained_words(runner: Runner, seeds: Sequence[int], budget: str) -> list[str]:
    """Returns whether the reference pretraining learned its own task; nothing where it has not run."""
    chains = Chains(budget)
    documents = [read(runner, chains.place("beit", seed, "pretrain")) for seed in seeds]
    figures = [document["figures"] for document in documents if document]
    if not figures:
        return []
    accuracy = {seed: 100 * each["masked_accuracy"] for seed, each in enumerate(figures)}
    baseline = {seed: 100 * each["baseline_accuracy"] for seed, each in enumerate(figures)}
    line = f"Pretraining `beit` names {cell(accuracy)}% of the hidden tokens, always guessing the most frequent one"
    return [f"{line} {cell(baseline)}%: {paired(accuracy, baseline).shown()} points.\n"]


def commands(runner: Runner, budget: str, variant: str, columns: Sequence[Column]) -> list[str]:
    """Returns the commands of one row, seed 0, as they ran."""
    chains = Chains(budget)
    names = [chains.place("tokenizer", 0, "tokenizer"), chains.place(variant, 0, "pretrain")]
    names += [chains.place(variant, 0, column.stage) for column in columns if column.has(variant)]
    found = [document["command"] for name in dict.fromkeys(names) if (document := read(runner, name))]
    return [f"\nThe commands of `{variant}`, seed 0 (every cell's own is in its file):\n", "```sh", *found, "```"]
