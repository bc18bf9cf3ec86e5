"""Console output: results on stdout; progress, warnings and errors on stderr.

`CommandConsole` renders the engine's events (progress by `progress.py`), and results as JSON or as a table.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from io import BytesIO
from typing import IO, TYPE_CHECKING, Any, BinaryIO, cast

from beitcli.cli.start_notice import StartNotice
from beitcli.cli.streams import Stderr, write_stdout
from beitcli.cli.tables import (
    baseline_text,
    common_baseline,
    comparison_table,
    facts_table,
    in_words,
    is_rows,
    rows_table,
)
from beitcli.cli.terminal_pictures import TerminalPictures
from beitcli.cli.terminal_style import style_of
from beitcli.cli.wrapping import arranged, wrapped
from beitcli.errors import BeitError, Stopped, StorageError
from beitcli.escaping import terminal, terminal_line

if TYPE_CHECKING:
    from PIL import Image
    from rich.console import Console

    from beitcli.cli.progress import LiveProgress, PlainLines
    from beitcli.engine.events import Event, Progress

_LONG_STALL, _LONG_WRITE = 1.0, 2.0  # seconds; after a long write its line stands behind those of later steps


class CommandConsole:
    """Output of one command.

    Args:
        as_json: `--json`.
        quiet: `--quiet`: print errors only.
        debug: `--debug`: print tracebacks.

    Attributes:
        muted: True on ranks above 0, which print their errors only.
        origins: Where the value of each setting of the command comes from, as in `Resolved`.
    """

    muted = False
    origins: Mapping[str, str] = {}

    def __init__(self, *, as_json: bool = False, quiet: bool = False, debug: bool = False) -> None:
        self.as_json, self.quiet, self.debug = as_json, quiet, debug
        self._console: Console | None = None
        self._bar: LiveProgress | None = None
        self._lines: PlainLines | None = None
        self._notice = StartNotice()
        self._told: set[str] = set()  # notes that are not repeated
        self._pictures = TerminalPictures(self._say, self._has_been_told)
        self._written: list[str] = []  # notes of files, for after the results

    @property
    def console(self) -> Console:
        """rich console on stderr, for tables and bars; lines do without rich, whose import takes 0.1 s."""
        if self._console is None:
            from rich.console import Console

            self._console = Console(file=cast("IO[str]", Stderr()), highlight=False, soft_wrap=True, emoji=False)
        return self._console

    @property
    def wants_json(self) -> bool:
        """Whether results are printed as JSON: with `--json`, or if stdout is not a terminal."""
        return self.as_json or not sys.stdout.isatty()

    @property
    def stdin(self) -> BinaryIO | None:
        """Standard input as bytes; None if it is closed, as for some services."""
        return None if sys.stdin is None else sys.stdin.buffer

    @property
    def has_drawn(self) -> bool:
        """Whether a picture was drawn in the terminal."""
        return self._pictures.has_drawn

    def say_starting(self) -> None:
        """Says on a terminal that the command is starting, if that takes long, until the first output."""
        if not self.quiet and not self.muted:
            self._notice.begin()

    # Results

    def print_line(self, text: str) -> None:
        """Prints one line, on a terminal without control characters or line breaks, which a name could forge lines by.

        Characters that stdout cannot encode are written as `\\udcff`.
        """
        self._print_raw(terminal_line(text) if sys.stdout.isatty() else text)

    def print_sentences(self, text: str) -> None:
        """As `print_line`, on a terminal wrapped at words."""
        self._print_raw(_for_screen(terminal_line(text), sys.stdout) if sys.stdout.isatty() else text)

    def print_about(self, name: str, parts: Sequence[str], style: str = "") -> None:
        """Prints a name and what is said of it in a line; on a terminal what does not fit stands below, indented.

        Args:
            parts: Each is kept in one piece.
            style: Of the first part, on a terminal.
        """
        if not sys.stdout.isatty():
            self._print_raw("  ".join([name, *parts]))
            return
        screen = style_of(sys.stdout)
        rows = arranged(terminal_line(name), [terminal_line(part) for part in parts], screen.width)
        first = (0, 1) if len(rows[0]) > 1 else (1, 0)
        lines = [
            "  ".join(screen.styled(text, style if (row, place) == first else "") for place, text in enumerate(texts))
            for row, texts in enumerate(rows)
        ]
        self._print_raw("\n    ".join(lines))

    def print_text(self, text: str) -> None:
        """Prints text of several lines, none of which is a stranger's."""
        self._print_raw(terminal(text) if sys.stdout.isatty() else text)

    def _print_raw(self, text: str) -> None:
        if not self.muted:
            self._make_way()
            write_stdout(text + "\n")

    def picture(self, picture: Image.Image) -> None:
        """Writes a picture to stdout as PNG."""
        file = BytesIO()
        picture.save(file, format="PNG")
        self._make_way()
        write_stdout(file.getvalue())

    def _make_way(self) -> None:
        """Pauses the progress bar if results go to the same terminal; the next event restarts it."""
        if self._bar is not None and sys.stdout.isatty():
            self._bar.stop()

    def print_json(self, document: Any) -> None:
        """Prints one JSON document on one line."""
        self.print_line(_json(to_dict(document)))

    def print_whole_result(self, document: Any) -> None:
        """Prints the JSON document that a command ends with, once its progress is gone."""
        self._end_bar()
        self.print_json(document)

    def print_run(self, report: Any, epochs: float | None = None) -> None:
        """Prints the report of a training command: the run's path and a table, or JSON with `--json`.

        Args:
            epochs: `--epochs`; None if the number of steps was given.
        """
        self._end_bar()
        plain = to_dict(report)
        if "run" not in plain:  # a plan, whose tables are on stderr
            if self.wants_json:
                self.print_json(plain)
        elif self.as_json:
            self._print_run_line(plain["run"], _json(plain))
        else:
            self._print_run_line(plain["run"])
            self.table(in_words(plain, epochs))

    def _print_run_line(self, run: str, line: str = "") -> None:
        try:
            self.print_line(line or run)
        except StorageError as error:
            raise StorageError(f"{error.message} The run itself is complete: '{run}'.", error.hint) from None

    def print_metrics(self, report: Any) -> None:
        """Prints metrics as a table on a terminal, as JSON if piped."""
        self._end_bar()
        if self.wants_json:
            self.print_json(report)
            return
        self._print(facts_table(to_dict(report)))

    def print_comparison(self, reports: Sequence[Any]) -> None:
        """Prints the metrics of one model, or those of several models as one table or one JSON array."""
        plain = [to_dict(report) for report in reports]
        self._end_bar()
        if self.wants_json:
            self.print_line(_json(plain if len(plain) > 1 else plain[0]))
        elif len(plain) > 1:
            self._print_comparison(plain, "model")
        else:
            shown = in_words(plain[0])
            tables = {name: value for name, value in shown.items() if is_rows(value)}
            self._print(facts_table({name: value for name, value in shown.items() if name not in tables}))
            for name, rows in tables.items():
                if name == "layers":
                    self._print_comparison(rows, "layer")
                else:
                    self._print(rows_table(rows, name.replace("_", " ")))

    def _print_comparison(self, rows: Sequence[dict[str, Any]], first: str) -> None:
        from rich.console import Console

        self._print(comparison_table(rows, first, Console().width))
        if (baseline := common_baseline(rows)) is not None:
            self.print_line(baseline_text(baseline))

    def tell_reason(self, document: dict[str, Any]) -> None:
        """Says on stderr why an image cannot be read, where stdout is a picture's and takes no documents."""
        if "error" in document and not self.quiet and not self.muted:
            self._say(f"warning: {document['path']}: {document['error']}", "yellow")

    def print_rows(
        self, rows: Sequence[dict[str, Any]], nothing: str = "", whole: str = "", title: str = "", room: str = ""
    ) -> None:
        """Prints a table of one kind of thing, a row each, for a terminal; the line `nothing` if there is no row."""
        if nothing and not rows:
            self.print_line(nothing)
        else:
            self._print(rows_table(rows, title, whole, room, style_of(sys.stdout).width))

    def _print(self, table: Any) -> None:
        """Prints a rich table to stdout."""
        from rich.console import Console

        console = Console(highlight=False, emoji=False)
        with console.capture() as captured:
            console.print(table)
        self._print_raw(captured.get().rstrip("\n"))

    def table(self, rows: dict[str, Any], title: str = "") -> None:
        """Prints rows as a table on stderr."""
        if not self.quiet and not self.muted:
            self._end_bar()
            self.console.print(facts_table(rows, title))

    # Events

    def on_event(self, event: Event) -> None:
        """Renders an event of the engine; nothing more once the terminal is gone, whose SIGHUP has the run saved."""
        try:
            self._render(event)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            self.quiet = True

    def _render(self, event: Event) -> None:
        from beitcli.engine import events

        if self.quiet or self.muted:
            return
        if isinstance(event, events.Progress):
            self._progress(event)
        elif isinstance(event, events.Planned):
            self.table(event.rows, event.title)
        elif isinstance(event, events.Tabulated):
            self._end_bar()
            rows = [dict(zip(event.columns, row, strict=True)) for row in event.rows]
            self.console.print(rows_table(rows, event.title))
        elif isinstance(event, events.Saved):
            beside = f", written in {event.seconds:.2g} s beside the training" if event.seconds >= _LONG_WRITE else ""
            waited = f"; training waited {event.stall:.2g} s for it" if event.stall >= _LONG_STALL else ""
            self._say(f"saved step {event.step:,}{beside}{waited}", "dim")
        elif isinstance(event, events.Drawn):
            self._pictures.draw(event.panels, event.legend, above=self._bar)
        elif isinstance(event, events.Warned):
            self._say(f"warning: {event.message}", "yellow")
        elif isinstance(event, events.Written):
            self._written.append(event.message)
        elif isinstance(event, events.Note) and not (event.once and self._has_been_told(event.message)):
            self._say(event.message, "dim")

    def _has_been_told(self, message: str) -> bool:
        """Whether a message was told already; it counts as told from now on."""
        has_been = message in self._told
        self._told.add(message)
        return has_been

    def _say(self, text: str, style: str = "") -> None:
        self._print_told(terminal_line(text), style)

    def _print_told(self, text: str, style: str = "") -> None:
        """Prints text on stderr, above the bar if there is one; on a terminal wrapped at words."""
        text = _for_screen(text, Stderr())
        if self._bar is not None:
            self.console.print(text, style=style, markup=False)
            return
        stderr = Stderr()
        stderr.write(style_of(stderr).styled(text, style) + "\n")
        stderr.flush()

    def _progress(self, event: Progress) -> None:
        from beitcli.cli import progress

        stderr = Stderr()
        style = style_of(stderr)
        if not style.has_styles:
            self._lines = self._lines or progress.PlainLines()
            line = self._lines.line_of(event)
            columns = style.width if stderr.isatty() else progress.LINE_COLUMNS
            for text in filter(None, (line, progress.held_out_line(event))):
                for part in progress.broken_between_figures(text, columns):
                    self._say(part)
            return
        if self._bar is None:
            self._bar = progress.LiveProgress(self.console)
        self._bar.show(event)
        measured = progress.held_out_line(event, min(progress.LINE_COLUMNS, style.width))
        if measured:
            self._say(measured)

    def _end_bar(self) -> None:
        if self._bar is not None:
            bar, self._bar = self._bar, None
            with suppress(OSError):  # the terminal is gone
                bar.stop()

    # Endings

    def close(self) -> None:
        self._notice.withdraw()
        self._end_bar()
        self._tell_written()

    def _tell_written(self) -> None:
        while self._written:
            self._say(self._written.pop(0), "dim")

    def print_error(self, error: BaseException) -> None:
        """Prints an error and its hint on stderr."""
        self._end_bar()
        self._tell_written()
        if self.debug:
            import traceback

            Stderr().write(terminal("".join(traceback.format_exception(error)).rstrip()) + "\n")
        if isinstance(error, BeitError):
            message, hint = error.message, error.hint
        else:
            message = f"unexpected failure ({type(error).__name__}): {error}"
            hint = "This is a bug. Run again with --debug and report what it prints."
        word, style = ("stopped", "bold yellow") if isinstance(error, Stopped) else ("error", "bold red")
        message, hint = terminal_line(message), terminal(hint)  # hints may list several ways out
        self._print_told(f"{word}: {message}", style)
        if hint:
            self._print_told("\n".join(f"  {line.strip()}" for line in hint.split("\n")))


def _for_screen(text: str, stream: Any) -> str:
    """Returns text wrapped for a terminal; for a pipe or a file as it is."""
    return wrapped(text, style_of(stream).width) if stream.isatty() else text


def to_dict(report: Any) -> dict[str, Any]:
    """Converts a report to a dict, with its `further` metrics at the top level."""
    from dataclasses import asdict, is_dataclass

    plain = asdict(report) if is_dataclass(report) and not isinstance(report, type) else dict(report)
    return plain | plain.pop("further", {})


def _json(document: Any) -> str:
    from beitcli.runtime.storage.safe_json import dump_json

    return dump_json(document)
