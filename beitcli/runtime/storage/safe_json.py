"""Parses untrusted JSON, and writes strict JSON (stdlib only)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any


def parse_json(text: str | bytes) -> Any:
    """Parses JSON.

    Raises:
        ValueError: Invalid JSON or text, or nested too deeply, for which `json.loads` raises RecursionError.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def dump_json(value: Any, **how: Any) -> str:
    """Formats JSON as the standard has it: a number that is not finite is null, where `json.dumps` writes NaN.

    Args:
        how: Other arguments of `json.dumps`.
    """
    try:
        return json.dumps(value, allow_nan=False, **how)
    except ValueError:
        return json.dumps(_finite(value), allow_nan=False, **how)


def dump_rows(rows: Iterable[Any]) -> str:
    """Formats an array with a line for each element: one JSON document that `head` and `grep` can cut too."""
    lines = ",\n".join(dump_json(row) for row in rows)
    return f"[\n{lines}\n]" if lines else "[]"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list | tuple) else value
