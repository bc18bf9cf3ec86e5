"""mIoU by hand, and exactly as an independent numpy computation gives it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from beitcli.engine.segmentation.metrics import confusion, metrics_of


def test_figures_equal_the_example_computed_by_hand():
    """0: 2 hits, 4 labelled, 3 predicted, IoU 2/5; 1: 2 hits, 3 and 4, 2/5; 2: 1 of 1 and 1; 3 is nowhere."""
    targets = torch.tensor([[0, 0, 0, 0, 1], [1, 1, 2, 255, 255]])
    predicted = torch.tensor([[0, 0, 1, 1, 1], [1, 0, 2, 0, 3]])
    counts = confusion(predicted, targets, 4)
    assert counts.tolist() == [[2, 2, 0, 0], [1, 2, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    metrics = metrics_of(counts)
    assert metrics.iou == (0.4, 0.4, 1.0, None)
    assert metrics.miou == pytest.approx(1.8 / 3, abs=1e-15)
    assert metrics.pixel_accuracy == 5 / 8
    assert metrics.mean_accuracy == pytest.approx((2 / 4 + 2 / 3 + 1) / 3, abs=1e-15)


def test_figures_equal_numpy_s_on_fifty_random_label_maps():
    rng = np.random.default_rng(7)
    classes, absent = 9, 4
    pairs = []
    for _ in range(50):
        shape = tuple(rng.integers(1, 40, 2).tolist())
        targets = rng.integers(0, classes, shape).astype(np.uint8)
        targets[targets == absent] = 255  # never labelled
        targets[rng.random(shape) < rng.uniform(0, 0.5)] = 255
        predicted = np.where(rng.random(shape) < 0.5, targets, rng.integers(0, classes, shape)).astype(np.int64)
        predicted[predicted == 255] = int(rng.integers(classes))
        predicted[predicted == absent] = 0  # nor predicted
        pairs.append((predicted, targets))
    total = sum(confusion(torch.from_numpy(p), torch.from_numpy(t), classes) for p, t in pairs)
    assert total.dtype == torch.int64

    ious, accuracies, right, labelled = [], [], 0, 0
    for label in range(classes):
        intersection = sum(int(((p == label) & (t == label)).sum()) for p, t in pairs)
        union = sum(int((((p == label) | (t == label)) & (t != 255)).sum()) for p, t in pairs)
        area = sum(int((t == label).sum()) for p, t in pairs)
        ious.append(intersection / union if union else np.nan)
        accuracies.append(intersection / area if area else np.nan)
        right, labelled = right + intersection, labelled + area
    metrics = metrics_of(total)
    assert metrics.iou == tuple(None if np.isnan(iou) else iou for iou in ious)
    assert metrics.iou[absent] is None
    assert metrics.miou == pytest.approx(np.nanmean(ious), rel=1e-15)
    assert metrics.mean_accuracy == pytest.approx(np.nanmean(accuracies), rel=1e-15)
    assert metrics.pixel_accuracy == right / labelled


def test_counts_beyond_32_bits_stay_exact():
    metrics = metrics_of(torch.tensor([[2**40 + 1, 1], [0, 2**33]]))
    assert metrics.iou == ((2**40 + 1) / (2**40 + 2), 2**33 / (2**33 + 1))


def test_figures_of_nothing_labelled_are_zero():
    metrics = metrics_of(torch.zeros(3, 3, dtype=torch.int64))
    assert (metrics.miou, metrics.pixel_accuracy, metrics.iou) == (0.0, 0.0, (None, None, None))
