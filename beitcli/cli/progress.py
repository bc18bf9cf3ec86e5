"""Progress of a job on stderr: live lines on a terminal, a line now and then elsewhere, both with the same figures.

    pretrain ━━━━━━━━━━━━━━━╸━━━━━━━━   1,240/3,200  1,934 images/s  data 3%  12:33 left
      masked accuracy 4.2% = 11.0 x guessing  loss 5.52, 1.31 below entropy 6.83

`data` is the share of time that training waits for data.
"""

from __future__ import annotations

import signal
import time
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from beitcli.escaping import terminal_line
from beitcli.runtime.metric_text import HELD_OUT, TRAIN_LABEL, figure_texts, key_figures, measured_label
from beitcli.runtime.signals import signal_words, stop_requested

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bar
    from rich.progress import Task

    from beitcli.engine.events import Progress

LINE_COLUMNS = 150  # of a line that is printed; what does not fit is in metrics.jsonl
_LINE_SECONDS = 5.0  # between two plain lines with metrics
_COUNT_SECONDS = 10.0  # between two plain lines without metrics; a shorter job prints none
_SAMPLE_SECONDS = 0.5  # between two points of the speed
_SAMPLES = 60
_COUNTS = ("images", "measured_images")  # metrics that say how many images were measured


class Pace:
    """Speed of a phase over its last half minute or more, for the time left."""

    def __init__(self) -> None:
        self._points: deque[tuple[float, int]] = deque(maxlen=_SAMPLES)

    def add(self, done: int) -> None:
        now = time.monotonic()
        if self._points and done < self._points[-1][1]:
            self._points.clear()  # the phase begins again
        if not self._points or now - self._points[-1][0] >= _SAMPLE_SECONDS:
            self._points.append((now, done))

    def rate(self, done: int) -> float:
        """Returns units per second up to now; 0 if unknown."""
        began, before = self._points[0] if self._points else (time.monotonic(), done)
        return (done - before) / max(time.monotonic() - began, 1e-9)

    def left(self, done: int, total: int) -> str:
        """Returns `12:33 left`; empty if unknown."""
        rate = self.rate(done)
        return f"{duration((total - done) / rate)} left" if rate > 0 and total > done else ""


class PlainLines:
    """Lines for a pipe or a terminal that cannot move its cursor."""

    def __init__(self) -> None:
        self._last_line = 0.0
        self._last_count: float | None = None
        self._paces: dict[str, Pace] = {}

    def line_of(self, event: Progress) -> str | None:
        """Returns the line of an event, or None if none is due."""
        pace = self._paces.setdefault(event.phase, Pace())
        pace.add(event.done)
        if not self._is_due(event):
            return None
        if event.unit == "byte":
            return f"{event.phase}: {format_bytes(event.done, event.total, pace.rate(event.done))}"
        of = f"{event.total:,}" if event.total else "?"
        begin = f"{event.phase}: {event.unit} {event.done:,}/{of}"
        speed = speed_texts(event.metrics, pace.left(event.done, event.total)) if event.metrics else []
        trained = {name: value for name, value in event.metrics.items() if not name.startswith(HELD_OUT)}
        trained.pop("images_per_second", None)
        label = f", {TRAIN_LABEL} " if trained else ""
        room = LINE_COLUMNS - len(begin + label)
        left_over = room - len("  ".join(key_figures(trained, with_guess=True))) - 2
        if len(", ".join(speed)) > left_over:
            speed = [text for text in speed if not text.startswith("data ")]
        if len(", ".join(speed)) > left_over:
            speed = speed[-1:]  # the time left where it is known; the others are in metrics.jsonl
        if len(", ".join(speed)) > left_over:
            speed = []
        figures = fitting(figure_texts(trained, event.classes, with_guess=True), room - len(", ".join(speed)) - 2)
        return "  ".join(filter(None, (f"{begin}{label}{figures}".rstrip(), ", ".join(speed))))

    def _is_due(self, event: Progress) -> bool:
        """Whether to print a plain line: every 5 s with metrics (held-out: at once); else every 10 s, steps never."""
        now = time.monotonic()
        if event.metrics:
            measured = any(name.startswith(HELD_OUT) for name in event.metrics)
            due = measured or now - self._last_line >= _LINE_SECONDS
            self._last_line = now if due else self._last_line
        else:
            since = now - self._last_count if self._last_count is not None else 0.0  # counted from the first event
            unfinished = event.done < event.total or not event.total
            due = event.unit != "step" and unfinished and since >= _COUNT_SECONDS
            self._last_count = now if due or self._last_count is None else self._last_count
        return due


class LiveProgress:
    """Lines that are drawn again in place: one for each phase, and below it the figures of training."""

    def __init__(self, console: Console) -> None:
        self._bar = _bar(console)
        self._tasks: dict[str, Any] = {}
        self._paces: dict[str, Pace] = {}

    def show(self, event: Progress) -> None:
        """Draws an event; begins again after `stop`."""
        self._bar.start()
        pace = self._paces.setdefault(event.phase, Pace())
        pace.add(event.done)
        if event.phase not in self._tasks:
            fields: dict[str, Any] = {"unit": event.unit, "speed_text": "", "figures": []}
            self._tasks[event.phase] = self._bar.add_task(
                terminal_line(event.phase), total=event.total or None, **fields
            )
        task = self._tasks[event.phase]
        new: dict[str, Any] = {"left": pace.left(event.done, event.total)}
        if event.metrics:
            figures = _live_figures(event.metrics, event.classes, on_training=event.on_training)
            new |= {"speed_text": "  ".join(speed_texts(event.metrics)), "figures": figures}
        is_told = any(name.startswith(HELD_OUT) for name in event.metrics)  # by a line above the bar as last drawn
        self._bar.update(task, completed=event.done, total=event.total or None, refresh=is_told, **new)

    def stop(self) -> None:
        self._bar.stop()


def _bar(console: Console) -> Bar:
    """Builds the progress bar. stdout is not redirected. No column wraps: rich erases too much above a wrapped line."""
    from rich.progress import BarColumn, ProgressColumn
    from rich.progress import Progress as Bar
    from rich.table import Column
    from rich.text import Text

    class Words(ProgressColumn):
        """Position, speed, share of time waiting for data, time left."""

        def render(self, task: Task) -> Text:
            if task.fields["unit"] == "byte":
                return Text(format_bytes(task.completed, task.total or 0, task.speed or 0), style="progress.download")
            of = f"{int(task.total):,}" if task.total else "?"
            line = Text(f"{int(task.completed):,}/{of}", style="progress.download")
            for text, style in ((task.fields["speed_text"], ""), (task.fields.get("left", ""), "progress.remaining")):
                line.append(f"  {text}" if text else "", style=style)
            return line

    class Name(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(task.description)

    class Lines(Bar):
        """The bars, and below each the figures that fit the width whole."""

        def get_renderables(self) -> Iterable[Any]:
            for task in self.tasks:
                yield self.make_tasks_table([task])
                if task.fields["figures"]:
                    yield Text("  " + fitting(task.fields["figures"], console.width - 2), no_wrap=True)
            number = stop_requested()
            if number is not None:  # drawn by the bar's own thread, while the step goes on
                again = " again" if number == signal.SIGINT else ""
                yield Text(
                    f"  {signal_words(number)}: stops after this step. Ctrl-C{again} stops at once.", no_wrap=True
                )

    return Lines(
        Name(table_column=Column(no_wrap=True)),
        BarColumn(None),
        Words(table_column=Column(no_wrap=True)),
        console=console,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
        expand=True,
    )


def _live_figures(metrics: dict[str, float], classes: int = 0, *, on_training: bool = False) -> list[str]:
    """Returns the figures below the bar; those of held-out images are printed at each save, where they have a line."""
    metrics = {name: value for name, value in metrics.items() if name != "images_per_second"}
    if key_figures(metrics):  # which 80 columns have no room beside
        trained = {name: value for name, value in metrics.items() if not name.startswith(HELD_OUT)}
        return figure_texts(trained, classes)
    texts = figure_texts(metrics, classes, on_training=on_training)
    return [f"{TRAIN_LABEL} {texts[0]}", *texts[1:]] if any(name.startswith(HELD_OUT) for name in metrics) else texts


def held_out_line(event: Progress, columns: int = LINE_COLUMNS) -> str:
    """Returns the line of a save with the metrics of held-out images that fit; empty if the event has none."""
    held_out = {name: value for name, value in event.metrics.items() if name.startswith(HELD_OUT)}
    figures = {name.removeprefix(HELD_OUT): value for name, value in held_out.items()}
    figures = {name: value for name, value in figures.items() if name not in _COUNTS}
    texts = figure_texts(figures, event.classes, with_guess=True)
    images = next((held_out[f"{HELD_OUT}{name}"] for name in _COUNTS if f"{HELD_OUT}{name}" in held_out), None)
    begin = f"{event.phase}: {event.unit} {event.done:,}, {measured_label(images, on_training=event.on_training)}"
    return f"{begin} {fitting(texts, columns - len(begin) - 1)}" if texts else ""


def speed_texts(metrics: dict[str, float], left: str = "") -> list[str]:
    """Returns `1,934 images/s`, `data 3%` and the time left, as far as they are known."""
    texts = []
    if "images_per_second" in metrics:
        speed = metrics["images_per_second"]
        texts.append(f"{speed:,.0f} images/s" if speed >= 10 else f"{speed:.1f} images/s")
    if "data_wait_share" in metrics:
        texts.append(f"data {metrics['data_wait_share']:.0%}")
    return [*texts, left] if left else texts


def fitting(texts: Iterable[str], room: int) -> str:
    """Joins texts up to the first that does not fit.

    Args:
        room: Maximum number of characters.
    """
    line = ""
    for text in texts:
        longer = f"{line}  {text}".lstrip()
        if len(longer) > room:
            break
        line = longer
    return line


def broken_between_figures(line: str, columns: int) -> list[str]:
    """Breaks a line that is wider than `columns` where two spaces part its figures; further lines are indented."""
    first, *figures = line.split("  ")
    lines = [first]
    for figure in figures:
        if len(lines[-1]) + 2 + len(figure) <= columns:
            lines[-1] += f"  {figure}"
        else:
            lines.append(f"    {figure}")
    return lines


def duration(seconds: float) -> str:
    """Formats `0:07`, `12:33`, `3:12:33` or `4 d 03 h`."""
    whole = round(seconds)
    if whole >= 100 * 3600:
        return f"{whole // 86400} d {whole % 86400 // 3600:02d} h"
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def format_bytes(done: float, total: float, rate: float) -> str:
    """Formats bytes and bytes per second as `95.7/215.2 MB, 12.3 MB/s`; 0 stands for unknown."""
    of = f"/{total / 1e6:.1f}" if total else ""
    return f"{done / 1e6:.1f}{of} MB" + (f", {rate / 1e6:.1f} MB/s" if rate else "")
