"""Tells a MODEL of random weights from others (stdlib only)."""

from __future__ import annotations

from typing import Any

RANDOM = "random"


def without_weights(value: Any) -> Any:
    """Returns `random` for a MODEL of random weights, such as `timm/NAME@random,depth=4`; other values as they are."""
    return RANDOM if isinstance(value, str) and value.rpartition("@")[2].partition(",")[0] == RANDOM else value
