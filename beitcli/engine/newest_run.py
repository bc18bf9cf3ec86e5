"""The run that a command takes where no model is named."""

from __future__ import annotations

from pathlib import Path

from beitcli.engine.events import Note, OnEvent, ignore
from beitcli.errors import UsageError
from beitcli.runtime.storage.regular_files import read_regular
from beitcli.runtime.storage.safe_json import parse_json


def newest_run(on_event: OnEvent = ignore) -> str:
    """Returns the run under runs/ that saved a backbone last.

    Raises:
        UsageError: There is none.
    """
    found = []
    for settings in Path("runs").glob("*/checkpoints/step-*/config.json"):
        try:
            kind = parse_json(read_regular(settings))["beit"]["kind"]
            found += [(settings.stat().st_mtime, str(settings.parents[2]))] if kind != "tokenizer" else []
        except (OSError, ValueError, KeyError, TypeError):
            continue  # damaged: reported when a run is opened, not here
    if not found:
        raise UsageError(
            "No --model is given, and there is no run under runs/.",
            "Give --model RUN, or make one: beit pretrain sample --recipe tiny",
        )
    newest = max(found)[1]
    on_event(Note(f"Model: {newest}, the newest run."))
    return newest
