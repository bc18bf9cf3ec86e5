"""The files that a job reads, which no output may replace, whatever `--overwrite` says."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import Any

from beitcli.config.fields import settings_of
from beitcli.data.sources.base import Source
from beitcli.data.sources.open_data import expand
from beitcli.data.sources.pages import PAGE
from beitcli.errors import BeitError
from beitcli.models.checkpoints.locate import split_part

_DATA = {"DATA", "INPUT", "IMAGE"}
_MODEL = {"MODEL", "REF", "TOKENIZER"}
_SHARDS = (".parquet", ".tar")  # what is data in a folder of DATA beside its images
_WEIGHTS = (".safetensors", ".json", ".toml", ".pth", ".pt", ".bin", ".pkl", ".ckpt", ".tar", ".md")
_FOLDERS = ("checkpoints", "tokenizer")  # of a run
_OF_RUN = ("metrics.jsonl", "bad-images.jsonl", "SHA256SUMS", "latest")

Identity = tuple[int, int]  # device and inode: the same for a file, links to it, and other spellings of its path


class ProtectedInputs:
    """Inputs of a job: DATA, the images in it or the shards that hold them, and the files of MODEL and TOKENIZER.

    Args:
        config: Of any command.
        source: The opened DATA.
        models: Further references to models, which the config does not name.
        images: Further images.
    """

    def __init__(
        self, config: Any, source: Source | None = None, models: Iterable[str] = (), images: Iterable[str] = ()
    ) -> None:
        self.config, self._source, self._further = config, source, tuple(images)
        named: dict[str, list[str]] = {"data": [], "model": list(models)}
        for setting in settings_of(type(config)).values():
            metavar, value = setting.option.metavar or "", getattr(config, setting.name)
            kind = "data" if metavar in _DATA else "model" if metavar in _MODEL else ""
            if kind and value:
                named[kind] += [value] if isinstance(value, str) else value
        self._named = named

    def with_image(self, image: str) -> ProtectedInputs:
        """Returns these inputs with another further image; the files of DATA and MODEL are looked for once for all."""
        _ = self._files
        other = copy(self)
        other._further = (image,)
        other.__dict__.pop("_images", None)
        return other

    @cached_property
    def _images(self) -> set[Identity]:
        source = self._source
        paths = () if source is None else (source.path(index) for index in range(len(source)))
        return _identities((*self._further, *paths))

    @cached_property
    def _files(self) -> set[Identity]:
        return _identities(self._paths()) | _holders(self._source)

    def _paths(self) -> Iterator[str]:
        for reference in self._named["data"]:
            for path in _expanded(reference):
                yield from _below(path, lambda name: name.lower().endswith(_SHARDS), deep=True)
        for reference in self._named["model"]:
            base = split_part(reference)[0].partition("@random")[0]
            for path in (base, *(os.path.join(base, name) for name in _FOLDERS)):
                yield from _below(path, _is_of_model, deep=path != base)

    def kind_of(self, path: Path) -> str:
        """Returns what an existing file is to the job: `image`, `input`, or nothing (``)."""
        found = _identities([path])
        return "image" if found & self._images else "input" if found & self._files else ""


def _expanded(reference: str) -> list[str]:
    try:
        return expand(reference)
    except BeitError:  # a word, stdin, or not on this disk
        return []


def _is_of_model(name: str) -> bool:
    return name.lower().endswith(_WEIGHTS) or name in _OF_RUN


def _below(path: str, is_input: Callable[[str], bool], *, deep: bool) -> Iterator[str]:
    """Yields a file itself, and of a folder the files that are inputs by their names; `deep`: of its folders too."""
    if not os.path.isdir(path):
        yield path
    for folder, _, names in os.walk(path):
        yield from (os.path.join(folder, name) for name in names if is_input(name))
        if not deep:
            return


def _identities(paths: Iterable[str | Path]) -> set[Identity]:
    """Returns the files of paths; of `stack.tif#page=3` the TIFF."""
    found = (_identity(path) or _identity(str(path).rpartition(PAGE)[0]) for path in paths)
    return {identity for identity in found if identity is not None}


def _holders(source: Source | None) -> set[Identity]:
    """Returns the shards of images that are no files of their own: of `shard.tar/member` the shard."""
    folders = set[str]() if source is None else {os.path.dirname(source.path(index)) for index in range(len(source))}
    return {identity for folder in folders if (identity := _holder(folder)) is not None}


def _holder(folder: str) -> Identity | None:
    """Returns the file that a folder lies in; None for a folder of the disk."""
    while folder and not os.path.isdir(folder):
        if os.path.isfile(folder):
            return _identity(folder)
        folder = "" if os.path.dirname(folder) == folder else os.path.dirname(folder)
    return None


def _identity(path: str | Path) -> Identity | None:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino
