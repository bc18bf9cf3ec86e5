"""The formats of files of features by ending, and what of them is there. A new format is a module beside this one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from beitcli.data.sources.formats.parquet import require_pyarrow
from beitcli.engine.io.features import jsonl, npy, parquet, safetensors
from beitcli.engine.io.features.stored import Rows, StoredFeatures
from beitcli.errors import StorageError

WRITERS: dict[str, Callable[[Path, Rows], None]] = {
    ".npy": npy.write,
    ".safetensors": safetensors.write,
    ".parquet": parquet.write,
}
_READERS: dict[str, Callable[[Path], StoredFeatures]] = {
    ".npy": npy.read,
    ".safetensors": safetensors.read,
    ".parquet": parquet.read,
    ".jsonl": jsonl.read,
}


def is_feature_file(reference: str) -> bool:
    """Whether a reference is an existing file of features, and not a parquet file of images."""
    suffix = Path(reference).suffix.lower()
    if suffix not in _READERS or not os.path.isfile(reference):
        return False
    if suffix != ".parquet":
        return True
    require_pyarrow(reference)
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return "features" in pq.read_schema(reference).names
    except (pa.ArrowException, OSError):
        return False


def read_features(path: Path) -> StoredFeatures:
    """Opens a file of features.

    Raises:
        StorageError: It is damaged, or none.
        UsageError: It is parquet, and pyarrow is missing.
    """
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        require_pyarrow(str(path))
    try:
        stored = _READERS.get(suffix, jsonl.read)(path)
        if not all(isinstance(each, str) for each in stored.paths):
            raise ValueError("paths that are no text")
    except Exception as error:  # readers of damaged files raise nearly any type
        raise StorageError(f"'{path}' is no file of features: {error}.", "Give one that `beit embed` wrote.") from None
    return stored
