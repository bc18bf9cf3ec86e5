"""What stands beside a table's figures: spread, chosen rates, what pretraining learned, hardware, commands."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from paper_tables.cells import Cell, Runner
from paper_tables.chains import Chains
from paper_tables.code_version import named
from paper_tables.columns import Column
from paper_tables.comparison import Values, cell, paired, standard_error


def read(runner: Runner, name: str) -> dict[str, Any] | None:
    """Returns a cell's result by its name; None if it has not run."""
    return runner.result(Cell(name, "", 0))


def spread_words(n: int, reference: str) -> str:
    """Returns what the brackets and Δ of a table say."""
    if n < 2:
        return f"One seed; Δ: the difference to `{reference}` in points. Without an interval all claims are undecided."
    return (
        f"Means over {n} seeds (another n stands beside its figure), standard deviation in brackets; Δ: the difference "
        f"to `{reference}` in points, paired by seed, with Student's 95% interval, which decides a claim. It covers "
        "seeds only; equal differences of all seeds decide nothing."
    )


def image_words(values: Mapping[tuple[str, str], Values], columns: Sequence[Column], budget: str) -> list[str]:
    """Returns what the choice of the images to measure on adds to the spread of seeds: the largest standard errors."""
    b, errors, unknown = Chains(budget).budget, [], []
    for column in columns:
        images = b.probed if column.stage in ("knn", "linear") else b.measured
        found = [value for (_, title), each in values.items() if title == column.title for value in each.values()]
        if column.key != "top1":
            unknown.append(column.title)
        elif found:
            error = max(standard_error(value, images) for value in found)
            errors.append(f"{column.title} {error:.2f} points ({images:,} images)")
    line = "All seeds and rows are measured on the same images, so no interval says what other images would give."
    if errors:
        line += f" Standard error of one figure by its images, less for a difference of rows: {', '.join(errors)}."
    if unknown:
        line += f" Of {', '.join(unknown)} it is not estimated."
    return [f"{line}\n"]


def search_words(runner: Runner, budget: str, variants: Iterable[str]) -> list[str]:
    """Returns how many rows chose their rate for few labels within the standard error; nothing where none has run."""
    chains = Chains(budget)
    b, margins, errors = chains.budget, [], []
    for variant in variants:
        names = [chains.place(variant, 0, f"search-few-{rate}") for rate in b.lrs]
        tried = [100 * document["figures"]["top1"] for name in names if (document := read(runner, name))]
        if len(tried) == len(names):
            margins.append(max(tried) - min(tried))
            errors.append(standard_error(max(tried), b.measured))
    if not margins:
        return []
    near = sum(margin <= error for margin, error in zip(margins, errors, strict=True))
    return [
        f"Learning rates: {near} of {len(margins)} rows chose between two rates that measured within one standard "
        f"error of each other ({min(errors):.2f} to {max(errors):.2f} points, {b.measured:,} images); which of them is "
        "better is then not known.\n"
    ]


def pretrained_words(runner: Runner, seeds: Sequence[int], budget: str) -> list[str]:
    """Returns whether the reference pretraining learned its own task, and of how many images; nothing without one."""
    chains = Chains(budget)
    documents = {seed: read(runner, chains.place("beit", seed, "pretrain")) for seed in seeds}
    figures = {seed: document["figures"] for seed, document in documents.items() if document}
    if not figures:
        return []
    accuracy = {seed: 100 * each["masked_accuracy"] for seed, each in figures.items()}
    baseline = {seed: 100 * each["baseline_accuracy"] for seed, each in figures.items()}
    line = f"Pretraining `beit` names {cell(accuracy)}% of the hidden tokens, always guessing the most frequent one"
    line = f"{line} {cell(baseline)}%: {paired(accuracy, baseline).shown()} points."
    first = next(iter(figures.values()))
    views, epochs = first.get("images_seen"), first.get("epoch")
    if views and epochs:
        images = round(views / epochs)
        line += f" It sees {min(views, images):,} of {images:,} training images ({epochs:.2f} epochs)."
    return [f"{line}\n"]


def hardware_words(documents: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the processor seconds of cells, and the hardware and code that they ran on; nothing without cells."""
    if not documents:
        return []
    places = {_place(document["hardware"]): None for document in documents if "hardware" in document}
    codes = sorted({named(document["code"]) for document in documents if "code" in document})
    code = f"; code {', '.join(codes)}" if codes else ""
    seconds = math.fsum(document.get("cpu_seconds", 0) for document in documents)
    line = f"Cost: {seconds:,.0f} processor seconds for {len(documents)} commands, all seeds"
    line += f"; on {'; '.join(places)}" if places else ""
    return [f"{line}{code}.\n"]


def _place(hardware: Mapping[str, Any]) -> str:
    gpu = f", {hardware['gpu']}" if hardware.get("gpu") else ""
    torch = hardware.get("versions", {}).get("torch")
    threads = hardware.get("threads", 1)
    each = f"{threads} thread{'s' if threads != 1 else ''} a command"
    return f"{hardware['processor']} ({hardware['cores']} cores, {each}){gpu}, torch {torch}"


def commands(runner: Runner, budget: str, variant: str, columns: Sequence[Column]) -> list[str]:
    """Returns the commands of one row, seed 0, as they ran."""
    chains = Chains(budget)
    names = [chains.place("tokenizer", 0, "tokenizer"), chains.place(variant, 0, "pretrain")]
    names += [chains.place(variant, 0, column.stage) for column in columns if column.has(variant)]
    found = [document["command"] for name in dict.fromkeys(names) if (document := read(runner, name))]
    return [f"\nThe commands of `{variant}`, seed 0 (every cell's own is in its file):\n", "```sh", *found, "```"]
