"""Settings of `cache`, and ages and sizes as a user writes them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from beitcli.config.fields import Unused, option
from beitcli.errors import UsageError

Kind = Literal["features", "streams", "downloads", "indexes", "arithmetic"]
KINDS: tuple[str, ...] = get_args(Kind)
_DIR = (Unused("action", "dir"),)
_NOT_PRUNE = (*_DIR, Unused("action", "list"))
_SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_BYTES = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_AGE = re.compile(r"(\d+(?:\.\d+)?)\s*(s|min|h|d|w)")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kMGT]?)B?")


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    command: ClassVar[str] = "cache"
    action: Literal["list", "prune", "dir"] = option(
        "list",
        "list: show what is in the cache folder; prune: delete some of it; dir: print its path.",
        argument=True,
        panel="Data",
    )
    kind: tuple[str, ...] = option(
        (),
        "Only these kinds: features of `eval` (features), data streamed from the hub (streams), weights and other "
        "downloads (downloads), lists of folders and tars (indexes), measured speeds of this processor (arithmetic).",
        panel="Options",
        choices=lambda: KINDS,
        unused=_DIR,
    )
    older_than: str | None = option(
        None, "Only entries that were not used for so long: 12h, 30d, 2w.", panel="Options", metavar="AGE", unused=_DIR
    )
    larger_than: str | None = option(
        None, "Only entries larger than this: 500M, 10G.", panel="Options", metavar="SIZE", unused=_DIR
    )
    all: bool = option(False, "prune: delete everything.", panel="Options", unused=_NOT_PRUNE)
    dry_run: bool = option(
        False, "prune: show what would be deleted, and delete nothing.", panel="Options", unused=_NOT_PRUNE
    )

    def __post_init__(self) -> None:
        filters = (self.kind, self.older_than, self.larger_than)
        if self.action == "prune" and not self.all and not any(filters):
            raise UsageError(
                "`beit cache prune` is not told what to remove.",
                "Add --older-than 30d, --larger-than 10G or --kind features, or --all.",
            )
        _ = self.seconds, self.bytes

    @property
    def seconds(self) -> float:
        """Age in seconds from which an entry counts; 0 for any."""
        return _parsed("--older-than", self.older_than, _AGE, _SECONDS, "30d or 12h")

    @property
    def bytes(self) -> float:
        """Size in bytes above which an entry counts; -1 for any."""
        return -1.0 if self.larger_than is None else _parsed("--larger-than", self.larger_than, _SIZE, _BYTES, "10G")


def _parsed(flag: str, text: str | None, form: re.Pattern[str], units: Mapping[str, float], example: str) -> float:
    if text is None:
        return 0.0
    found = form.fullmatch(text.strip())
    if not found:
        named = ", ".join(unit for unit in units if unit)
        raise UsageError(f"{flag} is '{text}'.", f"Give a number and a unit ({named}), as in {flag} {example}.")
    return float(found[1]) * units[found[2]]
