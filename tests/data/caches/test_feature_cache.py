"""Features on disk: whole or absent, of exactly what they were made of, never a damaged byte used."""

from __future__ import annotations

import json

import numpy as np
import pytest

from beitcli.data.caches.feature_cache import FeatureWriter, features_folder, load_features
from beitcli.errors import StorageError

ABOUT = {"weights": "abc", "layers": [1, 2]}
BAD = (2, "x.jpg", "broken")


def write(cache, about=ABOUT):
    """Five images, the third unreadable, in two batches; values tell layer and image."""
    with FeatureWriter(cache, about, [1, 2], images=5, width=3) as writer:
        for indices, bad in (([0, 1], [BAD]), ([3, 4], [])):
            values = np.array([[[100.0 * layer + i] * 3 for i in indices] for layer in (1, 2)], dtype=np.float32)
            writer.add(values, np.array(indices) * 10, indices, bad)
        writer.finish()


def test_what_was_written_is_read(tmp_path):
    write(tmp_path)
    found = load_features(tmp_path, ABOUT, [2])
    assert list(found.layers) == [2]
    assert isinstance(found.layers[2], np.memmap)
    assert found.take(2, slice(None)).tolist() == [[200.0] * 3, [201.0] * 3, [203.0] * 3, [204.0] * 3]
    assert found.readable_labels.tolist() == [0, 10, 30, 40]
    assert (len(found), found.bad) == (4, [BAD])


def test_of_anything_else_is_absent(tmp_path):
    write(tmp_path)
    assert load_features(tmp_path, ABOUT | {"weights": "abd"}, [1]) is None
    assert load_features(tmp_path, ABOUT, [3]) is None
    folder = features_folder(tmp_path, ABOUT)
    document = json.loads((folder / "about.json").read_text())
    (folder / "about.json").write_text(json.dumps(document | {"about": ABOUT | {"weights": "abd"}}))
    assert load_features(tmp_path, ABOUT, [1]) is None


@pytest.mark.parametrize("name", ["layer-01.npy", "labels.npy", "rows.npy", "about.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_file_is_never_used(tmp_path, name, damage):
    write(tmp_path)
    path = features_folder(tmp_path, ABOUT) / name
    content = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) - 5] ^= 1
        path.write_bytes(content)
    assert load_features(tmp_path, ABOUT, [1]) is None


def test_nothing_is_left_of_an_interrupted_writing(tmp_path):
    def interrupted():
        with FeatureWriter(tmp_path, ABOUT, [1], images=5, width=3) as writer:
            writer.add(np.zeros((1, 2, 3), dtype=np.float32), np.zeros(2), [0, 1], [])
            assert len(list(tmp_path.iterdir())) == 1
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []
    assert load_features(tmp_path, ABOUT, [1]) is None


def test_writing_takes_the_place_of_what_was_damaged(tmp_path):
    write(tmp_path)
    (features_folder(tmp_path, ABOUT) / "layer-01.npy").write_bytes(b"")
    write(tmp_path)
    assert load_features(tmp_path, ABOUT, [1, 2]) is not None


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be kept"):
        write(tmp_path / "file")
