"""Pictures in the terminal of stderr, above the progress bar; where there is no fit terminal, the reason."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from beitcli.cli.streams import Stderr
from beitcli.cli.terminal_style import style_of, terminal_height
from beitcli.errors import UsageError

if TYPE_CHECKING:
    from beitcli.cli.progress import LiveProgress
    from beitcli.pictures.canvas import Panel
    from beitcli.pictures.terminal import Protocol


class TerminalPictures:
    """Draws what `--preview` asks for.

    Args:
        say: Prints a line on stderr, in a style.
        has_been_told: Whether a line was told before; it counts as told from then on.

    Attributes:
        has_drawn: Whether anything was drawn.
    """

    def __init__(self, say: Callable[[str, str], None], has_been_told: Callable[[str], bool]) -> None:
        self._say, self._has_been_told = say, has_been_told
        self._has_refused = False
        self.has_drawn = False

    def draw(self, panels: Sequence[Panel], legend: Sequence[str], above: LiveProgress | None) -> None:
        """Draws pictures with lines beneath; without a fit terminal, says so once.

        Args:
            legend: Lines beneath the first drawing.
            above: The bar that makes way; the next event restarts it.
        """
        from beitcli.pictures.terminal import cell_width, draw_panels

        style, protocol = style_of(Stderr()), self._protocol()
        if protocol is None:
            if not self._has_refused:
                reason = "NO_COLOR is set" if os.environ.get("NO_COLOR") else "stderr is no terminal that can show it"
                self._say(f"--preview draws nothing: {reason}. -o OUT writes the picture.", "dim")
            self._has_refused = True
            return
        new = [line for line in legend if not self._has_been_told(line)]
        height = terminal_height()  # less a line that sums it up, and the prompt
        lines = None if height is None else height - 3 - len(new)
        drawn = draw_panels(panels, protocol, style.width, cell_width(2), lines)
        self.has_drawn = True
        if above is not None:
            above.stop()
        Stderr().write(drawn)
        for line in new:
            self._say(line, "dim")

    def _protocol(self) -> Protocol | None:
        from beitcli.pictures.terminal import VARIABLE, protocol_of

        style = style_of(Stderr())
        try:
            return protocol_of(os.environ) if style.has_styles and style.has_boxes else None
        except UsageError as error:  # a job does not end midway for it
            message = f"warning: {error.message} {error.hint} Pictures are drawn as blocks."
            if not self._has_been_told(message):
                self._say(message, "yellow")
            return protocol_of({**os.environ, VARIABLE: "blocks"})
