"""Results and data that the tests of the paper's tables make for themselves."""

from __future__ import annotations

import json
import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HARDWARE = {"processor": "A processor", "cores": 2, "threads": 1, "gpu": None, "versions": {"torch": "2.0"}}


def write_result(results: Path, name: str, **figures: Any) -> None:
    file = results / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(
        json.dumps({"command": f"beit {name}", "cpu_seconds": 10.0, "hardware": HARDWARE, "figures": figures})
    )


def shards(folder: Path, images: int) -> Path:
    """Writes three tar shards for training and one to measure on, four classes of one colour each."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for split, numbers in (("train", range(3)), ("val", range(1))):
        for number in numbers:
            with tarfile.open(folder / f"{split}-{number}.tar", "w") as tar:
                for index in range(images):
                    pixels = random.integers(0, 80, (64, 64, 3)).astype(np.uint8)
                    pixels[..., index % 3] += 40 * (index % 4)
                    file = BytesIO()
                    Image.fromarray(pixels).save(file, "PNG")
                    entry = tarfile.TarInfo(f"{split}/class-{index % 4}/{number}-{index}.png")
                    entry.size = file.tell()
                    file.seek(0)
                    tar.addfile(entry, file)
    return folder


def streets(folder: Path) -> Path:
    """Writes pictures of two classes and a void border, with their masks."""
    for split, count in (("train", 8), ("val", 3)):
        for number in range(count):
            mask = np.full((48, 64), 11, np.uint8)
            mask[4:, :40], mask[4:, 40:] = 1, 2
            for kind, picture in (("images", np.repeat(mask[..., None] * 20, 3, axis=2)), ("masks", mask)):
                (folder / split / kind).mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture).save(folder / split / kind / f"{number}.png")
    return folder
