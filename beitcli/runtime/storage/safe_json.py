"""Reads JSON that others wrote; needs nothing but the standard library."""

from __future__ import annotations

import json
from typing import Any


def parse_json(text: str | bytes) -> Any:
    """What the text says.

    Raises:
        ValueError: It is no JSON, no text, or nested too deeply, for which `json` has a RecursionError.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
