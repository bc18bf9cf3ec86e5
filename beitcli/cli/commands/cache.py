"""`beit cache`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from beitcli.cli.command_table import Declaration
from beitcli.cli.console import CommandConsole
from beitcli.config.cache import CacheConfig
from beitcli.runtime.metric_text import size_text
from beitcli.runtime.storage.safe_json import dump_json

if TYPE_CHECKING:
    from beitcli.engine.cache import Entry, KindTotal

_HASH = re.compile(r"(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])")


def _run(config: CacheConfig, console: CommandConsole) -> None:
    from beitcli.engine.cache import list_cache, prune_cache
    from beitcli.runtime.storage.cache_folder import cache_folder

    if config.action == "dir":
        folder = str(cache_folder())
        console.print_line(dump_json({"folder": folder}) if console.as_json else folder)
        return
    if config.action == "list":
        cache = list_cache(config)
        if console.wants_json:
            console.print_whole_result(cache)
        elif cache.entries:
            console.print_rows(_rows(cache.entries), whole="entry")
            console.print_rows([_total(kind, each) for kind, each in cache.kinds.items()])
        if not console.wants_json:
            console.print_line(f"{size_text(cache.bytes)} in '{cache.folder}'")
        return
    pruned = prune_cache(config)
    if console.wants_json:
        console.print_whole_result(asdict(pruned))
        return
    if pruned.removed:
        console.print_rows(_rows(pruned.removed), whole="entry")
    would = "Would free" if config.dry_run else "Freed"
    kept = f"; {len(pruned.in_use)} in use, left alone" if pruned.in_use else ""
    console.print_line(f"{would} {size_text(pruned.freed)} in '{pruned.folder}'{kept}")


def _total(kind: str, total: KindTotal) -> dict[str, Any]:
    return {"kind": kind, "entries": total.entries, "size": size_text(total.bytes)}


def _rows(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Returns a row an entry; without `of` where nothing is known. JSON has the whole names."""
    from beitcli.engine.runs import age

    names = _shortened([each.name for each in entries])
    rows = [
        {"kind": each.kind, "entry": name, "size": size_text(each.bytes), "used": age(each.used), "of": each.of}
        for each, name in zip(entries, names, strict=True)
    ]
    if not any(each.of for each in entries):
        for row in rows:
            del row["of"]
    return rows


def _shortened(names: Sequence[str]) -> list[str]:
    """Returns names with the first characters of their hashes, as many as tell all of them apart, 8 at least."""
    for length in range(8, 32):
        short = [_HASH.sub(lambda found, length=length: found[0][:length], name) for name in names]  # type: ignore[misc]
        if len(set(short)) == len(names):
            return short
    return list(names)


DECLARATION = Declaration(
    config=CacheConfig,
    examples=(
        "beit cache list --kind downloads",
        "beit cache prune --older-than 30d",
        "beit cache prune --kind features --larger-than 1G --dry-run",
        "beit cache dir",
    ),
    run=_run,
    json_of="list and prune",
)
