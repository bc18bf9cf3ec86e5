"""What a classifier needs of DATA: a class for each image, or the columns of a table, a number for each label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from beitcli.data.sources.base import Source
from beitcli.data.sources.format import Request
from beitcli.data.sources.open_data import open_data
from beitcli.errors import DataError

_HINT = "Give a .csv table with a column path, or .parquet, with a column of 0 and 1 for each label."


def require_labels(references: Sequence[str], request: Request) -> None:
    """Raises DataError for data without classes or, with `request.vectors`, without columns of 0 and 1."""
    source = open_data(references, replace(request, labelled=not request.vectors))
    if request.vectors:
        vector_columns(source, source.label_names or (), binary=True)


def vector_columns(source: Source, classes: Sequence[str], *, binary: bool) -> list[int]:
    """Returns the column of the table for each output of the model, by name.

    Args:
        binary: Whether all numbers must be 0 or 1.

    Raises:
        DataError: The data is no table, lacks a label, or has other numbers.
    """
    names = source.label_names
    if not names:
        what = "0/1 columns of labels" if binary else "columns of numbers"
        raise DataError(f"'{source.name}' has no {what}, and they are needed here.", _HINT)
    lacking = [name for name in classes if name not in names]
    if lacking:
        raise DataError(
            f"'{source.name}' lacks {len(lacking)} of the model's {len(classes)} labels (first: '{lacking[0]}').",
            f"Name the columns as in training; it has: {', '.join(names[:5])}.",
        )
    columns = [names.index(name) for name in classes]
    if binary:
        require_binary(source)
    return columns


def require_binary(source: Source) -> None:
    """Raises DataError, with the value, where a number of the table is neither 0 nor 1."""
    vectors = source.label_vectors()
    wrong = (vectors != 0) & (vectors != 1)
    if wrong.any():
        index, place = divmod(int(wrong.argmax()), wrong.shape[1])
        name, value = (source.label_names or ())[place], vectors[index, place]
        raise DataError(f"'{source.path(index)}' has {value:g} for {name}; labels are 0 or 1.", _HINT)
