"""Average precision: hand-computed examples, crowds, and metrics that nothing can be said of."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from beitcli.data.annotations.boxes import BoxLabels
from beitcli.data.annotations.instance_masks import Bitmap, encoded
from beitcli.engine.detection.metrics import Detections, average_precision


def marked(*boxes: tuple[float, ...], labels: tuple[int, ...] | None = None, crowd: tuple[int, ...] = ()) -> BoxLabels:
    array = np.array(boxes, np.float32).reshape(-1, 4)
    return BoxLabels(
        boxes=array,
        labels=np.array(labels or (0,) * len(boxes), np.int64),
        crowd=np.array([number in crowd for number in range(len(boxes))], bool),
        areas=((array[:, 2] - array[:, 0]) * (array[:, 3] - array[:, 1])).astype(np.float64),
        size=(100, 100),
    )


def found(*rows: tuple[float, tuple[float, ...]], label: int = 0) -> Detections:
    return Detections(
        np.array([box for _, box in rows], np.float32).reshape(-1, 4),
        np.full(len(rows), label, np.int64),
        np.array([score for score, _ in rows], np.float32),
    )


def test_average_precision_equals_the_hand_computed_one():
    """Three objects, three detections: one exact, one beside everything, one that overlaps by 0.62.

    Up to an overlap of 0.6 (3 of 10): right, wrong, right. Precision 1 to a recall of 1/3 (34 of 101 points), 2/3 to
    one of 2/3 (33 points). Beyond (7 of 10): right, wrong, wrong, so only the 34 points.
    """
    truth = [marked((0, 0, 10, 10), (20, 20, 40, 40)), marked((0, 0, 50, 50))]
    guesses = [found((0.9, (0, 0, 10, 10)), (0.8, (60, 60, 70, 70))), found((0.7, (0, 0, 50, 31)))]
    metrics = average_precision(truth, guesses, 2)
    loose, strict = (34 + 33 * 2 / 3) / 101, 34 / 101
    assert metrics.ap == pytest.approx((3 * loose + 7 * strict) / 10)
    assert (metrics.ap50, metrics.ap75) == (pytest.approx(loose), pytest.approx(strict))
    assert metrics.ap_small == pytest.approx(51 / 101)  # one of two is found: 51 points
    assert metrics.ap_medium == pytest.approx(0.3)
    assert metrics.ap_large is None
    assert metrics.of_class == (pytest.approx(metrics.ap), None)


def test_mean_is_over_the_classes_that_are_there():
    truth = [marked((0, 0, 10, 10), (20, 20, 40, 40), labels=(0, 2))]
    both = found((0.9, (0, 0, 10, 10)))
    wrong = Detections(np.concatenate([both.boxes, both.boxes]), np.array([0, 1]), np.array([0.9, 0.8], np.float32))
    metrics = average_precision(truth, [wrong], 3)
    assert metrics.of_class == (pytest.approx(1), None, 0.0)  # the second is guessed, but nowhere to be found
    assert metrics.ap == pytest.approx(0.5)


def test_what_is_found_in_a_crowd_counts_neither_for_nor_against():
    truth = [marked((0, 0, 10, 10), (50, 50, 100, 100), crowd=(1,))]
    guesses = found((0.9, (50, 50, 60, 60)), (0.8, (60, 60, 80, 80)), (0.7, (50, 50, 100, 100)), (0.6, (0, 0, 10, 10)))
    assert average_precision(truth, [guesses], 1).ap == pytest.approx(1)
    counted = [marked((0, 0, 10, 10), (50, 50, 100, 100))]
    assert average_precision(counted, [guesses], 1).ap < 0.7


def test_masks_are_measured_beside_the_boxes():
    """The boxes are the same; of the second object's mask 60% are found."""
    truth = marked((0, 0, 10, 10), (20, 20, 40, 40))
    masks = [np.zeros((100, 100), bool) for _ in range(3)]
    masks[0][:10, :10] = masks[1][20:40, 20:40] = masks[2][20:32, 20:40] = True
    truth = replace(truth, outlines=(Bitmap.of(masks[0]), Bitmap.of(masks[1])))
    guesses = found((0.9, (0, 0, 10, 10)), (0.8, (20, 20, 40, 40)))
    guesses = replace(guesses, masks=(encoded(masks[0]), encoded(masks[2])))
    metrics = average_precision([truth], [guesses], 1)
    assert metrics.ap == pytest.approx(1)
    assert (metrics.mask_ap50, metrics.mask_ap75) == (pytest.approx(1), pytest.approx(51 / 101))
    assert 0.5 < metrics.mask_ap < 0.7
    assert average_precision([truth], [found((0.9, (0, 0, 10, 10)))], 1).mask_ap is None


def test_nothing_found_is_zero_and_nothing_to_find_is_none(capsys):
    nothing = average_precision([marked((0, 0, 10, 10)), marked()], [found(), found()], 1)
    assert (nothing.ap, nothing.ap_small, nothing.ap_large, nothing.of_class) == (0.0, 0.0, None, (0.0,))
    empty = average_precision([marked()], [found((0.9, (0, 0, 10, 10)))], 1)
    assert (empty.ap, empty.of_class) == (None, (None,))
    assert capsys.readouterr().out == ""  # pycocotools prints


def test_order_of_the_images_changes_nothing():
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 60, (12, 2))
    truth = [marked((x, y, x + 20, y + 20)) for x, y in corners]
    guesses = [found((score, (x + off, y, x + 20, y + 20))) for (x, y), score, off in zip(
        corners, rng.random(12), rng.uniform(0, 8, 12), strict=True)]  # fmt: skip
    order = rng.permutation(12)
    again = average_precision([truth[i] for i in order], [guesses[i] for i in order], 1)
    assert again == average_precision(truth, guesses, 1)
