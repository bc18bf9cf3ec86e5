"""Reads and validates trainer.json of a checkpoint."""

from __future__ import annotations

from typing import Any

from beitcli.errors import StorageError
from beitcli.runtime.storage.checkpoint import CheckpointFolder, step_of
from beitcli.runtime.weight_files.file_sniffing import one_line

_LARGEST = 1e300


def stored_progress(checkpoint: CheckpointFolder) -> dict[str, Any]:
    """Returns the contents of trainer.json.

    Raises:
        StorageError: They are not what a run writes, although the hash is correct.
    """
    document = checkpoint.trainer
    metrics = document.get("figures")
    fits = {
        "step": _is_number(document.get("step"), int) and document["step"] == step_of(checkpoint.path),
        "seconds": _is_number(document.get("seconds"), int, float) and document["seconds"] >= 0,
        "measuring_seconds": _is_number(document.get("measuring_seconds", 0), int, float),
        "images_per_second": _is_number(document.get("images_per_second"), int, float),
        "figures": "figures" in document and (metrics is None or _are_metrics(metrics)),
        "data": isinstance(document.get("data"), str),
        "bad": _are_records(document.get("bad")),
        "left_out": _are_records(document.get("left_out", [])),
        "micro_batch": _is_number(document.get("micro_batch", 0), int) and document.get("micro_batch", 0) >= 0,
    }
    wrong = [name for name, fit in fits.items() if not fit]
    if wrong:
        raise StorageError(
            f"'{checkpoint.path / 'trainer.json'}' has {one_line(repr(document.get(wrong[0])))} for {wrong[0]}.",
            "Take that checkpoint away, so that the one before it is taken.",
        )
    return document


def _is_number(value: Any, *kinds: type) -> bool:
    """Whether it is such a number, finite and of a size that any float can hold."""
    is_kind = isinstance(value, kinds) and isinstance(value, int | float) and not isinstance(value, bool)
    return is_kind and abs(value) < _LARGEST


def _are_metrics(metrics: Any) -> bool:
    return isinstance(metrics, dict) and all(v is None or _is_number(v, int, float) for v in metrics.values())


def _are_records(records: Any) -> bool:
    """Whether they are (index, path, reason) of unreadable images."""
    return isinstance(records, list) and all(
        isinstance(record, list) and [type(each) for each in record] == [int, str, str] for record in records
    )
