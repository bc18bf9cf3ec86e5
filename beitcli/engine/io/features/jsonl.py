"""Features as .jsonl: a line for each image, `{"path", "features"}` and a `label`; what they are is not said."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from beitcli.engine.io.features.stored import StoredFeatures
from beitcli.runtime.storage.safe_json import parse_json


def read(path: Path) -> StoredFeatures:
    def lines() -> Iterator[dict[str, Any]]:
        with path.open("rb") as file:
            for line in file:
                document = parse_json(line)
                if "features" in document:
                    yield document
                elif "error" not in document:
                    raise ValueError(f"a line that is no feature document: {line[:60]!r}")

    paths: list[str] = []
    labels: list[str | None] = []
    for document in lines():
        paths.append(document["path"])
        labels.append(document.get("label"))
    return StoredFeatures(
        None,
        paths,
        labels if any(labels) else None,
        lambda: (np.array([document["features"]], dtype=np.float32) for document in lines()),
    )
