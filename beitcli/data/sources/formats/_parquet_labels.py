"""Labels of parquet files: the column `label` as classes, whatever type it has.

| type | classes |
|---|---|
| integers with names in the `huggingface` metadata (ClassLabel) | the names, in their order; below 0: no label |
| integers, whole floats and decimals | the numbers, ascending |
| bool | False, True |
| strings, also as bytes | the strings, sorted |
| others; floats that are no whole numbers | none, with the reason |
"""

from __future__ import annotations

from array import array
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np

from beitcli.data.sources.formats._parquet_columns import is_binary, is_string, plain
from beitcli.errors import DataError
from beitcli.runtime.storage.safe_json import parse_json
from beitcli.runtime.weight_files.file_sniffing import one_line

if TYPE_CHECKING:
    import pyarrow as pa

LABEL = "label"  # name of the column
_ODD = -2  # code of a value that is no class
_BOOLEANS = ["False", "True"]
_HINT = (
    "Labels are integers, strings, bool, or numbers that are whole; convert the column, or name another one 'label'."
)


class LabelColumn:
    """Collects the labels of one file, in order of its rows.

    Attributes:
        names: Class names; in label order if `is_ordered`.
        is_ordered: Whether the file declares the names of its classes, whether or not each occurs.
        was_always_read: Whether the first versions read this type too, so that their fingerprints cover it.
    """

    def __init__(self, file: str, schema: pa.Schema) -> None:
        import pyarrow as pa

        self._file, self._schema = file, schema
        self._codes, self._code_of = array("i"), dict[str, int]()
        self._odd: tuple[int, str] | None = None  # row and value of the first label that is no class
        self._odd_count = 0
        kind = self._kind = plain(schema.field("label").type) if "label" in schema.names else pa.null()
        is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
        self._is_text = is_string(kind) or is_binary(kind)
        self.is_read = self._is_text or is_number or pa.types.is_boolean(kind)
        self.was_always_read = pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)
        stated = None if self._is_text or not self.is_read else stated_names(schema)
        if stated is None and pa.types.is_boolean(kind):
            stated = _BOOLEANS
        self.is_ordered, self._stated = stated is not None, stated or []

    @property
    def names(self) -> list[str]:
        return self._stated if self.is_ordered else list(self._code_of)

    def codes(self, rows: int) -> np.ndarray:
        """Returns (rows,) int32 indices into `names`, -1 for no label."""
        return np.array(self._codes, dtype=np.int32) if self.is_read else np.full(rows, -1, dtype=np.int32)

    def add(self, values: pa.Array) -> None:
        """Adds the labels of the next rows."""
        import pyarrow as pa

        while isinstance(values, pa.ExtensionArray):
            values = values.storage
        encoded = values if isinstance(values, pa.DictionaryArray) else self._comparable(values).dictionary_encode()
        codes = [self._code(value) for value in self._comparable(encoded.dictionary).to_pylist()]
        table = np.array([*codes, -1], dtype=np.int64)  # the last is the null's
        indices = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        found = table[indices]
        odd = np.flatnonzero(found == _ODD)
        if len(odd) and self._odd is None:
            value = self._comparable(encoded.dictionary)[int(indices[odd[0]])].as_py()
            self._odd = len(self._codes) + int(odd[0]), one_line(str(value))
        self._odd_count += len(odd)
        self._codes.frombytes(np.maximum(found, -1).astype(np.int32).tobytes())

    def _comparable(self, values: pa.Array) -> pa.Array:
        """Returns strings as bytes, as they need not be UTF-8, and half floats as floats."""
        import pyarrow as pa

        if self._is_text:
            return values.cast(pa.large_binary())
        return values.cast(pa.float64()) if pa.types.is_float16(values.type) else values

    def _code(self, value: Any) -> int:
        """Returns the code of a value; _ODD if it is no class."""
        if value is None:
            return -1
        if isinstance(value, bytes):
            try:
                return self._of(value.decode())
            except UnicodeDecodeError as error:
                raise DataError(
                    f"'{self._file}' has labels that are not UTF-8: {error}.", "Write them again."
                ) from None
        if isinstance(value, float | Decimal) and not _is_whole(value):
            return _ODD
        number = int(value)
        if not self.is_ordered:
            return self._of(str(number))
        return max(number, -1) if number < len(self._stated) else _ODD

    def _of(self, name: str) -> int:
        return self._code_of.setdefault(name, len(self._code_of))

    def require_classes(self, rows: int) -> None:
        """Raises DataError with the reason if the column has labels that are no classes."""
        import pyarrow as pa

        if not self.is_read and not pa.types.is_null(self._kind):
            kind = one_line(str(self._schema.field("label").type))
            raise DataError(f"'{self._file}' has no classes: its column label is {kind}.", _HINT)
        if self._odd is not None:
            row, value = self._odd
            than = f"none of its {len(self._stated):,} class names" if self.is_ordered else "no whole number"
            raise DataError(
                f"{self._odd_count:,} of the {rows:,} labels of '{self._file}' are no classes, "
                f"the first in row {row}: {value} is {than}.",
                _HINT,
            )
        if rows and "label" in self._schema.names and (self.codes(rows) < 0).all():
            raise DataError(
                f"'{self._file}' has no labels: all {rows:,} in its column label are null or below 0.", _HINT
            )


def _is_whole(value: float | Decimal) -> bool:
    return value.is_integer() if isinstance(value, float) else value.is_finite() and value == value.to_integral_value()


def stated_names(schema: pa.Schema) -> list[str] | None:
    """Returns the class names of a ClassLabel column `label`; None if the metadata has no valid, unique names."""
    try:
        names = parse_json((schema.metadata or {})[b"huggingface"])["info"]["features"]["label"]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    is_usable = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return names if is_usable and len(set(names)) == len(names) else None
