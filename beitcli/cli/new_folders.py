"""Says which folders a command makes on the way to its outputs: a misspelt one is seen at once.

Every output makes the folders above it. The folder that an option itself names, as `-o DIR`, is what was asked for, and
so is runs/, where runs go.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from beitcli.engine.events import OnEvent

_OUTPUTS = ("output", "map", "codebook", "reconstruct", "out", "token_cache")
_OF_RUNS = Path("runs")


def tell_new_folders(config: Any, on_event: OnEvent) -> None:
    """Emits a note for each folder above an output that is not there yet, the uppermost of several."""
    if getattr(config, "dry_run", False):
        return
    for folder in dict.fromkeys(filter(None, map(_uppermost_missing, _outputs(config)))):
        from beitcli.engine.events import Note

        on_event(Note(f"'{folder}' is not there yet: a new folder."))


def _outputs(config: Any) -> Iterator[str]:
    for name in _OUTPUTS:
        value = getattr(config, name, None)
        yield from (value,) if isinstance(value, str) else value or ()


def _uppermost_missing(output: str) -> Path | None:
    """Returns the uppermost folder above an output that is not there; None if all are."""
    missing = None
    for folder in Path(output).parents:
        if os.path.lexists(folder):
            break
        missing = folder
    return None if missing == _OF_RUNS else missing
