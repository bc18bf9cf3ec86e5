"""The convergence: accuracy over the steps of finetuning with few labels, from scratch and after pretraining."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from paper_tables.beside import commands, hardware_words, read
from paper_tables.cells import Cell, Runner
from paper_tables.chains import CURVES, Chains, once
from paper_tables.columns import Column
from paper_tables.comparison import Claim, Verdict, cell, delta, judged, markdown

Curve = Sequence[Sequence[float]]
"""[step, top-1] where it was measured, in order."""
Documents = Mapping[str, Mapping[int, Mapping[str, Any]]]
"""What cells printed: by start, `pretrain` or `tokenizer`, then by seed."""
_MARGIN = 16  # pixels around the picture
_CLAIM = Claim("Pretrained weights are ahead of scratch on the way, before the last step", "beit", "scratch")


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
    """Returns the section in Markdown; nothing where scratch or BEiT has no seed."""
    documents = _documents(runner, seeds, budget)
    curves = _curves(documents)
    if not (curves["beit"] and curves["scratch"]):
        return []
    n = max(len(each) for each in curves.values())
    body = []
    for number, (step, _) in enumerate(next(iter(curves["beit"].values()))):
        scratch, beit = (
            {seed: 100 * curve[number][1] for seed, curve in curves[name].items()} for name in ("scratch", "beit")
        )
        body.append([f"{step:,.0f}", cell(scratch, usual=n), cell(beit, usual=n), delta(beit, scratch, n)])
    return [
        f"### Does finetuning converge sooner? Budget `{budget}`, n = {n}\n",
        "Table 1's classifiers with few labels, measured on the way, top-1 in percent. The claim leaves the last step "
        "out, so that it means sooner and not higher in the end:\n",
        *markdown(["step", "`scratch`", "`beit`", "Δ"], body),
        "",
        _verdict(curves).sentence(),
        "",
        *_reached(documents, curves),
        "\nProcessor seconds are a share of the whole command's, that of its steps: start, loading and measuring are "
        "in them, the search of rates is not. With pretraining: those of its tokenizer and its pretraining too.\n",
        *hardware_words([each for by_seed in documents.values() for each in by_seed.values()]),
        f"\n![Top-1 over the steps of finetuning](pictures/convergence-{budget}.png)",
        *commands(runner, budget, "beit", [Column("", "few", "top1")]),
    ]


def verdicts(runner: Runner, seeds: Sequence[int], budget: str) -> list[Verdict]:
    """Returns what became of the one claim."""
    return [_verdict(_curves(_documents(runner, seeds, budget)))]


def _verdict(curves: Mapping[str, Mapping[int, Curve]]) -> Verdict:
    ahead = {name: {seed: on_the_way(curve) for seed, curve in curves[name].items()} for name in ("scratch", "beit")}
    return judged(_CLAIM, "Mean top-1 over these steps but the last", "few", ahead["beit"], ahead["scratch"])


def on_the_way(curve: Curve) -> float:
    """Returns the mean top-1 in percent where it was measured, without the last, which is what finetuning ends with."""
    return 100 * statistics.mean(top1 for _, top1 in curve[:-1])


def _documents(runner: Runner, seeds: Sequence[int], budget: str) -> Documents:
    chains = Chains(budget)
    places = {name: (name, "few") for name in CURVES}
    places |= {"pretrain": ("beit", "pretrain"), "tokenizer": ("tokenizer", "tokenizer")}
    return {
        name: {seed: found for seed in seeds if (found := read(runner, chains.place(variant, seed, stage)))}
        for name, (variant, stage) in places.items()
    }


def _curves(documents: Documents) -> dict[str, dict[int, Curve]]:
    return {name: {seed: each["figures"]["curve"] for seed, each in documents[name].items()} for name in CURVES}


def _reached(documents: Documents, curves: Mapping[str, Mapping[int, Curve]]) -> list[str]:
    """Returns how long each start takes to the accuracy that scratch ends with, in steps and processor seconds."""
    whole = {seed: each["cpu_seconds"] for seed, each in documents["scratch"].items()}
    lines = [f"- `scratch` ends after {cell(whole, 0)} processor seconds."]
    for name in ("beit", "scratch-longer"):
        seeds = sorted(curves[name].keys() & curves["scratch"].keys())
        if not seeds:
            continue
        found = {seed: steps_to(curves[name][seed], curves["scratch"][seed][-1][1]) for seed in seeds}
        steps = {seed: step for seed, step in found.items() if step is not None}
        never = [seed for seed in seeds if seed not in steps]
        own = curves[name][seeds[0]][-1][0]
        share = {seed: step / curves[name][seed][-1][0] for seed, step in steps.items()}
        seconds = {seed: documents[name][seed]["cpu_seconds"] * share[seed] for seed in steps}
        line = f"- `{name}` has the accuracy that `scratch` ends with in {len(steps)} of {len(seeds)} seeds"
        if steps:
            line += f", after {cell(steps, 0)} of its own {own:,.0f} steps, {cell(seconds, 0)} processor seconds"
            line += _with_pretraining(documents, seconds) if name == "beit" else ""
        if never:
            left_out = ", which these means leave out: they are too low" if steps else ""
            line += f"; never in seed{'s' if len(never) > 1 else ''} {', '.join(map(str, never))}{left_out}"
        lines.append(f"{line}.")
    return lines


def _with_pretraining(documents: Documents, seconds: Mapping[int, float]) -> str:
    """Returns finetuning's seconds with those before it, of the seeds whose pretraining and tokenizer are known."""
    before = [documents["pretrain"], documents["tokenizer"]]
    in_all = {
        seed: mine + sum(each[seed]["cpu_seconds"] for each in before)
        for seed, mine in seconds.items()
        if all(seed in each for each in before)
    }
    return f", with tokenizer and pretraining {cell(in_all, 0, usual=len(seconds))}" if in_all else ""


def draw(runner: Runner, seeds: Sequence[int], budget: str, pictures: Path) -> None:
    """Draws the mean curves into `pictures`; nothing while a start has none."""
    from PIL import ImageOps

    from beitcli.pictures.canvas import BLUE, MUTED, VERMILION
    from beitcli.pictures.charts import Plot, linear
    from beitcli.pictures.panels import WHITE, font_of

    curves = _curves(_documents(runner, seeds, budget))
    if not all(curves.values()):
        return
    means = {}
    for name in CURVES:
        at_steps = zip(*curves[name].values(), strict=True)
        means[name] = [(points[0][0], statistics.mean(point[1] for point in points)) for points in at_steps]
    farthest, highest = (max(point[axis] for curve in means.values() for point in curve) for axis in (0, 1))
    x, y = linear(0, farthest), linear(0, highest, as_percent=True)
    plot = Plot("Finetuning with few labels", x, y, ("step", "top-1"))
    right, lower, font = plot.box[2] - 8, plot.box[3] - 12, font_of(15)
    for number, ((name, curve), colour) in enumerate(zip(means.items(), (VERMILION, MUTED, BLUE), strict=True)):
        points = [plot.place(x.to_share(step), top1) for step, top1 in curve]
        plot.curve(points, colour)
        plot.draw.text((right, lower - 20 * number), name, colour, font, anchor="rs")
    pictures.mkdir(parents=True, exist_ok=True)
    framed = ImageOps.expand(plot.picture, _MARGIN, WHITE)
    framed.save(pictures / f"convergence-{budget}.png", optimize=True)
