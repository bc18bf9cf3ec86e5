"""Ids of COCO's annotation files as other programs write them: floats, strings, and a category that is only a group."""

from __future__ import annotations

from typing import Any


def whole_number(value: Any) -> int | None:
    """Returns an integer, also one written as a float (1.0); None for anything else."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def identity_of(value: Any) -> int | str | None:
    """Returns an id: an integer, or a string as it is; None for anything else. '1' and 1 are two ids."""
    return value if isinstance(value, str) else whole_number(value)


def id_order(identity: int | str) -> tuple[bool, int, str]:
    """Sort key of ids: by number, also of strings that are numbers; then other strings by code point."""
    text = str(identity)
    is_number = text.removeprefix("-").isdecimal() and len(text) < 20
    return not is_number, int(text) if is_number else 0, text


def without_root(entries: list[Any], annotations: list[Any], path: str) -> tuple[list[Any], tuple[str, ...]]:
    """Leaves out the category that only names the group of the others, as Roboflow writes it.

    It has the id 0 and no supercategory of its own, other categories have its name as theirs, and no annotation has it.

    Returns:
        The other categories, and a remark about the one left out.
    """
    kept = [entry for entry in entries if not _is_root(entry, entries)]
    if len(kept) == len(entries):
        return entries, ()
    root = next(entry for entry in entries if _is_root(entry, entries))
    identity = identity_of(root["id"])
    if any(identity_of(each.get("category_id")) == identity for each in annotations if isinstance(each, dict)):
        return entries, ()
    return kept, (f"'{path}': category '{root['name']}' of id 0 groups the others and has no objects; it is no class.",)


def _is_root(entry: Any, entries: list[Any]) -> bool:
    if not isinstance(entry, dict) or identity_of(entry.get("id")) not in (0, "0"):
        return False
    groups = [each.get("supercategory") for each in entries if isinstance(each, dict) and each is not entry]
    name = entry.get("name")
    is_top = entry.get("supercategory") in (None, "", "none")
    return is_top and isinstance(name, str) and name in groups
