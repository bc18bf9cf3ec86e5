"""Format of tables of numbers for images: a .csv file with a column `path` and a column a label, 0 or 1 (multi-label).

    path,cat,dog,outdoors
    photos/a.jpg,1,0,1

Other numbers are read too, for models that predict numbers. A column without any number is no label.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
import os
import re
from collections import Counter

import numpy as np

from beitcli.data.sources.format import Format, Request
from beitcli.data.sources.formats.list_file import ListSource
from beitcli.errors import DataError

_PATHS = ("path", "image", "file_name", "filename")
_ROW_NUMBERS = re.compile(r"(?:Unnamed: \d+)?")  # pandas writes the index without a name, and names it when reading
_LARGEST = float(np.finfo(np.float32).max)
_HINT = "Its first line is path,LABEL,LABEL...; each other line a path and a number for each label."


class TableSource(ListSource):
    """The images of a table, in order, each with a vector of numbers.

    Attributes:
        label_names: Names of the columns of numbers.
    """

    def __init__(self, paths: list[bytes], names: tuple[str, ...], numbers: np.ndarray, *, name: str) -> None:
        """
        Args:
            names: Of the columns.
            numbers: (n, L) float32.
            name: The DATA reference.
        """
        super().__init__(paths, name=name, base=os.path.dirname(name))
        self.label_names, self._numbers = names, numbers

    def label_vector(self, index: int) -> np.ndarray | None:
        return self._numbers[index] if self.label_names else None

    def label_vectors(self) -> np.ndarray:
        return self._numbers

    def fingerprint(self) -> str:
        """Returns the SHA-256 of paths, names and numbers."""
        contents = "\0".join([super().fingerprint(), *(self.label_names or ())]).encode(errors="surrogateescape")
        return hashlib.sha256(contents + self._numbers.tobytes()).hexdigest()


def _open_one(reference: str, request: Request) -> TableSource:
    """Opens a table. Raises DataError where it cannot be read, is empty, or a cell is no number."""
    try:
        with open(reference, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            rows = [row for row in csv.reader(io.StringIO(file.read(), newline="")) if any(map(str.strip, row))]
    except (OSError, csv.Error) as error:
        raise DataError(f"Table '{reference}' cannot be read: {error}.", hint=_HINT) from None
    header = [name.strip() for name in rows[0]] if rows else []
    column = next((header.index(name) for name in _PATHS if name in header), None)
    if column is None:
        raise DataError(f"Table '{reference}' has no column path: its first line is '{','.join(header)}'.", hint=_HINT)
    repeated = sorted(name for name, times in Counter(header).items() if times > 1)
    if repeated:
        raise DataError(f"Table '{reference}' has two columns '{repeated[0]}'.", hint="Rename one of them.")
    for line, row in enumerate(rows[1:], start=2):
        if len(row) != len(header):
            raise DataError(
                f"Row {line} of table '{reference}' has {len(row)} cells; the first has {len(header)}.", hint=_HINT
            )
    paths = [row[column].encode(errors="surrogateescape") for row in rows[1:]]
    labels = [place for place, name in enumerate(header) if place != column and not _ROW_NUMBERS.fullmatch(name)]
    if len(labels) < len(header) - 1:
        request.say(f"'{reference}': its column of row numbers, which has no name, is no label.")
    named = {header[place]: _numbers(row[place] for row in rows[1:]) for place in labels}
    columns = {name: values for name, values in named.items() if not np.isnan(values).all()}
    for name, values in columns.items():
        if np.isnan(values).any():
            line = int(np.isnan(values).argmax()) + 2
            cell = rows[line - 1][header.index(name)]
            raise DataError(f"Row {line} of table '{reference}' has '{cell}' for {name}, no number.", hint=_HINT)
    text = [name for name in named if name not in columns]
    if text and paths:
        request.say(f"'{reference}': columns without numbers are no labels: {', '.join(text)}.")
    numbers = np.stack(list(columns.values()), axis=1) if columns else np.zeros((len(paths), 0), dtype=np.float32)
    table = TableSource(paths, tuple(columns), numbers, name=reference)
    if not request.reports_missing:
        table.require_some("table", f"Paths are as seen from the table's folder or from here. {_HINT}")
    return table


def _numbers(cells: object) -> np.ndarray:
    """Returns (n,) float32; NaN where a cell is no number that is finite in it."""
    return np.array([_number(cell) for cell in cells], dtype=np.float32)  # type: ignore[attr-defined]


def _number(cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        return math.nan
    return value if abs(value) <= _LARGEST else math.nan


FORMAT = Format(
    looks="a .csv table of paths and 0/1 columns",
    labels="the columns of a table (--problem multi-label)",
    recognizes=lambda path: path.lower().endswith(".csv") and os.path.isfile(path),
    open=lambda paths, request: [_open_one(path, request) for path in paths],
    rank=70,
)
