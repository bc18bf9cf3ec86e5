"""Formats metrics for a person: which ones, in what order, with how many digits, by the words of their names.

A new metric of any task needs no entry here: `main_loss` and `loss_rpn` are losses, `lr` and `gradient_norm` describe
the state of training, `iou/NAME` belongs to one class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

HELD_OUT = "held_out_"
_FORMATS = {"loss": ".4f", "accuracy": ".3f", "lr": ".2e", "weight": ".2e", "norm": ".2f", "second": ".0f",
            "compiled": ".0f"}  # fmt: skip
_STATE = {"lr", "norm", "weight", "temperature"}  # state of training: neither a loss nor a metric
_WHERE_IT_MATTERS: dict[str, Callable[[float], bool]] = {
    "skipped_steps": lambda steps: steps > 0,
    "compiled": lambda compiled: compiled == 0,
    "save_stall_seconds": lambda seconds: seconds >= 1,
    f"{HELD_OUT}images": lambda images: False,  # a count, not a metric
}


def metric_texts(metrics: Mapping[str, float]) -> list[tuple[str, str]]:
    """Returns (name, value) of each metric to show on a line, the most important first.

    The order is the loss, the task's metrics, held-out metrics, further losses, the state of training, its speed;
    within these the task's order. Per-class metrics are only in the log and the report.
    """
    shown = [name for name, value in metrics.items() if _is_shown(name, value)]
    return [(metric_label(name), metric_value(name, metrics[name])) for name in sorted(shown, key=_rank)]


def metric_label(name: str) -> str:
    """Returns `held-out top1` for `held_out_top1`."""
    return name.replace(HELD_OUT, "held-out ").replace("_", " ")


def metric_value(name: str, value: float) -> str:
    """Formats a value with the digits of its kind; else with about four significant digits, and integers in full."""
    words = name.split("_")
    known = next((form for word, form in _FORMATS.items() if word in words), None)
    if known:
        return f"{value:{known}}"
    if isinstance(value, int):
        return str(value)
    size = abs(value)
    if 0 < size < 1e-3:
        return f"{value:.2e}"
    return f"{value:.{next((4 - power for power in range(3) if size < 10**power), 1)}f}"


def counted(number: int, noun: str) -> str:
    """Returns `1 step`, or `1,200 steps`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def extra_metrics(measured: Mapping[str, float], named: Iterable[str]) -> dict[str, float]:
    """Returns the metrics that a report has no field for, except per-class ones.

    Args:
        named: The report's fields.
    """
    known = set(named)
    return {name: value for name, value in measured.items() if name not in known and "/" not in name}


def _is_shown(name: str, value: float) -> bool:
    return "/" not in name and _WHERE_IT_MATTERS.get(name, lambda _: True)(value)


def _rank(name: str) -> int:
    words = set(name.removeprefix(HELD_OUT).split("_"))
    held_out = name.startswith(HELD_OUT)
    if name == "loss":
        return 0
    if name in _WHERE_IT_MATTERS or words & {"second", "seconds"}:
        return 6
    if words & _STATE:
        return 5
    if "loss" in words:
        return 3 + held_out
    return 1 + held_out
