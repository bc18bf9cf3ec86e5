"""Finds the column of images in a parquet schema, and opens images that are stored as paths beside the file.

| column | image |
|---|---|
| struct<bytes, path> | `bytes`; where that is null, the file `path` |
| binary of any kind, also dictionary-encoded | the encoded file |
| list of integers, by name | the bytes of the encoded file |
| string, by name | the path of a file |
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from beitcli.data.sources.files import read_file
from beitcli.errors import BadImage, DataError
from beitcli.runtime.weight_files.file_sniffing import one_line

if TYPE_CHECKING:
    import pyarrow as pa

HINT = (
    "It needs a column of images: struct<bytes, path>, as the datasets library writes them, binary, "
    "or paths of files in a column 'image'."
)
# Lists of integers and strings are images only in columns of these names: others hold tokens, captions and the like.
_NAMES = (
    *("image", "img", "picture", "photo", "path", "file", "file_name", "filename", "file_path", "filepath"),
    *("image_path", "img_path", "image_file", "image_bytes", "bytes", "jpg", "jpeg", "png"),
)
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|data:")


@dataclass(frozen=True)
class ImageColumn:
    """Where the images of a file are.

    Attributes:
        encoded: Dotted name of the column of encoded files; empty if there are only paths.
        path: Dotted name of the column of paths; empty if there is none.
    """

    encoded: str
    path: str


def image_column(file: str, schema: pa.Schema) -> ImageColumn:
    """Returns the column `image` if it holds images, else the only column that can.

    Args:
        file: Name of the file, for errors.

    Raises:
        DataError: There is none, or there are several.
    """
    fields = [field for field in schema if field.name != "label"] or list(schema)
    for candidates in (_usual, _unusual, _named):
        found = {field.name: column for field in fields if (column := candidates(field)) is not None}
        if "image" in found:
            return found["image"]
        if len(found) > 1:
            raise DataError(
                f"'{file}' has several columns that may be the images: {', '.join(found)}.",
                hint="Name one of them 'image'.",
            )
        if found:
            return next(iter(found.values()))
    if "image" in schema.names:
        kind = one_line(str(schema.field("image").type))
        raise DataError(f"'{file}' has no images: its column 'image' is {kind}, no encoded files or paths.", hint=HINT)
    raise DataError(f"'{file}' has no images; its columns: {', '.join(schema.names) or 'none'}.", hint=HINT)


def _usual(field: pa.Field) -> ImageColumn | None:
    """The kinds that most files have; they come first, so that no other column takes their place."""
    import pyarrow as pa

    kind, parts = field.type, _parts(field.type)
    kind = parts.get("bytes", pa.null()) if parts else kind
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        return None
    return _part_of(field.name, parts) if parts else ImageColumn(field.name, "")


def _unusual(field: pa.Field) -> ImageColumn | None:
    """Other byte strings; structs with lists of bytes, or with paths alone."""
    parts = _parts(field.type)
    if not parts:
        return ImageColumn(field.name, "") if is_binary(field.type) else None
    column = _part_of(field.name, parts)
    is_image = column.encoded or (column.path and (len(parts) == 1 or "bytes" in parts))  # bytes may be of type null
    return column if is_image else None


def _parts(kind: pa.DataType) -> dict[str, pa.DataType]:
    """Returns the types of a struct's parts; empty for others."""
    import pyarrow as pa

    return {part.name: part.type for part in kind} if pa.types.is_struct(kind) else {}


def _part_of(name: str, parts: dict[str, pa.DataType]) -> ImageColumn:
    has_bytes = "bytes" in parts and (is_binary(parts["bytes"]) or _is_bytes_list(parts["bytes"]))
    has_path = "path" in parts and is_string(parts["path"])
    return ImageColumn(f"{name}.bytes" if has_bytes else "", f"{name}.path" if has_path else "")


def _named(field: pa.Field) -> ImageColumn | None:
    if field.name.lower() not in _NAMES:
        return None
    if _is_bytes_list(field.type):
        return ImageColumn(field.name, "")
    return ImageColumn("", field.name) if is_string(field.type) else None


def plain(kind: pa.DataType) -> pa.DataType:
    """Returns the type of the values behind dictionaries and extension types."""
    import pyarrow as pa

    while True:
        if isinstance(kind, pa.BaseExtensionType):
            kind = kind.storage_type
        elif pa.types.is_dictionary(kind):
            kind = kind.value_type
        else:
            return kind


def is_binary(kind: pa.DataType) -> bool:
    """Whether values are byte strings, of fixed size, in views or by a dictionary too."""
    import pyarrow as pa

    kind = plain(kind)
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view)
    return any(test(kind) for test in tests)


def is_string(kind: pa.DataType) -> bool:
    """Whether values are strings, in views or by a dictionary too."""
    import pyarrow as pa

    kind = plain(kind)
    return any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))


def _is_bytes_list(kind: pa.DataType) -> bool:
    import pyarrow as pa

    kind = plain(kind)
    tests = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(test(kind) for test in tests) and pa.types.is_integer(kind.value_type)


def encoded_file(cell: Any) -> bytes | None:
    """Returns the bytes of an image in a column of encoded files; None if the cell is null.

    Raises:
        BadImage: It is a list with numbers that are no bytes.
    """
    if not cell.is_valid:
        return None
    if not hasattr(cell, "values"):
        value = cell.as_py()
        return None if value is None else bytes(value)
    values = cell.values.to_numpy(zero_copy_only=False) if len(cell) else np.zeros(0, np.uint8)
    odd = np.flatnonzero(~((values >= 0) & (values <= 255)))  # nulls are NaN here
    if len(odd):
        raise BadImage(f"its list holds {values[odd[0]]}, no byte")
    return values.astype(np.uint8).tobytes()


def linked_file(path: str, folder: str | None) -> bytes:
    """Reads an image that is not embedded.

    Args:
        path: As its row has it: absolute, or relative to the folder of the parquet file.
        folder: That folder; None for data sets on the hub, whose rows must not name files of this machine.

    Raises:
        BadImage: There is no such file, it leads out of the folder, or it is an address.
    """
    shown = one_line(path, 200)
    if _ADDRESS.match(path):
        raise BadImage(f"not embedded: its row names the address '{shown}', and none is fetched")
    if folder is None:
        raise BadImage(f"not embedded: its row names the file '{shown}', which a data set on the hub cannot hold")
    if not os.path.isabs(path) and os.path.normpath(path).split(os.sep)[0] == os.pardir:
        raise BadImage(f"not embedded: its path '{shown}' leads out of the folder of the parquet file")
    try:
        return read_file(os.path.join(folder, path))
    except BadImage as error:
        raise type(error)(f"not embedded, and its file '{shown}': {error.message}") from None
