"""DATA references to sources: `open_data`. A new format is a new file and a line in `_OPENERS`."""

from __future__ import annotations

import difflib
import glob
import itertools
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from beitcli.data.sources.base import OnProgress, Source
from beitcli.data.sources.concat import Concat
from beitcli.data.sources.files import is_image_name, sibling_names
from beitcli.data.sources.formats.folder import open_folder
from beitcli.data.sources.formats.folder_listing import list_images
from beitcli.data.sources.formats.hub_parquet import open_hub
from beitcli.data.sources.formats.list_file import ListSource, open_list, open_stdin
from beitcli.data.sources.formats.parquet import ParquetSource
from beitcli.data.sources.formats.sample import SampleSource
from beitcli.data.sources.formats.tar import TarSource
from beitcli.data.sources.splits import files_of_split
from beitcli.data.sources.subset import Subset
from beitcli.errors import DataError, UsageError

__all__ = ["Concat", "Source", "Subset", "open_data"]

_FORMATS = (
    "DATA is a folder, .tar shards, .parquet files, hf://datasets/OWNER/NAME, a .txt or .tsv list, an image, "
    "- (paths on stdin) or sample."
)
_LABEL_LAYOUTS = (
    "Labels come from FOLDER/CLASS/image.jpg, from tar members CLASS/image.jpg or KEY.cls, "
    "from list lines 'path<TAB>label', "
    "or from a column label of parquet."
)
_TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_INNERMOST_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"([0-9]+)\.\.([0-9]+)")


@dataclass(frozen=True, kw_only=True)
class _Request:
    split: str | None
    role: str
    labelled: bool
    sample_size: int
    stdin: BinaryIO | None
    nul_separated: bool
    on_progress: OnProgress | None


def open_data(
    references: Sequence[str],
    *,
    split: str | None = None,
    role: str = "train",
    labelled: bool = False,
    sample_size: int = 64,
    stdin: BinaryIO | None = None,
    nul_separated: bool = False,
    on_progress: OnProgress | None = None,
) -> Source:
    """The images that DATA references name, one after another.

    Args:
        references: At least one; see "References" in the command line's contract.
        split: `--split`; None for the role's own (`train` or `val`) where the data has splits.
        role: "train" or "eval".
        labelled: Whether every image must have a label, of two classes or more.
        sample_size: Pixels a side of the images of `sample`.
        stdin: Where `-` reads paths; None for the process's own.
        nul_separated: `-0`: those paths end in NUL, not in newline.
        on_progress: Told how far looking through large data, or downloading it, is.

    Raises:
        DataError: missing, unreadable or empty data, an absent split, or labels that are needed and not there.
        UsageError: no reference, `-` twice, or a format that is not supported.
    """
    if not references:
        raise UsageError("No DATA is given.", hint=_FORMATS)
    if sum(reference == "-" for reference in references) > 1:
        raise UsageError("- is given twice, but stdin can be read once only.", hint="Give - once.")
    request = _Request(
        split=split,
        role=role,
        labelled=labelled,
        sample_size=sample_size,
        stdin=stdin,
        nul_separated=nul_separated,
        on_progress=on_progress,
    )
    found = [(_kind(path), path) for reference in references for path in _expand(reference)]
    name = references[0] if len(references) == 1 else f"{references[0]} and {len(references) - 1} more"
    sources: list[Source] = []
    for kind, group in itertools.groupby(found, key=lambda pair: pair[0]):
        sources.extend(_OPENERS[kind]([path for _, path in group], name, request))
    source = sources[0] if len(sources) == 1 else Concat(sources)
    if labelled:
        _require_classes(source, sources, least=2 if role == "train" else 1)
    return source


def _choice(request: _Request) -> dict[str, Any]:
    """What a source with splits and labels of its own is told."""
    names = ("split", "role", "labelled", "on_progress")
    return {name: getattr(request, name) for name in names}


def _open_shards(paths: list[str], name: str, request: _Request) -> list[Source]:
    return [TarSource(paths, name=name, **_choice(request))]


def _open_images(paths: list[str], name: str, request: _Request) -> list[Source]:
    return [ListSource([os.fsencode(path) for path in paths], name=name)]


def _open_folders(paths: list[str], name: str, request: _Request) -> list[Source]:
    return [_open_one_folder(path, request) for path in paths]


def _open_one_folder(path: str, request: _Request) -> Source:
    try:
        return open_folder(path, **_choice(request))
    except DataError:
        files = sorted(glob.glob("**/*.parquet", root_dir=path, recursive=True))
        if not files or len(list_images(os.fsencode(path))[0]):
            raise
        chosen = files_of_split(path, files, request.split, request.role)
        return _open_rows([os.path.join(path, file) for file in chosen], path, request)


def _open_parquet(paths: list[str], name: str, request: _Request) -> list[Source]:
    chosen = files_of_split(name, paths, request.split, request.role) if request.split else paths
    return [_open_rows(chosen, name, request)]


def _open_hub(paths: list[str], name: str, request: _Request) -> list[Source]:
    return [open_hub(path, **_choice(request)) for path in paths]


def _open_rows(files: list[str], name: str, request: _Request) -> Source:
    return ParquetSource(files, name=name, labelled=request.labelled, on_progress=request.on_progress)


def _open_lists(paths: list[str], name: str, request: _Request) -> list[Source]:
    return [open_list(path, labelled=request.labelled) for path in paths]


def _open_stdin(paths: list[str], name: str, request: _Request) -> list[Source]:
    if request.stdin is None and sys.stdin is None:
        raise DataError("No paths on stdin: it is closed.", hint="Pipe paths in, or name the images.")
    return [open_stdin(request.stdin or sys.stdin.buffer, nul_separated=request.nul_separated)]


def _open_sample(paths: list[str], name: str, request: _Request) -> list[Source]:
    split = request.split or {"train": "train", "eval": "val"}[request.role]
    return [SampleSource(split=split, size=request.sample_size) for _ in paths]


# Neighbours of one kind are opened together, so that `*.tar` means the same whether the shell expands it or not.
_OPENERS: dict[str, Callable[[list[str], str, _Request], list[Source]]] = {
    "folder": _open_folders,
    "tar": _open_shards,
    "parquet": _open_parquet,
    "hub": _open_hub,
    "list": _open_lists,
    "image": _open_images,
    "stdin": _open_stdin,
    "sample": _open_sample,
}


def _kind(path: str) -> str:
    """The key into `_OPENERS`."""
    lower = path.lower()
    if path in ("-", "sample"):
        return {"-": "stdin"}.get(path, path)
    if lower.startswith("hf://"):
        return "hub"
    if os.path.isdir(path):
        return "folder"
    if lower.endswith(_TAR_SUFFIXES):
        return "tar"
    if lower.endswith(".parquet"):
        return "parquet"
    if is_image_name(os.fsencode(path)):
        return "image"
    if lower.endswith((".txt", ".tsv")) or not os.path.isfile(path):  # such as the pipe of `<(find ...)`
        return "list"
    raise DataError(f"'{path}' is of no format that is known here.", hint=_FORMATS)


def _expand(reference: str) -> list[str]:
    """The paths that a reference stands for: braces, then globs, sorted, each once.

    Raises:
        DataError: a path is missing, or nothing matches.
    """
    if reference in ("-", "sample") or reference.startswith("hf://"):
        return [reference]
    if os.path.exists(reference):
        return [reference]
    paths: list[str] = []
    for path in _expand_braces(os.path.expanduser(reference)):
        matches = glob.glob(path, recursive=True) if glob.has_magic(path) else []
        if not matches and not os.path.exists(path):
            raise _missing(path, is_pattern=glob.has_magic(path))
        paths.extend(matches or [path])
    return sorted(set(paths))


def _expand_braces(pattern: str) -> Iterator[str]:
    """`{a,b}` and `{000..004}` written out, the innermost braces first; other braces stay as they are."""
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
    words = [] if parent else ["sample"]
    close = difflib.get_close_matches(name, sibling_names(parent) + words, n=1)
    suggestion = f"Did you mean '{os.path.join(parent, close[0])}'?" if close else _FORMATS
    return DataError(f"'{path}' does not exist.", hint=suggestion)


def _require_classes(source: Source, parts: Sequence[Source], least: int) -> None:
    for part in parts:
        if part.classes is None:
            raise DataError(f"'{part.name}' has no labels, and they are needed here.", hint=_LABEL_LAYOUTS)
    if source.classes is not None and len(source.classes) < least:
        raise DataError(
            f"'{source.name}' has one class only, '{source.classes[0]}'; at least two are needed.", hint=_LABEL_LAYOUTS
        )
