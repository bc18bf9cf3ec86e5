"""Every table that a command prints: facts, a row each, or rows of one kind; one look, and one form of each number.

Columns of numbers stand at the right and are never wrapped; texts wrap where the terminal is narrow, and nothing is
cut. In a column a float has four decimals, beside a name four digits, or four decimals if it is a share, so that
numbers below one another compare.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from beitcli.cli.wrapping import columns
from beitcli.escaping import terminal_line
from beitcli.runtime.metric_text import epochs_text, frequent_token, is_idle, is_share, seconds_text, unit_of

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

_NAME_STYLE = "cyan"
_FACTS = ("layer", "images")  # shown next to the metrics, never in bold
_LESS_IS_BETTER = ("bits_per_dim",)
_BASELINE = "baseline_accuracy"
_WHOLE = 36  # characters
_LEAST_ROOM, _LEAST_FIRST = 20, 12  # characters
_TITLES = {"bad": "unreadable images"}  # of fields whose names in JSON say less
_TIMES = {  # fields in seconds
    "seconds": "training time",
    "measuring_seconds": "measuring time",
    "tokenizer_seconds": "tokenizer before it",
    "total_seconds": "total time",
}
_UNRANKED = (_BASELINE, "deviation", "posterior_entropy", "bound_se")  # metrics that are neither good nor bad


def in_words(report: Mapping[str, Any], epochs: float | None = None) -> dict[str, Any]:
    """Returns a report as it is shown: shares with their interval and baseline, without what says nothing.

    Args:
        epochs: `--epochs` of a training; None if the number of steps was given.
    """
    classes = report.get("classes") or 0
    shown = {name: value for name, value in report.items() if not (is_idle(name, classes) or _is_interval(name))}
    if shown.get("bad") == 0:
        del shown["bad"]
    if shown.get("protocol") == "head":  # how a finetuned model is always measured
        del shown["protocol"]
    if "top1" in shown:
        if interval := report.get("top1_interval"):
            shown["top1"] = f"{report['top1']:.4f} (95%: {_interval_text(interval)})"
        if (baseline := report.get(_BASELINE)) is not None:
            shown[_BASELINE] = f"{baseline:.4f} (always guessing the most frequent class)"
    if "masked_accuracy" in shown and (baseline := report.get(_BASELINE)) is not None:
        shown[_BASELINE] = f"{baseline:.4f} (always guessing {frequent_token(baseline)})"
    shown.pop("loss_lead_std_error", None)  # of the verdict
    if error := shown.pop("masked_accuracy_std_error", None):
        shown["masked_accuracy"] = f"{report['masked_accuracy']:.4f} (standard error {error:.1g})"
    if "images_per_second" in shown and report.get("images_seen") and report.get("seconds"):
        average = report["images_seen"] / report["seconds"]
        shown["images_per_second"] = f"{average:.4g} on average, {report['images_per_second']:.4g} at the end"
    if "mae" in shown:
        shown.pop("mae_normalized", None)  # twice as much
    if "measured_on" in shown:
        shown.pop("measured_images", None)
        if "images" in shown and str(shown["measured_on"]).startswith(f"{shown['images']:,} "):
            del shown["images"]
    if epochs is not None and "epoch" in shown:
        shown["epoch"] = epochs_text(report["epoch"], epochs, with_unit=False)
    for name, value in shown.items():
        if is_rows(value):
            shown[name] = [{key: each for key, each in row.items() if not is_idle(key, classes)} for row in value]
    times = _TIMES if "total_seconds" in shown else {"seconds": "time"}  # the parts of a training, or one time alone
    return {times.get(name, name): _time(value) if name in times else value for name, value in shown.items()}


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else seconds_text(seconds) if seconds >= 10 else f"{seconds:.2g} s"


def _interval_text(interval: Sequence[float]) -> str:
    return f"{interval[0]:.4f} to {interval[1]:.4f}"


def common_baseline(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Returns the `baseline_accuracy` that all rows which were measured share; None if they differ or have none."""
    there = {row.get(_BASELINE) for row in rows if "error" not in row}
    return there.pop() if len(there) == 1 else None


def baseline_text(baseline: float) -> str:
    """Returns the line below a comparison that says what guessing would give."""
    return f"baseline accuracy {baseline:.4f}: always guessing the most frequent class"


def is_rows(value: Any) -> bool:
    """Whether a field of a report is a table of its own."""
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def _is_interval(name: str) -> bool:
    return name.endswith("_interval")


def facts_table(facts: Mapping[str, Any], title: str = "") -> Table:
    """Builds a table of names and values; what is None is left out."""
    from rich.text import Text

    table = _table(title, show_header=False)
    table.add_column(style=_NAME_STYLE, no_wrap=True)
    table.add_column()
    for name, value in facts.items():
        if value is not None:
            table.add_row(_name(name), Text(terminal_line(_fact(value, name))))
    return table


def rows_table(
    rows: Sequence[Mapping[str, Any]], title: str = "", whole: str = "", room: str = "", width: int = 80
) -> Table:
    """Builds a table of things of one kind: a column per key of the first, and of None an empty cell.

    Args:
        whole: A column of texts that are not wrapped, if none is very long; others are narrowed for it.
        room: A column of texts that matter most: in a table wider than `width` the other texts are wrapped for it.
        width: Columns of the terminal.
    """
    from rich.text import Text

    table = _table(title)
    narrowed = _narrowed(rows, room, width) if rows and room else {}
    for name in rows[0] if rows else ():
        values = [row[name] for row in rows]
        is_number = any(_is_number(value) for value in values)
        is_whole = name == whole and name not in narrowed and all(len(str(value)) <= _WHOLE for value in values)
        justify: Literal["left", "right"] = "right" if is_number else "left"
        no_wrap, fixed = is_number or is_whole, narrowed.get(name)
        table.add_column(_name(name), justify=justify, no_wrap=no_wrap, overflow="fold", width=fixed)
    for row in rows:
        table.add_row(*(Text(terminal_line(_cell(value))) for value in row.values()))
    return table


def _narrowed(rows: Sequence[Mapping[str, Any]], room: str, width: int) -> dict[str, int]:
    """Returns the widths of the columns of texts in a table that is wider than `width`; empty if it is not.

    Texts are wrapped at words; what that leaves is the room's, of which the first column takes what it must.
    """
    texts = {name: [name, *(terminal_line(_cell(row[name])) for row in rows)] for name in rows[0]}
    widest = {name: max(map(columns, cells)) for name, cells in texts.items()}
    between = 2 * (len(texts) - 1)
    if sum(widest.values()) + between <= width:
        return {}
    first = next(iter(texts))
    narrow = {
        name: max(columns(word) for text in cells for word in text.split() or [""])
        for name, cells in texts.items()
        if name not in (first, room) and not any(_is_number(row[name]) for row in rows)
    }
    left = width - between - sum(narrow.get(name, widest[name]) for name in texts if name not in (first, room))
    narrow[room] = min(widest[room], max(_LEAST_ROOM, left - widest[first]))
    narrow[first] = min(widest[first], max(_LEAST_FIRST, left - narrow[room]))
    return narrow


def comparison_table(rows: Sequence[dict[str, Any]], first: str, width: int = 80) -> Table:
    """Builds a table with one row per model or layer. Every float of a row is a metric, the best of each in bold.

    Intervals have columns of their own where these fit; a baseline that all share is for a line below.

    Args:
        first: The column that names a row.
        width: Columns of the terminal.
    """
    from rich.console import Console

    table = _compared(rows, first, with_intervals=True)
    wide = Console(width=1 << 16)
    return table if wide.measure(table).maximum <= width else _compared(rows, first, with_intervals=False)


def _compared(rows: Sequence[dict[str, Any]], first: str, *, with_intervals: bool) -> Table:
    from rich.text import Text

    baseline = common_baseline(rows)
    metrics = dict.fromkeys(
        name
        for row in rows
        for name, value in row.items()
        if isinstance(value, float)
        and (name != _BASELINE or baseline is None)
        and not all(is_idle(name, each.get("classes") or 0) for each in rows if name in each)
    )
    facts = [name for name in _FACTS if name != first and any(name in row for row in rows)]
    best = {
        name: (min if name in _LESS_IS_BETTER else max)(row[name] for row in rows if isinstance(row.get(name), float))
        for name in metrics
        if name not in _UNRANKED
    }
    table = _table()
    table.add_column(_name(first), overflow="fold")
    intervals = {
        name: {number: each for number, row in enumerate(rows) if (each := row.get(f"{name}_interval"))}
        for name in metrics
        if with_intervals
    }
    for name in (*metrics, *facts):
        table.add_column(_name(name), justify="right", no_wrap=True)
        if intervals.get(name):
            table.add_column(_name(f"{name} 95% interval"), justify="right", no_wrap=True)
    for number, row in enumerate(rows):
        named = Text(terminal_line(str(row[first])))
        if "error" in row:
            table.add_row(named, Text("failed", style="red"))
            continue
        there = {name: row[name] for name in metrics if isinstance(row.get(name), float)}
        cells = []
        for name in metrics:
            is_best = name in there and there[name] == best.get(name)
            cells.append(Text(_cell(there.get(name)), style="bold" if is_best else ""))
            if intervals.get(name):
                interval = intervals[name].get(number)
                cells.append(Text(_interval_text(interval) if interval else ""))
        table.add_row(named, *cells, *(_cell(row.get(name)) for name in facts))
    return table


def _table(title: str = "", *, show_header: bool = True) -> Table:
    from rich.table import Table
    from rich.text import Text

    above = Text(terminal_line(title), style="table.title") if title else None
    return Table(
        title=above,
        title_justify="left",
        show_header=show_header,
        header_style=_NAME_STYLE,
        box=None,
        padding=(0, 2, 0, 0),
        pad_edge=False,
    )


def _name(name: str) -> Text:
    from rich.text import Text

    return Text(terminal_line(_TITLES.get(name, name.replace("_", " "))))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cell(value: Any) -> str:
    """Writes a value of a column."""
    return "" if value is None else f"{value:.4f}" if isinstance(value, float) else _fact(value)


def _fact(value: Any, name: str = "") -> str:
    """Writes a value beside its name; of a dict, such as a metric per class, each entry."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{of} {'-' if each is None else _fact(each, name)}" for of, each in value.items())
    if isinstance(value, float):
        if is_share(name):
            return f"{value:.4f}"
        return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}{unit_of(name)}"
    return f"{value:,}" if isinstance(value, int) else str(value)
