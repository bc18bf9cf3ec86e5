"""Resolves hard and symbolic links among the members of a tar, as unpacking it would."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterable, Iterator

from beitcli.data.sources.formats._tar_fields import Place
from beitcli.data.sources.formats._tar_headers import Member

_MOST_STEPS = 40  # from link to link, as in Linux


def resolve_links(members: Callable[[], Iterable[Member]]) -> dict[int, Place]:
    """Returns the places of the files that links lead to, by the headers of the links.

    A hard link leads to a member before it; a symbolic link to one anywhere in the same tar, also if tars were joined.
    Links to elsewhere, in circles or through folders that are links have none.

    Args:
        members: Reads all members from the first; it is called twice, so that only targets are held in memory.
    """
    needed: set[str] = set()
    for member in members():
        if member.kind in ("hard link", "symbolic link"):
            needed |= {_place_name(member.name), _target(member)}
    places: dict[int, Place] = {}
    for entries, links in _parts(members(), needed, places):
        for header, name in links.items():
            place = _followed(name, entries)
            if place is not None:
                places[header] = place
    return places


def _parts(
    members: Iterable[Member], needed: set[str], places: dict[int, Place]
) -> Iterator[tuple[dict[str, Place | str], dict[int, str]]]:
    """Yields, of each of the joined tars, the needed members and the names of its symbolic links, by their headers.

    A member is a place, or as a symbolic link the name of its target. Adds the places of hard links to `places`.
    """
    entries: dict[str, Place | str] = {}
    links: dict[int, str] = {}
    part = 0
    for member in members:
        if member.part != part:
            yield entries, links
            entries, links, part = {}, {}, member.part
        name = _place_name(member.name)
        if name not in needed:
            continue
        if member.kind == "file":
            entries[name] = member.place
        elif member.kind == "symbolic link":
            entries[name] = links[member.header] = _target(member)
        elif member.kind == "hard link":
            found = entries.get(_target(member))
            if isinstance(found, Place):
                entries[name] = places[member.header] = found
            elif found is not None:  # a second name of a symbolic link
                entries[name] = links[member.header] = found
            else:
                entries.pop(name, None)
    yield entries, links


def _followed(name: str, entries: dict[str, Place | str]) -> Place | None:
    for _ in range(_MOST_STEPS):
        found = entries.get(name)
        if not isinstance(found, str):
            return found
        name = found
    return None


def _place_name(name: str) -> str:
    return posixpath.normpath(name.lstrip("/"))


def _target(member: Member) -> str:
    """Returns the name of a link's target; empty for an absolute symbolic link, which leads out of the tar."""
    if member.kind == "hard link":
        return _place_name(member.link)
    if member.link.startswith("/"):
        return ""
    return posixpath.normpath(posixpath.join(posixpath.dirname(_place_name(member.name)), member.link))


def leads_to_folder(member: Member, folders: set[str]) -> bool:
    """Whether a symbolic link leads to one of the folders, given by `folders_of`."""
    return member.kind == "symbolic link" and _target(member) in folders


def folders_of(names: Iterable[str]) -> set[str]:
    """Returns the folders, and those above them, that hold the members."""
    folders: set[str] = set()
    for name in names:
        folder = posixpath.dirname(_place_name(name))
        while folder and folder not in folders:
            folders.add(folder)
            folder = posixpath.dirname(folder)
    return folders
