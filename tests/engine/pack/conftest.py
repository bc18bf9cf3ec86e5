"""What the tests of packs share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import save_picture


@pytest.fixture
def split_folder(tmp_path: Path) -> Path:
    """Two splits of three classes: JPEG and PNG in train, JPEG in val, whose `b` has no image."""
    root = tmp_path / "data"
    for number in range(12):
        suffix = "png" if number % 4 == 0 else "jpg"
        save_picture(root / "train" / "abc"[number % 3] / f"{number}.{suffix}", (90, 10 * number, 60), number)
    for number in range(4):
        save_picture(root / "val" / "ac"[number % 2] / f"{number}.jpg", (9 * number, 80, 60), 20 + number, (70, 31))
    return root
