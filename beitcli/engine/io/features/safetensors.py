"""Features as .safetensors: the tensor `features`, and metadata with paths, labels and what the features are.

Paths and labels of more than a header holds are uint8 tensors of JSON.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from beitcli.engine.io.features.stored import Rows, StoredFeatures, in_blocks, write_blocks
from beitcli.engine.io.write_output import write_output
from beitcli.runtime.storage.safe_json import dump_json, parse_json

_MOST_METADATA = 90_000_000  # bytes; the safetensors library opens no header of more than 100 MB
_NAMES = ("paths", "labels")


def write(path: Path, rows: Rows) -> None:
    end = len(rows.paths) * rows.kind.row_bytes
    dtype = {"float32": "F32", "float16": "F16"}[rows.kind.dtype]
    shape = [len(rows.paths), *rows.kind.shape]
    tensors: dict[str, Any] = {"features": {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}}
    about = {name: dump_json(value) for name, value in rows.about().items()}
    apart: list[bytes] = []
    if sum(map(len, about.values())) > _MOST_METADATA:
        for name in (name for name in _NAMES if name in about):
            apart.append(about.pop(name).encode())
            first, end = end, end + len(apart[-1])
            tensors[name] = {"dtype": "U8", "shape": [end - first], "data_offsets": [first, end]}
    text = dump_json({"__metadata__": about, **tensors}).encode()
    text = text.ljust(-(-len(text) // 8) * 8)

    def write_rows(file: BinaryIO) -> None:
        file.write(struct.pack("<Q", len(text)) + text)
        write_blocks(file, rows)
        for names in apart:
            file.write(names)

    write_output(path, write_rows)


def read(path: Path) -> StoredFeatures:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > path.stat().st_size:
            raise ValueError("its header is longer than the file")
        header = parse_json(file.read(length))
        about = {name: parse_json(text) for name, text in header["__metadata__"].items()}
        for name in (name for name in _NAMES if name in header):
            first, end = header[name]["data_offsets"]
            file.seek(8 + length + first)
            about[name] = parse_json(file.read(end - first))
    tensor = header["features"]
    dtype = {"F32": np.float32, "F16": np.float16}[tensor["dtype"]]
    shape = tuple(tensor["shape"])
    if not shape[0]:
        return in_blocks(np.empty(shape, dtype), about)
    return in_blocks(np.memmap(path, dtype, "r", 8 + length + tensor["data_offsets"][0], shape), about)
