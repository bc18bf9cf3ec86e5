"""Features as .npy: one array (n, D) or (n, N, D). Paths, labels and what they are stand in NAME.json beside it."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np

from beitcli.engine.io.features.stored import Rows, StoredFeatures, in_blocks, write_blocks
from beitcli.engine.io.write_output import write_output
from beitcli.runtime.storage.safe_json import dump_json, parse_json


def sidecar(path: Path) -> Path:
    """Returns the file beside a .npy that names its rows."""
    return path.with_suffix(".json")


def write(path: Path, rows: Rows) -> None:
    shape = (len(rows.paths), *rows.kind.shape)
    header = {"descr": np.dtype(rows.kind.dtype).str, "fortran_order": False, "shape": shape}

    def write_rows(file: BinaryIO) -> None:
        np.lib.format.write_array_header_1_0(file, header)
        write_blocks(file, rows)

    write_output(sidecar(path), lambda file: file.write(dump_json(rows.about()).encode()))
    write_output(path, write_rows)


def read(path: Path) -> StoredFeatures:
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        is_empty = 0 in np.lib.format.read_array_header_1_0(file)[0]  # which cannot be mapped
    array = np.load(path, mmap_mode=None if is_empty else "r", allow_pickle=False)
    return in_blocks(array, parse_json(sidecar(path).read_bytes()))
