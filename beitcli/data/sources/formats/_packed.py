"""What `beit pack` writes beside its shards, `pack.json`: the classes of each split in label order.

Members tell the class of each image only. Classes without an image, and an order that parquet declares, would be lost.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from beitcli.runtime.storage.regular_files import open_regular
from beitcli.runtime.storage.safe_json import parse_json

MANIFEST, FORMAT = "pack.json", "beit-pack-1"
_MOST_BYTES = 1 << 28


def declared_classes(shards: Sequence[str]) -> tuple[str, ...]:
    """Returns the classes that `pack.json` beside shards declares for them, in label order; empty without any.

    Args:
        shards: Paths; of one folder and one split, else nothing is declared.
    """
    folders = {os.path.dirname(shard) for shard in shards}
    if len(folders) != 1:
        return ()
    try:
        with open_regular(os.path.join(*folders, MANIFEST)) as file:
            manifest = parse_json(file.read(_MOST_BYTES))
        splits = manifest["splits"] if manifest["format"] == FORMAT else {}
        names = {os.path.basename(shard) for shard in shards}
        for split in splits.values():
            if names <= {shard["file"] for shard in split["shards"]}:
                classes = split["classes"] or ()
                are_names = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
                return tuple(classes) if are_names and len(set(classes)) == len(classes) else ()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # there is none, or it is another program's
        pass
    return ()


def in_declared_order(
    classes: tuple[str, ...], labels: np.ndarray, declared: tuple[str, ...]
) -> tuple[tuple[str, ...], np.ndarray]:
    """Returns classes and labels (n,) in the declared order; unchanged if a class is not declared."""
    number_of = {name: number for number, name in enumerate(declared)}
    if not set(classes) <= number_of.keys():
        return classes, labels
    return declared, np.array([number_of[name] for name in classes], dtype=labels.dtype)[labels]
