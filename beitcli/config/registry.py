"""Registries of plugins: each module of a package is an entry, and installed packages can add entries.

    HEADS = Registry("beitcli.heads.segmentation", "HEAD", "segmentation head")
    HEADS.names()          ("setr-pup", "upernet")    the modules of that package; imports none of them
    HEADS.load("upernet")  beitcli.heads.segmentation.upernet.HEAD

A new entry is one new file. Another package declares its module under the entry-point group of the same name:

    [project.entry-points."beitcli.heads.segmentation"]
    my-head = "my_package.my_head"           or "my_package.heads:MyHead"

One that cannot be loaded is an error of `load` by its name only: `entries` leaves it out.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import pkgutil
import re
import sys
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property, reduce
from importlib.machinery import PathFinder
from typing import TYPE_CHECKING, Any, NamedTuple

from beitcli.config.nearest import suggestion
from beitcli.errors import UsageError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint


class _Own(NamedTuple):
    """An entry of this program, with the attributes of an `EntryPoint`."""

    name: str
    module: str
    attr: str = ""

    @property
    def value(self) -> str:
        return self.module


@dataclass(frozen=True)
class Registry:
    """A registry of entries of one kind. Modules whose name starts with `_`, and subpackages, are not entries.

    Attributes:
        package: Dotted name of the package, and of the entry-point group.
        attribute: Name of the variable that holds a module's entry; an entry point `module:attr` names its own.
        noun: Name of an entry in error messages.
    """

    package: str
    attribute: str
    noun: str

    @cached_property
    def _points(self) -> dict[str, _Own | EntryPoint]:
        """Entry points by name; our own precede and override those of other packages."""
        root, *inner = self.package.split(".")  # `find_spec` on the full name would import the packages between
        spec = importlib.util.find_spec(root)
        folders = (spec.submodule_search_locations if spec is not None else None) or []
        own = [
            module.name
            for module in pkgutil.iter_modules([os.path.join(folder, *inner) for folder in folders])
            if not module.ispkg and not module.name.startswith("_")
        ]
        points: dict[str, _Own | EntryPoint] = {
            name.replace("_", "-"): _Own(name.replace("_", "-"), f"{self.package}.{name}") for name in sorted(own)
        }
        path = tuple(sys.path)
        declared = _declarations(path)
        may_be_there = declared is None or self.package.encode() in declared
        installed: list[EntryPoint] = list(_installed(path).select(group=self.package)) if may_be_there else []
        for point in sorted(installed, key=lambda point: point.name):
            if point.name.replace("-", "_") not in own:
                points[point.name] = point
        return points

    def names(self) -> tuple[str, ...]:
        """Returns the names of the entries without importing them."""
        return tuple(self._points)

    def is_ours(self, name: str) -> bool:
        """Whether the entry is part of this program, not of another package."""
        return self._points[name].value.startswith("beitcli.")

    def load(self, name: str) -> Any:
        """Imports and returns an entry.

        Raises:
            UsageError: There is no such entry, or that of another package cannot be loaded.
        """
        if name not in self._points:
            hint = suggestion(name, self._points) or f"One of: {', '.join(self._points)}."
            raise UsageError(f"There is no {self.noun} '{name}'.", hint)
        point = self._points[name]
        try:
            attributes = (point.attr or self.attribute).split(".")
            return reduce(getattr, attributes, importlib.import_module(point.module))
        except (Exception, SystemExit) as error:  # another package's module may raise anything
            if self.is_ours(name):
                raise
            raise self.unusable(name, f"{type(error).__name__}: {error}") from error

    def unusable(self, name: str, reason: str) -> UsageError:
        """The error for an entry of another package."""
        return UsageError(
            f"{self.noun.capitalize()} '{name}' of module '{self._points[name].value}' cannot be loaded: {reason}.",
            "Mend or uninstall the package that adds it.",
        )

    def literal(self, name: str, attribute: str, default: Any = None) -> Any:
        """Returns the literal assigned to `attribute` at the top level of a module, parsed from its source.

        The module is not imported, because it may import torch, which takes seconds.

        Returns:
            The value; `default` if there is no such entry, source or assignment, or it is no literal.
        """
        is_registered = isinstance(name, str) and name in self._points  # `name` may come from a checkpoint
        values = _assigned(self._points[name], attribute) if is_registered else []
        return _literal(values[0], default) if values else default

    @cached_property
    def written(self) -> list[dict[str, Any]]:
        """Keyword arguments of every `ATTRIBUTE = Kind(...)` that are literals, parsed from source without importing.

        Modules that cannot be read are left out; `load` reports the reason.
        """
        values = [value for point in self._points.values() for value in _assigned(point, self.attribute, named=True)]
        return [{each.arg: _literal(each.value) for each in getattr(value, "keywords", [])} for value in values]

    def entries(self) -> dict[str, Any]:
        """Imports all entries and returns them by name, without those of other packages that cannot be loaded."""
        found = {}
        for name in self._points:
            with suppress(UsageError):
                found[name] = self.load(name)
        return found


@cache
def _installed(path: tuple[str, ...]) -> Any:
    """The entry points of all packages, read once for all registries; `path` is `sys.path`, where they are found."""
    from importlib.metadata import entry_points

    return entry_points()


@cache
def _declarations(path: tuple[str, ...]) -> bytes | None:
    """The files of entry points in the folders of `sys.path`, joined; None if it holds more than folders.

    Where no group of ours is in them, importlib.metadata need not be imported, which takes longer than reading them.
    """
    texts = []
    for folder in path:
        if folder.endswith(".egg"):
            return None
        try:
            with os.scandir(folder or ".") as entries:
                names = [entry.name for entry in entries if entry.name.endswith((".dist-info", ".egg-info"))]
        except FileNotFoundError:
            continue
        except OSError:
            return None
        for name in names:
            with suppress(OSError), open(os.path.join(folder, name, "entry_points.txt"), "rb") as file:
                texts.append(file.read())
    return b"\n".join(texts)


def _assigned(point: _Own | EntryPoint, attribute: str, *, named: bool = False) -> list[ast.expr]:
    """What a module assigns to a variable at its top level; empty where its source cannot be read.

    Args:
        named: Whether the attribute of the entry point, if it has one, replaces `attribute`.
    """
    try:
        attribute = (named and point.attr) or attribute
        source = _source(point.module)
        tree = (_tail(source, attribute) if isinstance(point, _Own) else None) or ast.parse(source)
    except Exception:  # another package's finder and source; `load` reports the reason
        return []
    return [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None
        if ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.target) == attribute
    ]


def _tail(source: str, name: str) -> ast.Module | None:
    """Parses a module from its first line that begins with a name: in a tenth of the time, as these stand at its end.

    Returns:
        None if no statement begins with that line.
    """
    found = re.search(rf"^{re.escape(name)}\b", source, re.MULTILINE)
    with suppress(SyntaxError):
        return ast.parse(source[found.start() :] if found else "")
    return None


def _source(dotted: str) -> str:
    """Returns the source of a module. `find_spec` on the full name would import the packages above it."""
    root, *inner = dotted.split(".")
    spec: Any = importlib.util.find_spec(root)
    for name in inner:
        spec = PathFinder.find_spec(name, spec.submodule_search_locations)
    source: str = spec.loader.get_source(spec.name)
    return source


def _literal(node: ast.expr, default: Any = None) -> Any:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, RecursionError):
        return default
