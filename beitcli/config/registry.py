"""Registries of plugins: each module of a package is an entry, and installed packages can add entries.

    HEADS = Registry("beitcli.heads.segmentation", "HEAD", "segmentation head")
    HEADS.names()          ("setr-pup", "upernet")    the modules of that package; imports none of them
    HEADS.load("upernet")  beitcli.heads.segmentation.upernet.HEAD

A new entry is one new file. Another package declares its module under the entry-point group of the same name:

    [project.entry-points."beitcli.heads.segmentation"]
    my-head = "my_package.my_head"
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import pkgutil
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import entry_points
from typing import Any

from beitcli.config.fields import suggestion
from beitcli.errors import UsageError


@dataclass(frozen=True)
class Registry:
    """A registry of entries of one kind. Modules whose name starts with `_`, and subpackages, are not entries.

    Attributes:
        package: Dotted name of the package, and of the entry-point group.
        attribute: Name of the variable that holds a module's entry.
        noun: Name of an entry in error messages.
    """

    package: str
    attribute: str
    noun: str

    @cached_property
    def _modules(self) -> dict[str, str]:
        """Dotted module names by entry name; our own precede and override those of other packages."""
        root, *inner = self.package.split(".")  # `find_spec` on the full name would import the packages between
        spec = importlib.util.find_spec(root)
        folders = (spec.submodule_search_locations if spec is not None else None) or []
        own = [
            module.name
            for module in pkgutil.iter_modules([os.path.join(folder, *inner) for folder in folders])
            if not module.ispkg and not module.name.startswith("_")
        ]
        installed = {point.name: point.value for point in entry_points(group=self.package)}
        return {name.replace("_", "-"): f"{self.package}.{name}" for name in sorted(own)} | {
            name: module for name, module in sorted(installed.items()) if name.replace("-", "_") not in own
        }

    def names(self) -> tuple[str, ...]:
        """Returns the names of the entries without importing them."""
        return tuple(self._modules)

    def load(self, name: str) -> Any:
        """Imports and returns an entry.

        Raises:
            UsageError: There is no such entry, or the module of another package cannot be loaded.
        """
        if name not in self._modules:
            hint = suggestion(name, self._modules) or f"One of: {', '.join(self._modules)}."
            raise UsageError(f"There is no {self.noun} '{name}'.", hint)
        dotted = self._modules[name]
        try:
            return getattr(importlib.import_module(dotted), self.attribute)
        except (ImportError, AttributeError) as error:
            if dotted.startswith("beitcli."):
                raise
            raise UsageError(
                f"{self.noun.capitalize()} '{name}' of module '{dotted}' cannot be loaded: {error}.",
                "Mend or uninstall the package that adds it.",
            ) from error

    def literal(self, name: str, attribute: str, default: Any = None) -> Any:
        """Returns the literal assigned to `attribute` at the top level of a module, parsed from its source.

        The module is not imported, because it may import torch, which takes seconds.

        Returns:
            The value; `default` if there is no such entry, source or assignment.
        """
        known = isinstance(name, str) and name in self._modules  # `name` may come from a checkpoint
        values = _assigned(self._modules[name], attribute) if known else []
        return ast.literal_eval(values[0]) if values else default

    @cached_property
    def written(self) -> list[dict[str, Any]]:
        """Keyword arguments of every `ATTRIBUTE = Kind(...)` that are literals, parsed from source without importing.

        Modules that cannot be read are left out; `load` reports the reason.
        """
        values = [value for dotted in self._modules.values() for value in _assigned(dotted, self.attribute)]
        return [{each.arg: _literal(each.value) for each in getattr(value, "keywords", [])} for value in values]

    def entries(self) -> dict[str, Any]:
        """Imports all entries and returns them by name."""
        return {name: self.load(name) for name in self._modules}


def _assigned(dotted: str, attribute: str) -> list[ast.expr]:
    """What a module assigns to `attribute` at its top level; empty where its source cannot be read."""
    try:
        spec = importlib.util.find_spec(dotted)
        tree = ast.parse(spec.loader.get_source(dotted))  # type: ignore[union-attr]
    except (ImportError, AttributeError, TypeError, SyntaxError):
        return []
    return [
        node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == attribute
    ]


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None
