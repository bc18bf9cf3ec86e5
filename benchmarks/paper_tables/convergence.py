"""The convergence: accuracy over the steps of finetuning with few labels, from scratch and after pretraining."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from paper_tables.cells import Cell, Runner
from paper_tables.chains import CURVES, Chains, once
from paper_tables.comparison import Claim, cell, markdown, paired, sentence
from paper_tables.tables import Column, commands, read

Curve = Sequence[Sequence[float]]
"""[step, top-1] where it was measured, in order."""
_CLAIM = Claim("Pretrained weights are ahead of scratch on the way", "beit", "scratch")


def cells(seeds: Sequence[int], budget: str) -> list[Cell]:
    """Returns all cells, each behind those that it needs; they are those of Table 1."""
    chains = Chains(budget)
    return once(cell for seed in seeds for start in CURVES for cell in chains.classifier(start, seed, "few"))


def steps_to(curve: Curve, accuracy: float) -> float | None:
    """Returns the step at which an accuracy is reached, linear between measurings from (0, 0); None if it is not."""
    step, reached = 0.0, 0.0
    for there, measured in curve:
        if measured >= accuracy:
            share = (accuracy - reached) / (measured - reached) if measured > reached else 1.0
            return step + share * (there - step)
        step, reached = there, measured
    return None


def rows(runner: Runner, seeds: Sequence[int], budget: str) -> list[str]:
    """Returns the section in Markdown; nothing where no seed is whole."""
    whole = _whole(runner, seeds, budget)
    if not whole:
        return []
    curves = {name: {seed: each[name]["figures"]["curve"] for seed, each in whole.items()} for name in CURVES}
    first = next(iter(whole))
    body = []
    for number, (step, _) in enumerate(curves["beit"][first]):
        at = {
            name: {seed: 100 * curve[number][1] for seed, curve in curves[name].items()} for name in ("scratch", "beit")
        }
        difference = paired(at["beit"], at["scratch"]).shown()
        body.append([f"{step:,.0f}", cell(at["scratch"]), cell(at["beit"]), difference])
    ahead = {
        name: {seed: 100 * statistics.mean(top1 for _, top1 in curve) for seed, curve in curves[name].items()}
        for name in ("scratch", "beit")
    }
    picture = f"pictures/convergence-{budget}.png"
    return [
        f"### Does finetuning converge sooner? Budget `{budget}`, n = {len(whole)}\n",
        "Table 1's classifiers with few labels, measured on the way, top-1 in percent:\n",
        *markdown(["step", "`scratch`", "`beit`", "Δ"], body),
        "",
        sentence(_CLAIM, "Mean top-1 over these steps", "few", ahead["beit"], ahead["scratch"]),
        "",
        *_reached(whole, curves),
        f"\n![Top-1 over the steps of finetuning]({picture})",
        *commands(runner, budget, "beit", [Column("", "few", "top1")]),
    ]


def _whole(runner: Runner, seeds: Sequence[int], budget: str) -> dict[int, dict[str, Any]]:
    """Returns what the cells of each seed printed, with that of its pretraining, of the seeds that have all."""
    chains, found = Chains(budget), {}
    for seed in seeds:
        each = {name: read(runner, chains.place(name, seed, "few")) for name in CURVES}
        each["pretrain"] = read(runner, chains.place("beit", seed, "pretrain"))
        if None not in each.values():
            found[seed] = each
    return found


def _reached(whole: Mapping[int, Any], curves: Mapping[str, Mapping[int, Curve]]) -> list[str]:
    """Returns how long each start takes to the accuracy that scratch ends with, in steps and processor seconds."""
    lines = []
    for name in ("beit", "scratch-longer"):
        steps, seconds, in_all, never = {}, {}, {}, 0
        for seed, each in whole.items():
            step = steps_to(curves[name][seed], curves["scratch"][seed][-1][1])
            if step is None:
                never += 1
                continue
            steps[seed] = step
            seconds[seed] = each[name]["cpu_seconds"] * step / curves[name][seed][-1][0]
            in_all[seed] = seconds[seed] + (each["pretrain"]["cpu_seconds"] if name == "beit" else 0)
        missed = f"; {never} of {len(whole)} seeds do not reach it" if never else ""
        whole_steps = curves["scratch"][next(iter(whole))][-1][0]
        if steps:
            line = (
                f"`{name}` has the accuracy that `scratch` ends with after {cell(steps, 0)} of its {whole_steps:,.0f}"
            )
            pretraining = f", with pretraining {cell(in_all, 0)}" if name == "beit" else ""
            lines.append(f"- {line} steps, {cell(seconds, 0)} processor seconds{pretraining}{missed}.")
        else:
            lines.append(f"- `{name}` does not reach the accuracy that `scratch` ends with{missed}.")
    return lines


def draw(runner: Runner, seeds: Sequence[int], budget: str, pictures: Path) -> None:
    """Draws the mean curves of the whole seeds into `pictures`; nothing where there is none."""
    from beitcli.pictures.canvas import BLUE, MUTED, VERMILION
    from beitcli.pictures.charts import Plot, linear
    from beitcli.pictures.panels import font_of

    whole = _whole(runner, seeds, budget)
    if not whole:
        return
    means = {}
    for name in CURVES:
        each = [document[name]["figures"]["curve"] for document in whole.values()]
        means[name] = [
            (points[0][0], statistics.mean(point[1] for point in points)) for points in zip(*each, strict=True)
        ]
    farthest, highest = (max(point[axis] for curve in means.values() for point in curve) for axis in (0, 1))
    x, y = linear(0, farthest), linear(0, highest, as_percent=True)
    plot = Plot("Finetuning with few labels", x, y, ("step", "top-1"))
    for (name, curve), colour in zip(means.items(), (VERMILION, MUTED, BLUE), strict=True):
        points = [plot.place(x.to_share(step), top1) for step, top1 in curve]
        plot.draw.line(points, colour, 3, joint="curve")
        across, upper = points[-1]
        plot.draw.text((across - 6, upper + 8), name, colour, font_of(15), anchor="rt")
    pictures.mkdir(parents=True, exist_ok=True)
    plot.picture.save(pictures / f"convergence-{budget}.png", optimize=True)
