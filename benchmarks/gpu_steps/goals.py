"""What the GPU path should reach, what was measured, and whether it holds (stdlib only)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Document = dict[str, Any]
Measured = tuple[str, bool] | None
UNMEASURED = "unmeasured"


@dataclass(frozen=True)
class Goal:
    """One line of the table.

    Attributes:
        check: The measured value in words and whether the goal holds; None where it was not measured.
        needs_gpu: Says nothing on a CPU or with small sizes.
    """

    text: str
    check: Callable[[Document], Measured]
    needs_gpu: bool = True


def value(document: Document, path: str) -> Any:
    """A result by `step/key/key`; None where there is none, or it is text (an infinity, say)."""
    name, *keys = path.split("/")
    found: Any = document.get("steps", {}).get(name, {}).get("results", {})
    for key in keys:
        if not isinstance(found, dict) or key not in found:
            return None
        found = found[key]
    return found


def number(document: Document, path: str) -> float | None:
    found = value(document, path)
    if isinstance(found, dict):
        found = found.get("median")
    return float(found) if isinstance(found, int | float) else None


def at_least(path: str, bound: float, form: str = "{:,.0f}") -> Callable[[Document], Measured]:
    def check(document: Document) -> Measured:
        found = number(document, path)
        return None if found is None else (form.format(found), found >= bound)

    return check


def at_most(*paths_and_bounds: tuple[str, float], form: str = "{:.2g}") -> Callable[[Document], Measured]:
    """All of several bounds."""

    def check(document: Document) -> Measured:
        found = [(number(document, path), bound) for path, bound in paths_and_bounds]
        words = ", ".join("?" if each is None else form.format(each) for each, _ in found)
        if all(each is None for each, _ in found):
            return None
        return words, all(each is not None and each <= bound for each, bound in found)

    return check


def over(above: str, below: str, least: float = 1.0) -> Callable[[Document], Measured]:
    """How many times one number is another."""

    def check(document: Document) -> Measured:
        high, low = number(document, above), number(document, below)
        if high is None or not low:
            return None
        return f"{high:,.0f} / {low:,.0f} = {high / low:.2f}", high / low >= least

    return check


def utilised(step: str, least: float) -> Callable[[Document], Measured]:
    """Against the rate of the step `rates`; beside it the FLOPs that are executed."""

    def check(document: Document) -> Measured:
        found, executed = (number(document, f"{step}/compiled/utilisation{kind}") for kind in ("", "_executed"))
        return None if found is None else (f"{found:.1%} (executed FLOPs: {executed or 0:.1%})", found >= least)

    return check


def tests_pass(document: Document) -> Measured:
    counts = value(document, "tests/counts")
    if not counts:
        return None
    ended, collected = value(document, "tests/exit_code") is not None, value(document, "tests/collected")
    words = f"{counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped of {collected}"
    passed = counts["failed"] == 0 and counts["passed"] > 0 and ended
    return words + ("" if ended else ", not finished"), passed


def really_compiled(document: Document) -> Measured:
    words, held = [], True
    for name in ("base", "large"):
        evidence = value(document, f"{name}/compiled/compile")
        if evidence is None:
            continue
        fine = not evidence["failure"] and evidence["graphs"] > 0
        state = "compiled" if fine else evidence["failure"] or "nothing was compiled"
        words.append(f"{name}: {state}, {evidence['graph_breaks']} graph breaks")
        held = held and fine and not evidence["graph_breaks"]
    return ("; ".join(words), held) if words else None


def loader_feeds(document: Document) -> Measured:
    rates, wanted = value(document, "loader/images_per_second"), number(document, "base/compiled/images_per_second")
    found = {name: rate for name, rate in (rates or {}).items() if name.endswith("workers")}
    if not found:
        return None
    best = max(found, key=lambda name: found[name])
    words = f"{found[best]:,.0f} ({best})" + (f" for {wanted:,.0f}" if wanted else "")
    return words, wanted is not None and found[best] >= wanted


def faster_than(peer: str) -> Callable[[Document], Measured]:
    """Ours over each of the peer's variants that was timed, the fastest of which counts."""

    def check(document: Document) -> Measured:
        ratios = {n: r for n, r in (value(document, "peers/ratio") or {}).items() if n.startswith(peer)}
        if not ratios:
            return None
        return ", ".join(f"{name}: {ratio:.2f}x" for name, ratio in ratios.items()), min(ratios.values()) > 1

    return check


def stalls(document: Document) -> Measured:
    saves = value(document, "checkpoint/saves")
    if not saves:
        return None
    seconds = [save["stall_seconds"] for save in saves]
    return ", ".join(f"{each:.2f} s" for each in seconds), max(seconds) < 1


def group_works(document: Document) -> Measured:
    reduced = value(document, "nccl/all-reduce")
    if not reduced:
        return None
    words = [f"all-reduce {'right' if all(reduced.values()) else 'WRONG'} ({', '.join(reduced)})"]
    held = all(reduced.values())
    for name in ("ddp", "fsdp2"):
        error = number(document, f"nccl/{name}/weights_error")
        words.append(f"{name} {'did not run' if error is None else f'{error:.1g}'}")
        held = held and error is not None and error < 1e-2
        difference = number(document, f"nccl/{name}, compiled/largest_loss_difference")
        compiled = value(document, f"nccl/{name}, compiled/is_compiled")
        words.append(f"compiled {'did not run' if not compiled or difference is None else f'{difference:.1g} nats'}")
        held = held and bool(compiled) and difference is not None and difference < 0.05
    return ", ".join(words), held


def attention_is_sound(document: Document) -> Measured:
    rows = [row for row in value(document, "attention/kernels") or [] if "ms" in row]
    if not rows:
        return None
    default = [row for row in rows if row["kernel"] == "default"]
    wrong = [f"{row['kernel']}/{row['shape']}/bias={row['bias']}" for row in rows if not row["finite"]]
    words = f"{len(rows)} ran" + (f"; not finite: {', '.join(wrong)}" if wrong else ", all finite")
    return words, bool(default) and all(row["finite"] and row["gradient_error"] < 0.05 for row in default)


GOALS = (
    Goal("BEiT-B: at least 4,030 images/s", at_least("base/compiled/images_per_second", 4030)),
    Goal("BEiT-B: model FLOPs at least 55% of the sustained bf16 rate", utilised("base", 0.55)),
    Goal("BEiT-L: at least 1,280 images/s", at_least("large/compiled/images_per_second", 1280)),
    Goal("BEiT-L: model FLOPs at least 60% of the sustained bf16 rate", utilised("large", 0.60)),
    Goal("B and L are one compiled graph", really_compiled, needs_gpu=False),
    Goal(
        "BEiT-B: compiled faster than eager",
        over("base/compiled/images_per_second", "base/eager/images_per_second"),
    ),
    Goal(
        "BEiT-L: compiled faster than eager",
        over("large/compiled/images_per_second", "large/eager/images_per_second"),
    ),
    Goal(
        "Shared relative position bias: at least 0.8 of B without",
        over("base-22k/compiled/images_per_second", "base/compiled/images_per_second", 0.8),
    ),
    Goal("tests/gpu pass", tests_pass),
    Goal(
        "fp32 on the device: loss within 1e-5, gradient within 1e-3 of the CPU's (small, B)",
        at_most(
            ("parity/small/fp32/loss_error", 1e-5),
            ("parity/small/fp32/gradient_error", 1e-3),
            ("parity/base/fp32/loss_error", 1e-5),
            ("parity/base/fp32/gradient_error", 1e-3),
        ),
        needs_gpu=False,
    ),
    Goal(
        "bf16 on the device: loss within 1e-2, gradient within 2e-2 of the CPU's fp32 (small, B)",
        at_most(
            ("parity/small/bf16/loss_error", 1e-2),
            ("parity/small/bf16/gradient_error", 2e-2),
            ("parity/base/bf16/loss_error", 1e-2),
            ("parity/base/bf16/gradient_error", 2e-2),
        ),
        needs_gpu=False,
    ),
    Goal(
        "Compiled and eager losses within 0.05 over 20 steps",
        at_most(("parity/compiled/largest_difference", 0.05)),
        needs_gpu=False,
    ),
    Goal("Attention: torch's default kernel finite, gradient within 5e-2", attention_is_sound, needs_gpu=False),
    Goal("The loader alone feeds BEiT-B", loader_feeds),
    Goal(
        "Training from JPEGs with kept tokens: at least 95% of synthetic",
        at_least("loader/training/share: kept tokens", 0.95, "{:.1%}"),
    ),
    Goal(
        "DALL-E's encoder: fp16 compiled at least 2 times TF32",
        over("dalle/fp16 compiled/images_per_second", "dalle/tf32/images_per_second", 2.0),
    ),
    Goal(
        "DALL-E's encoder: fp16's tokens 95% fp32's (random weights)",
        at_least("dalle/fp16/agreement", 0.95, "{:.1%}"),
        needs_gpu=False,
    ),
    Goal("Ours faster than transformers", faster_than("transformers")),
    Goal("Ours faster than timm", faster_than("timm")),
    Goal("A checkpoint of BEiT-B stalls training for less than 1 s", stalls),
    Goal("A process group of one: all-reduce, DDP, FSDP2 as the plain step", group_works, needs_gpu=False),
    Goal(
        "bf16 residual: faster than fp32",
        over("residual/bf16/images_per_second", "residual/fp32/images_per_second"),
    ),
    Goal(
        "bf16 residual: loss at the end within 0.02 of fp32's",
        at_most(("residual/loss/end_difference", 0.02)),
        needs_gpu=False,
    ),
)


def verdicts(document: Document) -> list[dict[str, str]]:
    """A row a goal: `goal`, `measured`, `held` (yes, NO, -)."""
    rows = []
    is_full = document.get("device") == "cuda" and not document.get("small")
    for goal in GOALS:
        try:
            found = goal.check(document)
        except Exception as error:  # a half-written result must not cost the table
            found = (f"{type(error).__name__}: {error}"[:100], False)
        held = "-" if found is None or (goal.needs_gpu and not is_full) else "yes" if found[1] else "NO"
        rows.append({"goal": goal.text, "measured": UNMEASURED if found is None else found[0], "held": held})
    return rows
