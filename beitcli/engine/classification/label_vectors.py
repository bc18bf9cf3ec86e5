"""Measures classifiers of several labels an image (multi-label), and models that predict numbers (regression).

AP of a label = sum over its thresholds of (recall_k - recall_(k-1)) * precision_k     as scikit-learn computes it
mAP           = mean of AP over the labels that any image has
micro-F1      = 2 TP / (2 TP + FP + FN) over all pairs of image and label, a label predicted from probability 0.5
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from beitcli.config.evaluate import EvalConfig
from beitcli.config.tasks.classify import TASK
from beitcli.data.sources.base import Source
from beitcli.data.sources.label_columns import vector_columns
from beitcli.engine.classification.inference import classify
from beitcli.engine.events import Progress
from beitcli.engine.io.inputs import open_inputs
from beitcli.engine.trainer.distributed_eval import Batching
from beitcli.engine.trainer.evaluation import evaluated, warn_bad
from beitcli.engine.trainer.reports import Evaluated
from beitcli.errors import DataError
from beitcli.models.checkpoints.build import Preprocessing, preprocessing
from beitcli.models.checkpoints.handle import CheckpointHandle
from beitcli.models.networks.classifier import ImageClassifier
from beitcli.runtime.metric_text import none_of

_THRESHOLD = 0.5


@dataclass(frozen=True)
class LabelMetrics:
    """Fractions in 0-1.

    Attributes:
        mean_ap: Mean over the labels that any image has.
    """

    mean_ap: float
    micro_f1: float


@dataclass(frozen=True)
class MultiLabelEvalReport(LabelMetrics, Evaluated):
    """Report of a multi-label classifier's evaluation."""


@dataclass(frozen=True)
class RegressionEvalReport(Evaluated):
    """Report of a regression's evaluation: errors in the units of the table, over all its numbers."""

    mean_absolute_error: float
    root_mean_square_error: float


@dataclass(frozen=True)
class VectorScores:
    """Outputs beside the table.

    Attributes:
        logits: (n, L) float32 of the images that were read, in order.
        targets: (n, L) float32.
        bad: (index, path, reason) of images that could not be read.
    """

    logits: np.ndarray
    targets: np.ndarray
    bad: list[tuple[int, str, str]]


def evaluate_vectors(
    config: EvalConfig, model: ImageClassifier, checkpoint: CheckpointHandle, batching: Batching
) -> MultiLabelEvalReport | RegressionEvalReport:
    """Evaluates a multi-label classifier or a regression on a table.

    Raises:
        DataError: DATA is no table, has other labels, or too many bad images.
    """
    size = max(model.architecture.image_size)
    source = batching.compute.world.rank_zero_first(
        lambda: open_inputs(config, sample_size=size, labelled="vectors", on_event=batching.on_event)
    )
    columns = vector_columns(source, checkpoint.classes, binary=checkpoint.problem == "multi-label")
    scores = score_vectors(
        model.to(batching.compute.device), source, columns, preprocessing(checkpoint, model), batching
    )
    warn_bad(config, scores.bad, len(source), batching.on_event, "unreadable image")
    images = len(scores.logits)
    if checkpoint.problem == "multi-label":
        metrics = label_metrics(scores.logits, scores.targets)
        return evaluated(config, TASK, MultiLabelEvalReport, images, scores.bad, **metrics)
    errors = np.abs(scores.logits.astype(np.float64) - scores.targets)
    return evaluated(
        config,
        TASK,
        RegressionEvalReport,
        images,
        scores.bad,
        mean_absolute_error=float(errors.mean()),
        root_mean_square_error=float(np.sqrt((errors**2).mean())),
    )


@torch.no_grad()
def score_vectors(
    model: ImageClassifier, source: Source, columns: Sequence[int], transform: Preprocessing, batching: Batching
) -> VectorScores:
    """Returns outputs and targets of every readable image; alike on all ranks."""
    world = batching.compute.world
    mine: list[tuple[int, np.ndarray, np.ndarray]] = []
    bad: list[tuple[int, str, str]] = []
    for batch, logits in classify(model, source, transform, batching):
        bad += batch.bad
        if not len(batch):
            continue
        targets = batch.tensors["label_vectors"][:, list(columns)].cpu().numpy()
        mine += zip(batch.indices, logits.cpu().numpy(), targets, strict=True)
        batching.on_event(Progress("eval", min(len(source), len(mine) * world.size), len(source), "image"))
    parts = world.gather((mine, bad))
    rows = sorted((row for part in parts for row in part[0]), key=lambda row: row[0])
    if not rows:
        raise DataError(
            f"{none_of(len(source), 'image', source.name, 'can be read', 'cannot be read')}.",
            "`beit doctor DATA` says why of each.",
        )
    outputs, truth = (np.stack([row[place] for row in rows]) for place in (1, 2))
    return VectorScores(outputs, truth, sorted(record for part in parts for record in part[1]))


def label_metrics(logits: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """Returns `mean_ap` and `micro_f1`; 0 where no image has any label.

    Args:
        logits: (n, L).
        targets: (n, L), 0 or 1.
    """
    positive = targets > 0
    labels = np.flatnonzero(positive.any(axis=0))
    precisions = [average_precision(logits[:, label], positive[:, label]) for label in labels]
    predicted = logits >= np.log(_THRESHOLD / (1 - _THRESHOLD))
    right = int((predicted & positive).sum())
    total = int(predicted.sum()) + int(positive.sum())
    return {
        "mean_ap": float(np.mean(precisions)) if precisions else 0.0,
        "micro_f1": 2 * right / total if total else 0.0,
    }


def average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    """Returns the area below precision over recall, without interpolation; images of equal score count together.

    Args:
        scores: (n,).
        positive: (n,) bool, at least one True.
    """
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], positive[order]
    last = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)  # of each threshold
    true = np.cumsum(hits)[last]
    precision, recall = true / (last + 1), true / true[-1]
    return float((np.diff(recall, prepend=0.0) * precision).sum())
