"""Tables of metrics: one row per layer or per model, the best value of each column in bold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from beitcli.escaping import terminal_line

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

_SHORT = 24  # characters of a cell that is never wrapped
_FACTS = ("layer", "images")  # shown next to the metrics, never in bold
_LESS_IS_BETTER = ("bits_per_dim",)
_UNRANKED = ("deviation", "posterior_entropy", "bound_se")  # metrics that are neither good nor bad


def table_title(title: str) -> Text | None:
    """Returns a title whose text is shown as it is; None for an empty one."""
    from rich.text import Text

    return Text(terminal_line(title), style="table.title") if title else None


def comparison_table(rows: Sequence[dict[str, Any]], first: str) -> Table:
    """Builds a table with one row per model or layer. Every float of a row is a metric.

    Args:
        first: The column that names a row.
    """
    from rich.table import Table
    from rich.text import Text

    metrics = dict.fromkeys(name for row in rows for name, value in row.items() if isinstance(value, float))
    facts = [name for name in _FACTS if name != first and any(name in row for row in rows)]
    best = {
        name: (min if name in _LESS_IS_BETTER else max)(row[name] for row in rows if isinstance(row.get(name), float))
        for name in metrics
        if name not in _UNRANKED
    }
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="cyan")
    table.add_column(first)
    for name in (*metrics, *facts):
        table.add_column(name.replace("_", " "), justify="right", no_wrap=True)
    for row in rows:
        if "error" in row:
            table.add_row(Text(terminal_line(str(row[first]))), Text("failed", style="red"))
            continue
        there = [row.get(name) if isinstance(row.get(name), float) else None for name in metrics]
        cells = [
            "" if value is None else Text(f"{value:.4f}", style="bold" if value == best.get(name) else "")
            for name, value in zip(metrics, there, strict=True)
        ]
        table.add_row(
            Text(terminal_line(str(row[first]))), *cells, *(f"{row[name]:,}" if name in row else "" for name in facts)
        )
    return table


def rows_table(title: str, rows: Sequence[dict[str, Any]]) -> Table:
    """Builds a table of one part of a report: a column per key, texts at the left; what is None stays empty."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=table_title(title.replace("_", " ")), title_justify="left", box=None, padding=(0, 2, 0, 0))
    for name, value in rows[0].items():
        justify: Literal["left", "right"] = "left" if isinstance(value, str) else "right"
        table.add_column(Text(terminal_line(name.replace("_", " "))), justify=justify, no_wrap=True)
    for row in rows:
        cells = ["" if v is None else f"{v:.4f}" if isinstance(v, float) else str(v) for v in row.values()]
        table.add_row(*(Text(terminal_line(cell)) for cell in cells))
    return table


def listing(rows: Sequence[dict[str, Any]]) -> Table:
    """Builds a table of one kind of thing, a row each. Only columns with long cells wrap."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="cyan")
    shown = [{name: f"{v:,}" if isinstance(v, int) else str(v) for name, v in row.items()} for row in rows]
    for name, value in rows[0].items() if rows else ():
        longest = max(len(row[name]) for row in shown)
        justify: Literal["left", "right"] = "right" if isinstance(value, int) else "left"
        table.add_column(Text(name), justify=justify, no_wrap=longest <= _SHORT, overflow="fold")
    for row in shown:
        table.add_row(*(Text(terminal_line(each)) for each in row.values()))
    return table
