"""Writes features image by image: .jsonl line by line, archives into a part file that the end turns into the archive.

While a job runs, the rows of an archive lie in part files (`part_files.py`), so that memory holds no features, and a
job that was killed goes on with `--resume` from the last row it wrote. A file holds features of one kind, and is
resumed only with the same. Lines of .jsonl do not say their kind: `first` lets the caller compare.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np

from beitcli.config.embed import EmbedConfig
from beitcli.data.sources.formats.parquet import require_pyarrow
from beitcli.engine.io.appended_lines import AppendedLines
from beitcli.engine.io.features.formats import WRITERS, read_features
from beitcli.engine.io.features.npy import sidecar
from beitcli.engine.io.features.stored import FeatureKind, Rows
from beitcli.engine.io.output_paths import is_stream, make_folder, require_folder
from beitcli.engine.io.outputs import require_writable_outputs
from beitcli.engine.io.part_files import PartFiles, part_files
from beitcli.engine.io.protected_inputs import ProtectedInputs
from beitcli.errors import StorageError, UsageError
from beitcli.runtime.storage.safe_json import dump_json, parse_json

Document = dict[str, Any]
_DIGITS = ".9g"  # of a float32 as text


def require_writable_features(config: EmbedConfig, inputs: ProtectedInputs) -> None:
    """Refuses to replace what exists at `-o`, its part files and the names beside it.

    Raises:
        UsageError: One of them is a folder, an input, or exists without `--overwrite` or `--resume`.
        StorageError: The folder cannot be made.
    """
    path = Path(config.output)
    option, is_npy = f"-o '{path}'", path.suffix.lower() == ".npy"
    outputs = [path] if path.suffix.lower() == ".jsonl" or config.query else [path, *part_files(path)]
    outputs += [sidecar(path)] if is_npy else []
    require_writable_outputs(
        outputs,
        option,
        inputs,
        overwrite=config.overwrite or config.resume,
        follows=True,
        way_out="" if config.query else ", or --resume to go on with it",
    )
    if config.resume and is_npy and not path.exists():  # then that .json is another's
        require_writable_outputs([sidecar(path)], option, inputs, overwrite=config.overwrite, follows=True)
    if not is_stream(path):
        require_folder(Path(os.path.realpath(path)).parent)


class FeatureFile(ABC):
    """Writer of documents `{"path", "features"}`, with a `label` where there are classes.

    Attributes:
        held: Paths that the file already contains (with `resume`).
        first: Path and features of the first row of a file that does not say its kind.
    """

    def __init__(self, path: Path, kind: FeatureKind) -> None:
        self.path, self.kind = path, kind
        self.held: set[str] = set()
        self.first: tuple[str, np.ndarray] | None = None
        if not is_stream(path):
            make_folder(Path(os.path.realpath(path)).parent)

    @property
    @abstractmethod
    def rows(self) -> int:
        """Number of rows in the file."""

    @abstractmethod
    def add(self, document: Document) -> None:
        """Appends the features of an image, (D,) or (N, D) float32; of an unreadable one `{"path", "error"}`."""

    @abstractmethod
    def flush(self) -> None:
        """Gives what was added to the operating system, so that a killed job keeps it."""

    @abstractmethod
    def close(self, *, done: bool) -> None:
        """Closes the file; `done`: the job has ended, and the archive is written."""


def as_line(document: Document) -> str:
    """Returns the JSON line of a document; features have the digits of a float32."""
    return dump_json(with_numbers(document))


def with_numbers(document: Document) -> Document:
    """Returns a document with its features, if it has any, `as_numbers`."""
    if "features" not in document:
        return document
    return document | {"features": as_numbers(document["features"])}


def as_numbers(features: np.ndarray) -> list[Any]:
    """Returns an array as nested lists of floats, as short as a float32 can be written."""
    if features.ndim > 1:
        return [as_numbers(row) for row in features]
    return [float(format(number, _DIGITS)) for number in features.tolist()]


class FeatureLines(FeatureFile):
    """.jsonl, appended line by line. Unreadable images have a line too, and are read again by a resumed job."""

    def __init__(self, path: Path, kind: FeatureKind, resume: bool) -> None:
        super().__init__(path, kind)
        self._added = 0
        self._lines = AppendedLines(path, self._keeps if resume else None)

    def _keeps(self, line: bytes) -> bool:
        document = _parsed(line, self.path)
        if "features" not in document:
            return False
        features = np.array(document["features"], dtype=np.float32)
        if features.shape != self.kind.shape:
            held, made = (" x ".join(map(str, each)) for each in (features.shape, self.kind.shape))
            raise UsageError(
                f"'{self.path}' holds {held} numbers an image, and these settings give {made}.",
                "Give the settings that it was made with, or another -o FILE.",
            )
        self.first = self.first or (document["path"], features)
        self.held.add(document["path"])
        return True

    @property
    def rows(self) -> int:
        return len(self.held) + self._added

    def add(self, document: Document) -> None:
        self._added += "features" in document
        self._lines.write(as_line(document))

    def flush(self) -> None:
        self._lines.flush()

    def close(self, *, done: bool) -> None:
        self._lines.close(done=done)


def _parsed(line: bytes, path: Path) -> Document:
    try:
        document = parse_json(line)
        if isinstance(document["path"], str) and ("features" in document or "error" in document):
            return dict(document)
    except (ValueError, KeyError, TypeError):
        pass
    raise StorageError(
        f"'{path}' holds a line that is no feature document: {line[:60]!r}.", "Give another -o FILE."
    ) from None


class FeatureArchive(FeatureFile):
    """.npy, .safetensors or .parquet, collected in part files."""

    def __init__(self, path: Path, kind: FeatureKind, resume: bool) -> None:
        if path.suffix.lower() == ".parquet":
            require_pyarrow(f"-o {path}")
        super().__init__(path, kind)

        def require(file: Path, stated: dict[str, Any]) -> None:
            kind.require(file, stated["features"])

        about = {"features": kind.as_dict()}
        self.parts = PartFiles(path, about, kind.shape, kind.dtype, require, resume=resume)
        if resume and not self.parts.paths and path.exists() and not is_stream(path):
            self._take_over()
        self.held = set(self.parts.paths)

    def _take_over(self) -> None:
        """Copies the rows of the finished archive."""
        try:
            stored = read_features(self.path)
            self.kind.require(self.path, stored.kind or {})
        except BaseException:
            self.parts.close()
            raise
        self.parts.take_over(stored.blocks(), stored.paths, stored.labels)

    @property
    def rows(self) -> int:
        return len(self.parts.paths)

    def add(self, document: Document) -> None:
        if "features" in document:
            self.parts.add(document["features"], document["path"], document.get("label"))

    def flush(self) -> None:
        self.parts.flush()

    def close(self, *, done: bool) -> None:
        try:
            self.flush()
            if done:
                labels = self.parts.labels if any(label is not None for label in self.parts.labels) else None
                rows = Rows(self.kind, self.parts.paths, labels, self.parts.blocks)
                WRITERS[self.path.suffix.lower()](self.path, rows)
                self.parts.remove()
        finally:
            self.parts.close()


def open_feature_file(path: Path, kind: FeatureKind, resume: bool) -> FeatureFile:
    """Returns the writer for the file's suffix.

    Raises:
        UsageError: With `resume`, the file holds features of another kind.
        StorageError: It is damaged, or cannot be written.
    """
    if path.suffix.lower() == ".jsonl":
        return FeatureLines(path, kind, resume)
    return FeatureArchive(path, kind, resume)
