"""`beit cache`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from beitcli.cli.command_table import Declaration
from beitcli.cli.console import CommandConsole
from beitcli.config.cache import CacheConfig
from beitcli.runtime.metric_text import size_text
from beitcli.runtime.storage.safe_json import dump_json

if TYPE_CHECKING:
    from beitcli.engine.cache import Entry, KindTotal


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
            console.print_json(cache)
        elif cache.entries:
            console.print_rows([_row(each) for each in cache.entries])
            console.print_rows([_total(kind, each) for kind, each in cache.kinds.items()])
        if not console.wants_json:
            console.print_line(f"{size_text(cache.bytes)} in '{cache.folder}'")
        return
    pruned = prune_cache(config)
    if console.wants_json:
        console.print_json(asdict(pruned))
        return
    if pruned.removed:
        console.print_rows([_row(each) for each in pruned.removed])
    would = "Would free" if config.dry_run else "Freed"
    kept = f"; {len(pruned.in_use)} in use, left alone" if pruned.in_use else ""
    console.print_line(f"{would} {size_text(pruned.freed)} in '{pruned.folder}'{kept}")


def _total(kind: str, total: KindTotal) -> dict[str, Any]:
    return {"kind": kind, "entries": total.entries, "size": size_text(total.bytes)}


def _row(entry: Entry) -> dict[str, Any]:
    from beitcli.engine.runs import age

    return {
        "kind": entry.kind,
        "entry": entry.name,
        "size": size_text(entry.bytes),
        "used": age(entry.used),
        "of": entry.of,
    }


DECLARATION = Declaration(
    config=CacheConfig,
    examples=(
        "beit cache list --kind downloads",
        "beit cache prune --older-than 30d",
        "beit cache prune --kind features --larger-than 1G --dry-run",
        "beit cache dir",
    ),
    run=_run,
)
