"""gpu.json and gpu.md, each replaced as a whole (stdlib only)."""

from __future__ import annotations

import json
import os
import traceback
from pathlib import Path
from typing import Any

from gpu_steps.goals import verdicts
from gpu_steps.schedule import STEPS

_LONGEST = 12  # numbers of a list that are shown
Rows = list[dict[str, Any]]


def write_report(document: dict[str, Any], out: Path) -> None:
    """Rewrites both files; Markdown that cannot be made is the error instead."""
    document["goals"] = verdicts(document)
    replace_file(out / "gpu.json", json.dumps(document, indent=1, allow_nan=False) + "\n")
    try:
        text = render(document)
    except Exception:
        text = f"gpu.json is whole, but this page could not be made:\n\n```\n{traceback.format_exc()}```\n"
    replace_file(out / "gpu.md", text)


def replace_file(path: Path, text: str) -> None:
    """The file is always the former one or this one, whole."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def render(document: dict[str, Any], *, table_only: bool = False) -> str:
    """The page, whose table of goals stands before the steps' numbers and again at the end; or that table alone."""
    goals = "## Goals\n\n" + table(verdicts(document), ["goal", "measured", "held"])
    if table_only:
        return goals
    return "\n".join([header(document), overview(document), goals, *map(str, sections(document)), goals])


def header(document: dict[str, Any]) -> str:
    results = document["steps"].get("environment", {}).get("results", {})
    machine, torch = results.get("machine", {}), results.get("torch", {})
    name = results.get("nvidia-smi", {}).get("name") or machine.get("gpu") or document["device"]
    lines = ["# GPU run", "", f"{name}, {machine.get('cores', '?')} cores, torch {torch.get('version', '?')}, "]
    lines[-1] += f"begun {document['started']}, {document['seconds']:.0f} s of {document['deadline']:.0f} s"
    lines[-1] += ", small sizes: no speed here says anything." if document["small"] else "."
    if not document["complete"]:
        lines += ["", "**Not complete**: steps that are not reached stand so."]
    missing = results.get("packages", {}).get("missing")
    if missing:
        lines += ["", f"Packages that are missing: {', '.join(missing)}."]
    for warning in results.get("warnings", []):
        lines += ["", f"**Warning**: {warning}"]
    return "\n".join(lines) + "\n"


def overview(document: dict[str, Any]) -> str:
    rows: Rows = []
    for step in STEPS:
        entry = document["steps"].get(step.name, {})
        notes = "; ".join(f"{part}: {why}" for part, why in entry.get("errors", {}).items())
        if not notes and entry.get("last_lines"):
            notes = next((line for line in reversed(entry["last_lines"]) if line.strip()), "")
        seconds = entry.get("seconds", "")
        rows.append({"step": step.name, "status": entry.get("status", ""), "seconds": seconds, "note": notes[:300]})
    return "## Steps\n\n" + table(rows, ["step", "status", "seconds", "note"])


def sections(document: dict[str, Any]) -> list[str]:
    """A step each: its single values, then its tables; what has mostly the same rows stands side by side."""
    parts = []
    for step in STEPS:
        entry = document["steps"].get(step.name, {})
        results = {name: each for name, each in entry.get("results", {}).items() if name != "finished"}
        if not results and not entry.get("last_lines"):
            continue
        text = f"## {step.title} (`{step.name}`)\n"
        single = {name: each for name, each in results.items() if not is_nested(each)}
        if single:
            text += "\n" + comparison_table({"value": single})
        columns: dict[str, dict[str, Any]] = {}
        tables: dict[str, Any] = {}
        for name, each in results.items():
            if is_nested(each):
                columns[name] = flattened(each, tables, name)
        for group in alike({name: its for name, its in columns.items() if its}):
            text += "\n" + comparison_table(group)
        for name, each in tables.items():
            text += f"\n{name}:\n\n" + tabular(each)
        if entry.get("last_lines"):
            text += "\n```\n" + "\n".join(line[:300] for line in entry["last_lines"]) + "\n```\n"
        parts.append(text)
    return parts


def is_spread(each: Any) -> bool:
    return isinstance(each, dict) and set(each) == {"median", "low", "high", "n"}


def is_nested(each: Any) -> bool:
    """What is more than one cell."""
    if isinstance(each, list):
        return any(isinstance(one, dict) for one in each)
    return isinstance(each, dict) and not is_spread(each)


def is_tabular(each: Any) -> bool:
    """What is shown as a table of its own: rows, or named rows."""
    rows = list(each.values()) if isinstance(each, dict) and not is_spread(each) else each
    if not isinstance(rows, list) or len(rows) < 2 or not all(isinstance(row, dict) and row for row in rows):
        return False
    same = isinstance(each, list) or len({tuple(row) for row in rows}) == 1
    return same and not any(is_spread(row) or any(map(is_nested, row.values())) for row in rows)


def tabular(each: Any) -> str:
    rows = [{"": name} | row for name, row in each.items()] if isinstance(each, dict) else each
    return table(rows, list(dict.fromkeys(column for row in rows for column in row)))


def flattened(each: Any, tables: dict[str, Any], path: str, prefix: str = "") -> dict[str, Any]:
    """Cells by what they are; what is a table of its own is put into `tables` instead."""
    if is_tabular(each):
        tables[path] = each
        return {}
    cells: dict[str, Any] = {}
    named = each if isinstance(each, dict) else {str(number): one for number, one in enumerate(each, start=1)}
    for name, inner in named.items():
        if is_nested(inner):
            cells |= flattened(inner, tables, f"{path} / {name}", f"{prefix}{name} / ")
        else:
            cells[prefix + name] = inner
    return cells


def alike(columns: dict[str, dict[str, Any]]) -> list[dict[str, dict[str, Any]]]:
    """Columns of one table each: those that share half of the first one's rows."""
    groups: list[dict[str, dict[str, Any]]] = []
    for name, cells in columns.items():
        for group in groups:
            first = next(iter(group.values()))
            if 2 * len(first.keys() & cells.keys()) >= max(len(first), len(cells)):
                group[name] = cells
                break
        else:
            groups.append({name: cells})
    return groups


def comparison_table(columns: dict[str, dict[str, Any]]) -> str:
    what = dict.fromkeys(name for cells in columns.values() for name in cells)
    rows = [{"what": name} | {column: cells.get(name) for column, cells in columns.items()} for name in what]
    return table(rows, ["what", *columns])


def table(rows: Rows, columns: list[str]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    for row in rows:
        lines.append("| " + " | ".join(cell(row.get(column, "")) for column in columns) + " |")
    return "\n".join(lines) + "\n"


def cell(each: Any) -> str:
    """A value as a person reads it."""
    if is_spread(each):
        return f"{cell(each['median'])} ({cell(each['low'])} to {cell(each['high'])}, n={each['n']})"
    if isinstance(each, bool) or each is None:
        return {True: "yes", False: "no", None: ""}[each]
    if isinstance(each, float):
        return f"{each:,.0f}" if abs(each) >= 1000 else f"{each:.4g}"
    if isinstance(each, int):
        return f"{each:,}"
    if isinstance(each, list):
        shown = ", ".join(map(cell, each[:_LONGEST]))
        return shown + (f", ... ({len(each)} in all, the last {cell(each[-1])})" if len(each) > _LONGEST else "")
    return str(each).replace("|", "\\|").replace("\n", " ")
