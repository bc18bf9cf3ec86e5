"""sample: reproducible, balanced, the same at every size, and not to be solved from single pixels."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from beitcli.data.decode import decode_rgb
from beitcli.data.sources.formats._sample_shapes import SHAPES
from beitcli.data.sources.formats.sample import SampleSource
from beitcli.errors import UsageError


def pixels(source: SampleSource, index: int) -> np.ndarray:
    return np.asarray(source.image(index))


def test_image_is_the_same_at_two_calls_and_in_two_sources() -> None:
    first, second = SampleSource(), SampleSource(length=20)
    drawn = pixels(first, 12)
    assert np.array_equal(drawn, pixels(first, 12))
    assert np.array_equal(drawn, pixels(second, 12))
    assert first.label(12) == second.label(12)


def test_image_is_the_same_in_another_process() -> None:
    script = (
        "import hashlib; from beitcli.data.sources.formats.sample import SampleSource;"
        "s = SampleSource('val');"
        "print(hashlib.sha256(b''.join(s.read(i) + bytes(s.segmentation(i)) for i in (9, 3))).hexdigest())"
    )
    runs = [subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True) for _ in "ab"]
    assert runs[0].stdout == runs[1].stdout
    assert len(runs[0].stdout) == 65


def test_forked_child_shares_what_it_drew() -> None:
    source = SampleSource(length=10)
    child = os.fork()
    if child == 0:
        source.image(4)
        os._exit(0)
    os.waitpid(child, 0)
    assert source._memo.get(4) is not None
    assert np.array_equal(pixels(source, 4), pixels(SampleSource(length=10), 4))


def test_torn_memory_is_drawn_again() -> None:
    source = SampleSource(length=10)
    drawn = pixels(source, 4)
    source._memo._pixels[4, 0, 0, 0] ^= 1
    assert np.array_equal(pixels(source, 4), drawn)


def test_pickled_source_draws_the_same() -> None:
    source = SampleSource("val", 48)
    drawn = pixels(source, 7)
    assert np.array_equal(pixels(pickle.loads(pickle.dumps(source)), 7), drawn)


def test_changing_an_image_changes_no_later_one() -> None:
    source = SampleSource(length=10)
    before = pixels(source, 2)
    source.image(2).paste("red", (0, 0, 64, 64))
    source.segmentation(2)[:] = 99
    assert np.array_equal(pixels(source, 2), before)
    assert source.segmentation(2).max() <= len(SHAPES)


def test_labels_are_balanced_and_not_in_order() -> None:
    source = SampleSource()
    labels = np.array([source.label(i) for i in range(len(source))])
    assert len(source) == 10_000
    assert len(SHAPES) >= 10
    assert np.bincount(labels).tolist() == [1000] * 10
    assert (labels != np.arange(10_000) % 10).mean() > 0.8
    assert [SampleSource(length=25).label(i) for i in range(25)] == labels[:25].tolist()


def test_masks_agree_with_labels() -> None:
    source = SampleSource("val")
    for index in range(60):
        mask = source.segmentation(index)
        assert mask.shape == (64, 64)
        assert mask.dtype == np.uint8
        assert set(np.unique(mask)) == {0, source.label(index) + 1}
        assert 0.02 < (mask > 0).mean() < 0.35


def test_occluded_pixels_are_not_in_the_mask() -> None:
    """A disc's visible part is smaller than the disc wherever something stands before it."""
    source = SampleSource()
    circle = list(SHAPES).index("circle")
    fractions = []
    for index in [i for i in range(600) if source.label(i) == circle]:
        ys, xs = np.nonzero(source.segmentation(index))
        box = (np.ptp(ys) + 1) * (np.ptp(xs) + 1)
        fractions.append(len(ys) / box)
    assert max(fractions) == pytest.approx(np.pi / 4, abs=0.06)
    assert np.mean(np.array(fractions) < 0.7) > 0.25


def test_size_keeps_the_content() -> None:
    for index in range(12):
        small, large = SampleSource(size=64), SampleSource(size=128)
        reduced = large.image(index).reduce(2)
        assert np.corrcoef(pixels(small, index).ravel(), np.asarray(reduced).ravel())[0, 1] > 0.98
        halved = large.segmentation(index)[::2, ::2]
        assert (halved == small.segmentation(index)).mean() > 0.97


def test_splits_differ() -> None:
    train, val = SampleSource("train"), SampleSource("val")
    assert len(val) == 1000
    assert [train.label(i) for i in range(50)] != [val.label(i) for i in range(50)]
    assert not np.array_equal(pixels(train, 0), pixels(val, 0))


def test_read_gives_the_image_as_png() -> None:
    source = SampleSource("val", 40)
    data = source.read(5)
    assert Image.open(BytesIO(data)).format == "PNG"
    assert np.array_equal(np.asarray(decode_rgb(data)), pixels(source, 5))


def test_path_names_split_index_and_class() -> None:
    source = SampleSource()
    assert source.path(12) == f"sample/train/00012-{source.classes[source.label(12)]}"


def test_fingerprint_depends_on_split_size_and_length() -> None:
    sources = [SampleSource(), SampleSource("val"), SampleSource(size=32), SampleSource(length=9)]
    assert len({source.fingerprint() for source in sources}) == 4
    assert SampleSource().fingerprint() == sources[0].fingerprint()


def test_wrong_settings_are_refused_with_a_hint() -> None:
    for options in ({"split": "test"}, {"size": 4}, {"length": 0}):
        with pytest.raises(UsageError) as caught:
            SampleSource(**options)
        assert caught.value.hint
    with pytest.raises(IndexError, match="0 to 9"):
        SampleSource(length=10).image(10)


def test_linear_model_on_pixels_does_not_suffice() -> None:
    """Ridge regression on one-hot labels, in its dual form: 1,500 images at 32 px, 300 to test."""
    train, val = SampleSource("train", 32), SampleSource("val", 32)
    inputs = np.stack([pixels(train, i).ravel() for i in range(1500)]).astype(np.float32)
    tests = np.stack([pixels(val, i).ravel() for i in range(300)]).astype(np.float32)
    mean, std = inputs.mean(0), inputs.std(0)
    inputs, tests = (inputs - mean) / std, (tests - mean) / std
    targets = np.eye(len(SHAPES), dtype=np.float32)[[train.label(i) for i in range(1500)]] - 1 / len(SHAPES)
    kernel = inputs @ inputs.T
    labels = np.array([val.label(i) for i in range(300)])
    accuracies = []
    for ridge in (0.3, 3.0):
        scaled = ridge * inputs.shape[1] * np.eye(1500, dtype=np.float32)
        logits = tests @ (inputs.T @ np.linalg.solve(kernel + scaled, targets))
        accuracies.append((logits.argmax(1) == labels).mean())
    assert max(accuracies) < 0.5
    assert max(accuracies) > 0.1  # it is no noise either
