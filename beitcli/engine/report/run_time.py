"""How long a run took, in its parts: its own tokenizer, training, measuring; from its checkpoints, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from beitcli.engine.report.run_state import document_in, finite_numbers, newest_folder
from beitcli.runtime.metric_text import seconds_text

_LONGEST = 1e12  # seconds; a stranger's file may have more than their sum can hold


@dataclass(frozen=True)
class RunTime:
    """Seconds of a run, of all its attempts together.

    Attributes:
        tokenizer: Spent on the tokenizer that it trained for itself, measured too; 0 without one.
    """

    tokenizer: float = 0.0
    training: float = 0.0
    measuring: float = 0.0

    @property
    def total(self) -> float:
        return self.tokenizer + self.training + self.measuring

    def __str__(self) -> str:
        """Returns `3 min 12 s: tokenizer 2 min 58 s, training 12 s, measuring 2 s`, without the parts of no second."""
        named = {"tokenizer": self.tokenizer, "training": self.training, "measuring": self.measuring}
        parts = [f"{name} {seconds_text(seconds)}" for name, seconds in named.items() if seconds >= 0.5]
        return seconds_text(self.total) + (f": {', '.join(parts)}" if len(parts) > 1 else "")


def time_of(run: Path) -> RunTime:
    """Returns the time up to the newest checkpoint of a run, and of its own tokenizer; 0 for what has none."""
    own, tokenizer = (_seconds(folder) for folder in (run, run / "tokenizer"))
    return RunTime(sum(tokenizer), *own)


def _seconds(run: Path) -> tuple[float, float]:
    """Returns seconds of training, and of measuring."""
    stored = finite_numbers(document_in(newest_folder(run / "checkpoints"), "trainer.json"))
    training, measuring = (min(max(0.0, stored.get(name, 0.0)), _LONGEST) for name in ("seconds", "measuring_seconds"))
    return training, measuring
