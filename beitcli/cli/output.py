"""Results to stdout, everything else to stderr.

A `Shell` is one invocation's way to speak: it turns the engine's events into progress bars on a terminal and plain
lines elsewhere, and results into JSON or a table.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING, Any

from beitcli.errors import BeitError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bar

    from beitcli.engine.events import Event, Progress

_LINE_SECONDS = 5.0
_SHOWN = {"loss": ".4f", "masked_accuracy": ".3f", "baseline_accuracy": ".3f", "unigram_entropy": ".3f", "top1": ".4f",
          "reconstruction": ".5f", "kl": ".3f", "lr": ".2e", "images_per_second": ".0f", "gradient_norm": ".2f",
          "temperature": ".3f", "held_out_psnr": ".2f", "held_out_codes_used": ".0f", "held_out_perplexity": ".1f",
          "held_out_masked_accuracy": ".3f", "held_out_loss": ".4f", "held_out_top1": ".4f"}  # fmt: skip


class Shell:
    """How one command talks.

    Args:
        as_json: `--json`.
        quiet: `--quiet`: errors only.
        debug: `--debug`: tracebacks.
    """

    def __init__(self, *, as_json: bool = False, quiet: bool = False, debug: bool = False) -> None:
        self.as_json, self.quiet, self.debug = as_json, quiet, debug
        self._console: Console | None = None
        self._bar: Bar | None = None
        self._bar_tasks: dict[str, Any] = {}
        self._last_line = 0.0

    @property
    def console(self) -> Console:
        """stderr."""
        if self._console is None:
            from rich.console import Console

            self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        return self._console

    @property
    def wants_json(self) -> bool:
        """Whether results are JSON: asked for, or stdout is no terminal."""
        return self.as_json or not sys.stdout.isatty()

    # Results

    def line(self, text: str) -> None:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    def document(self, document: Any) -> None:
        """One JSON document on one line."""
        self.line(json.dumps(as_plain(document)))

    def made(self, report: Any) -> None:
        """What a training command made: its path, or everything with `--json`."""
        plain = as_plain(report)
        if self.as_json or "run" not in plain:
            self.document(plain)
        else:
            self.line(plain["run"])
            self.table(plain)

    def figures(self, report: Any) -> None:
        """A table on a terminal, JSON when piped."""
        if self.wants_json:
            self.document(report)
            return
        from rich.console import Console

        Console(highlight=False).print(_table(as_plain(report)))

    def table(self, rows: dict[str, Any], title: str = "") -> None:
        """Rows for a person, on stderr."""
        if not self.quiet:
            self._end_bar()
            self.console.print(_table(rows, title))

    # Events

    def on_event(self, event: Event) -> None:
        """Shows an event of the engine."""
        from beitcli.engine import events

        if self.quiet:
            return
        if isinstance(event, events.Progress):
            self._progress(event)
        elif isinstance(event, events.Planned):
            self.table(event.rows, event.title)
        elif isinstance(event, events.Warned):
            self._say(f"warning: {event.message}", "yellow")
        elif isinstance(event, events.Note):
            self._say(event.message, "dim")

    def _say(self, text: str, style: str = "") -> None:
        (self._bar.console if self._bar else self.console).print(text, style=style, markup=False)

    def _progress(self, event: Progress) -> None:
        if not self.console.is_terminal or self.console.is_dumb_terminal:
            now = time.monotonic()
            measured = any(name.startswith("held_out") for name in event.metrics)
            if not event.metrics or (not measured and now - self._last_line < _LINE_SECONDS):
                return
            self._last_line = now
            self._say(f"{event.phase}: {event.unit} {event.done}/{event.total}  {shown(event.metrics)}".rstrip())
            return
        if self._bar is None:
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("{task.description}"), BarColumn(None), MofNCompleteColumn(), TimeRemainingColumn(),
                TextColumn("{task.fields[figures]}", markup=False), console=self.console, transient=True,
            )  # fmt: skip
            self._bar.start()
        if event.phase not in self._bar_tasks:
            self._bar_tasks[event.phase] = self._bar.add_task(event.phase, total=event.total, figures="")
        task = self._bar_tasks[event.phase]
        self._bar.update(task, completed=event.done, total=event.total)
        if event.metrics:
            self._bar.update(task, figures=shown(event.metrics))

    def _end_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar, self._bar_tasks = None, {}

    # Endings

    def close(self) -> None:
        self._end_bar()

    def failed(self, error: BaseException) -> None:
        """What is wrong and how to put it right, on stderr."""
        self._end_bar()
        if self.debug:
            traceback.print_exception(error, file=sys.stderr)
        if isinstance(error, BeitError):
            message, hint = error.message, error.hint
        else:
            message = f"unexpected failure ({type(error).__name__}): {error}"
            hint = "This is a bug. Run again with --debug and report what it prints."
        self.console.print(f"error: {message}", style="bold red", markup=False)
        if hint:
            self.console.print(f"  {hint}", markup=False)


def as_plain(report: Any) -> dict[str, Any]:
    return asdict(report) if is_dataclass(report) and not isinstance(report, type) else dict(report)


def shown(figures: dict[str, float]) -> str:
    """The figures a person follows, shortly."""
    known = [f"{name} {figures[name]:{form}}" for name, form in _SHOWN.items() if name in figures]
    return "  ".join(known).replace("held_out_", "held-out ").replace("_", " ")


def _table(rows: dict[str, Any], title: str = "") -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column()
    for name, value in rows.items():
        text = f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
        table.add_row(Text(name.replace("_", " ")), Text(text))
    return table
