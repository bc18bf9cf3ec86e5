"""`open_data` opens DATA references as one source of images."""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from beitcli.config.data_formats import DATA_FORMATS, data_formats, is_word
from beitcli.config.nearest import suggestion
from beitcli.data.decoding import heif
from beitcli.data.sources.base import Source
from beitcli.data.sources.class_folders import class_folders_hint
from beitcli.data.sources.concat import Concat
from beitcli.data.sources.files import look_alikes, sibling_names
from beitcli.data.sources.format import Format, Request
from beitcli.data.sources.pages import PagesSource
from beitcli.data.sources.splits import files_of_split
from beitcli.errors import DataError, UsageError

_INNERMOST_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"([0-9]+)\.\.([0-9]+)")


def open_data(references: Sequence[str], request: Request | None = None, **changes: Any) -> Source:
    """Opens DATA references and concatenates their images.

    Args:
        references: One or more; see "References" in the command line's contract.
        request: Options such as the split; the defaults if None.
        changes: Fields that replace those of `request`.

    Raises:
        DataError: Data is missing, unreadable, empty or of an unknown format, or the split or required labels are
            missing.
        UsageError: There is no reference, `-` is given twice, or a format refuses the reference.
    """
    if not references:
        raise UsageError("No DATA is given.", hint=_hint())
    if sum(reference == "-" for reference in references) > 1:
        raise UsageError("- is given twice, but stdin can be read once only.", hint="Give - once.")
    name = references[0] if len(references) == 1 else f"{references[0]} and {len(references) - 1} more"
    request = replace(request or Request(), name=name, **changes)
    found = [(_format_of(path), path) for reference in references for path in expand(reference)]
    sources: list[Source] = []
    # Consecutive paths of one format are opened together, so `*.tar` is the same whether the shell expands it or not.
    for kind, group in itertools.groupby(found, key=lambda pair: pair[0]):
        sources.extend(_open([path for _, path in group], kind, request))
    source = sources[0] if len(sources) == 1 else Concat(sources)
    if request.pages == "all":
        source = PagesSource(source, request.on_progress)
    request.set_intensity(source)
    if request.labelled:
        _require_classes(source, sources, least=2 if request.role == "train" else 1)
        if alike := look_alikes(source.classes or ()):
            pairs = ", ".join(f"{first!a} and {second!a}" for first, second in alike[:3])
            request.say(f"'{name}': {pairs} are classes apart; they differ in case, spaces or Unicode form only.")
    return source


@cache
def formats() -> tuple[Format, ...]:
    """Returns all formats, in the order in which they are tried for a path."""
    return tuple(sorted(DATA_FORMATS.entries().values(), key=lambda each: each.rank))


def _open(paths: list[str], kind: Format, request: Request) -> list[Source]:
    if kind.finds_splits:
        return kind.open(paths, request)
    paths, splits = files_of_split(request.name, paths, request, by_default=False)
    sources = kind.open(paths, request)
    for source in sources:
        source.splits = splits
    return sources


def _format_of(path: str) -> Format:
    named = [each for each in formats() if is_word(path, each.words)]
    for each in named or formats():
        if named or each.recognizes(path):
            return each
    is_heic = path.rpartition(".")[2].lower() in heif.ENDINGS and not heif.is_installed()
    raise DataError(f"'{path}' is of no format that is known here.", hint=heif.WAY_OUT if is_heic else _hint())


def _hint() -> str:
    return f"DATA is {data_formats()}."


def _label_layouts() -> str:
    return f"Labels come from {', from '.join(each.labels for each in formats() if each.labels)}."


def expand(reference: str) -> list[str]:
    """Expands braces, then globs; returns sorted unique paths.

    Raises:
        DataError: A path is missing, or nothing matches.
    """
    return sorted(set(matches(reference)))


def matches(reference: str) -> Iterator[str]:
    """Yields the paths of `expand` as they are found, some of them twice. Raises DataError as `expand` does."""
    if any(is_word(reference, each.words) for each in formats()) or os.path.exists(reference):
        yield reference
        return
    for path in _expand_braces(os.path.expanduser(reference)):
        is_pattern, found = glob.has_magic(path), False
        for match in glob.iglob(path, recursive=True) if is_pattern else ():
            found = True
            yield match
        if not found and not os.path.exists(path):
            raise _missing(path, is_pattern=is_pattern)
        if not found:
            yield path


def _expand_braces(pattern: str) -> Iterator[str]:
    """Expands `{a,b}` and `{000..004}`, the innermost braces first; leaves other braces unchanged."""
    for braces in _INNERMOST_BRACES.finditer(pattern):
        bounds = _RANGE.fullmatch(braces[1])
        if bounds:
            first, last = sorted((int(bounds[1]), int(bounds[2])))
            width = len(bounds[1])
            choices: Iterable[str] = (str(number).zfill(width) for number in range(first, last + 1))
        elif "," in braces[1]:
            choices = braces[1].split(",")
        else:
            continue
        for choice in choices:
            yield from _expand_braces(pattern[: braces.start()] + choice + pattern[braces.end() :])
        return
    yield pattern


def _missing(path: str, *, is_pattern: bool) -> DataError:
    if is_pattern:
        return DataError(f"No file matches '{path}'.", hint="Check the pattern, and quote it against the shell.")
    parent, name = os.path.split(path.rstrip("/"))
    while parent and not os.path.isdir(parent):
        parent, name = os.path.split(parent)
    words = [] if parent else [word for each in formats() for word in each.words]
    meant = suggestion(name, sibling_names(parent) + words, prefix=os.path.join(parent, ""))
    return DataError(f"'{path}' does not exist.", hint=meant or _hint())


def _require_classes(source: Source, parts: Sequence[Source], least: int) -> None:
    for part in parts:
        if part.classes is None:
            hint = f"{class_folders_hint(part.name)} {_label_layouts()}".strip()
            raise DataError(f"'{part.name}' has no labels, and they are needed here.", hint=hint)
    if source.classes is not None and len(source.classes) < least:
        raise DataError(
            f"'{source.name}' has one class only, '{source.classes[0]}'; at least two are needed.",
            hint=_label_layouts(),
        )
