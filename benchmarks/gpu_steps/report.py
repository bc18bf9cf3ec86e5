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
    """The page; or its last table alone."""
    goals = "## Goals\n\n" + table(verdicts(document), ["goal", "measured", "held"])
    if table_only:
        return goals
    return "\n".join([header(document), overview(document), *map(str, sections(document)), goals])


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
    parts = []
    for step in STEPS:
        entry = document["steps"].get(step.name, {})
        results = {name: each for name, each in entry.get("results", {}).items() if name != "finished"}
        if not results and not entry.get("last_lines"):
            continue
        text = f"## {step.title} (`{step.name}`)\n"
        scalars = {name: each for name, each in results.items() if not is_tabular(each)}
        if scalars:
            text += "\n" + table([{"what": n, "value": each} for n, each in flattened(scalars)], ["what", "value"])
        for name, each in results.items():
            if is_tabular(each):
                text += f"\n{name}:\n\n" + tabular(each)
        if entry.get("last_lines"):
            text += "\n```\n" + "\n".join(line[:300] for line in entry["last_lines"]) + "\n```\n"
        parts.append(text)
    return parts


def is_spread(each: Any) -> bool:
    return isinstance(each, dict) and set(each) == {"median", "low", "high", "n"}


def is_row(each: Any) -> bool:
    """A dict of plain values, spreads among them."""
    return isinstance(each, dict) and bool(each) and not is_spread(each) and not any(map(is_nested, each.values()))


def is_nested(each: Any) -> bool:
    return isinstance(each, list) or (isinstance(each, dict) and not is_spread(each))


def is_tabular(each: Any) -> bool:
    """What is shown as a table of its own: rows, or named rows."""
    rows = list(each.values()) if isinstance(each, dict) and not is_spread(each) else each
    return isinstance(rows, list) and len(rows) > 1 and all(map(is_row, rows))


def tabular(each: Any) -> str:
    rows = [{"": name} | row for name, row in each.items()] if isinstance(each, dict) else each
    return table(rows, list(dict.fromkeys(column for row in rows for column in row)))


def flattened(results: Any, prefix: str = "") -> Rows | list[tuple[str, Any]]:
    """(path, plain value) of everything inside."""
    found: list[tuple[str, Any]] = []
    for name, each in results.items():
        path = f"{prefix}{name}"
        if isinstance(each, dict) and not is_spread(each):
            found += flattened(each, f"{path} / ")  # type: ignore[arg-type]
        elif isinstance(each, list) and each and all(map(is_row, each)):
            for number, row in enumerate(each):
                found += flattened(row, f"{path} {number + 1} / ")  # type: ignore[arg-type]
        else:
            found.append((path, each))
    return found


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
