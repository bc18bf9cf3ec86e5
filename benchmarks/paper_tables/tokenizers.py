"""Table 8: tokenizers by kind. The same images, steps and batch for each, then the same small BEiT for each.

    tokenizer   `train-tokenizer`, 400 steps of 16 images, 4,000 images
    stats       its codes and its error on images that it was not trained on
    pretrain    a BEiT of 0.9 million parameters, 150 steps of 64 images
    linear      a linear classifier on that BEiT's frozen features: 3,000 images to learn from, 3,000 to measure on

`vqkd` learns from a classifier trained on the same images from scratch (`teacher`), with a learning rate of its own:
its encoder is a ViT. `beitv2` is `vqkd` followed by BEiT v2's pretraining, which trains the class token too.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from paper_tables.cells import Cell, Runner

VARIANTS = ("dvae", "vq", "fsq", "vqkd", "beitv2")


@dataclass(frozen=True)
class Data:
    """A data set.

    Attributes:
        train: Training images, as DATA.
        held_out: Images to measure on, whose split is `val`.
        recipe: For all training.
        vocab_size: V of every tokenizer.
    """

    title: str
    train: str
    held_out: str
    recipe: str
    vocab_size: int


DATA = {
    "tiny-imagenet": Data(
        "Tiny ImageNet, 100 classes, V = 1,024", "{data}/train-*.tar", "{data}/val-*.tar", "small", 1024
    ),
    "sample": Data("`sample`, V = 256", "sample", "sample", "tiny", 256),
}


def cells(seeds: Sequence[int]) -> list[Cell]:
    """Returns all cells, each behind those that it needs; a tokenizer that two variants share comes once."""
    every = [cell for seed in seeds for data in DATA for variant in VARIANTS for cell in _chain(data, variant, seed)]
    return list({cell.name: cell for cell in every}.values())


def _chain(name: str, variant: str, seed: int) -> Iterator[Cell]:
    """Yields the cells of a variant, in order."""
    data, common = DATA[name], f"--seed {seed} --workers 0"
    kind = "vqkd" if variant == "beitv2" else variant
    place = f"table8/{name}/{kind}/seed-{seed}"
    tokenizer, needs = f"{place}/tokenizer", ()
    how = f"--recipe {data.recipe} --kind {kind}"
    if kind == "vqkd":
        teacher = f"{place}/teacher"
        line = f"finetune {data.train} --recipe {data.recipe} --model tiny --init random --limit 4000 --epochs 3"
        yield Cell(teacher, f"{line} {common} --out {{out}}", seed)
        how, needs = f"--kind vqkd --vocab-size {data.vocab_size} --teacher {{teacher}}", (teacher,)
    line = f"train-tokenizer {data.train} {how} --steps 400 --limit 4000 {common}"
    yield Cell(tokenizer, f"{line} --out {{out}}", seed, needs)
    line = f"tokenize {data.held_out} --split val --tokenizer {{tokenizer}} --stats --limit 1000 --workers 0"
    yield Cell(f"{place}/stats", line, seed, (tokenizer,))
    place = f"table8/{name}/{variant}/seed-{seed}"
    line = f"pretrain {data.train} --recipe {data.recipe} --model tiny --tokenizer {{tokenizer}} --steps 150 {common}"
    aggregate = " --aggregate-after 3" if variant == "beitv2" else ""
    yield Cell(f"{place}/pretrain", f"{line} --warmup-steps 15{aggregate} --out {{out}}", seed, (tokenizer,))
    line = f"eval {{pretrain}} {data.held_out} --split val --protocol linear --train {data.train} --limit 3000"
    yield Cell(f"{place}/linear", line, seed, (f"{place}/pretrain",))


def rows(runner: Runner, seeds: Sequence[int]) -> list[str]:
    """The table in Markdown: a row a kind and data, means over the seeds that are whole, with their deviation."""
    lines = []
    for data in DATA:
        lines += [
            f"**{DATA[data].title}**\n",
            "| kind | codes used | perplexity | PSNR, dB | MAE of [0, 1] | of [-1, 1] | CPU seconds "
            "| masked accuracy, % | times the baseline | linear top-1, % | n |",
            "|---|---|---|---|---|---|---|---|---|---|---|",
        ]
        for variant in VARIANTS:
            by_seed = [_figures(runner, data, variant, seed) for seed in seeds]
            whole = [each for each in by_seed if each is not None]
            if whole:
                lines.append(_row(variant, whole))
        lines.append("")
    return lines


def _figures(runner: Runner, data: str, variant: str, seed: int) -> dict[str, float | None] | None:
    """The figures of one seed; None if a cell has not run."""
    documents: dict[str, Any] = {}
    for cell in _chain(data, variant, seed):
        if (document := runner.result(cell)) is None:
            return None
        documents[cell.name.rpartition("/")[2]] = document
    stats, pretrained = documents["stats"]["figures"], documents["pretrain"]["figures"]
    mae = stats.get("mae")
    return {
        "codes": stats["codes_used"],
        "perplexity": stats["perplexity"],
        "psnr": stats.get("psnr"),
        "mae": mae,
        "mae2": None if mae is None else 2 * mae,
        "seconds": documents["tokenizer"].get("cpu_seconds"),
        "accuracy": 100 * pretrained["masked_accuracy"],
        "times": pretrained["masked_accuracy"] / pretrained["baseline_accuracy"],
        "top1": 100 * documents["linear"]["figures"]["top1"],
    }


_DIGITS = {
    "codes": 0,
    "perplexity": 0,
    "psnr": 2,
    "mae": 4,
    "mae2": 4,
    "seconds": 0,
    "accuracy": 2,
    "times": 1,
    "top1": 2,
}


def _row(variant: str, whole: Sequence[dict[str, float | None]]) -> str:
    shown = [f"`{variant}`"]
    for name, digits in _DIGITS.items():
        values = [value for each in whole if (value := each[name]) is not None]
        deviation = f" ({statistics.stdev(values):,.{digits}f})" if len(values) > 1 else ""
        shown.append(f"{statistics.mean(values):,.{digits}f}{deviation}" if values else "none")
    return "| " + " | ".join([*shown, str(len(whole))]) + " |"
