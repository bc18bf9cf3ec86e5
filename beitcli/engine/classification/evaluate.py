"""`beit eval` of a classifier: accuracy on labelled images (bicubic resize and center crop, as in the release).

Every readable image counts once. Top-k is the share of images whose label is among the k most likely classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from beitcli.config.evaluate import EvalConfig
from beitcli.config.tasks.classify import TASK
from beitcli.data.sources.base import Source
from beitcli.data.sources.class_match import refuse_unknown
from beitcli.engine.classification.inference import classify
from beitcli.engine.classification.label_vectors import (
    MultiLabelEvalReport,
    RegressionEvalReport,
    evaluate_vectors,
)
from beitcli.engine.events import OnEvent, Progress, ignore
from beitcli.engine.io.inputs import open_inputs
from beitcli.engine.report.intervals import commonest_share, share_interval
from beitcli.engine.trainer.distributed_eval import Batching
from beitcli.engine.trainer.evaluation import evaluated, join_evaluation, warn_bad
from beitcli.engine.trainer.reports import Evaluated
from beitcli.models.checkpoints.build import Preprocessing, classifier_of, preprocessing
from beitcli.models.checkpoints.handle import CheckpointHandle
from beitcli.models.checkpoints.metadata import IMAGENETS
from beitcli.models.networks.classifier import ImageClassifier


@dataclass(frozen=True)
class Accuracy:
    """Fractions in 0-1."""

    top1: float
    top5: float


@dataclass(frozen=True)
class EvalReport(Accuracy, Evaluated):
    """Report of a classifier's evaluation.

    Attributes:
        top1_interval: Wilson's, of 95%.
        baseline_accuracy: Top-1 of always guessing the most frequent class of these images.
        classes: Those of the model.
    """

    top1_interval: tuple[float, float]
    baseline_accuracy: float
    classes: int


@dataclass(frozen=True)
class Scores:
    """Result of an evaluation.

    Attributes:
        images: Number of images that were read.
        bad: (index, path, reason) of images that could not be read.
        records: (n, 4) float64, a row an image in their order: its index, its class, the predicted class, and the
            probability of that one.
    """

    images: int
    bad: list[tuple[int, str, str]]
    top1: float
    top5: float
    records: np.ndarray


def evaluate(
    config: EvalConfig, checkpoint: CheckpointHandle, on_event: OnEvent = ignore
) -> EvalReport | MultiLabelEvalReport | RegressionEvalReport:
    """Evaluates a classifier; one of several labels an image, or a regression, on a table.

    Args:
        checkpoint: The one that `config.model` names.

    Raises:
        DataError: No labels, classes that the model does not have, or too many bad images.
    """
    model, checkpoint = classifier_of(checkpoint, config.size)
    checkpoint = checkpoint.normalized(config.normalization)
    batching = join_evaluation(config, checkpoint, on_event)
    if checkpoint.problem != "single-label":
        return evaluate_vectors(config, model, checkpoint, batching)
    size = max(model.architecture.image_size)
    source = batching.compute.world.rank_zero_first(
        lambda: open_inputs(config, sample_size=size, labelled=True, on_event=batching.on_event)
    )
    columns = class_columns(source, checkpoint.classes)
    scores = score(model.to(batching.compute.device), source, columns, preprocessing(checkpoint, model), batching)
    warn_bad(config, scores.bad, len(source), batching.on_event, "unreadable image")
    return evaluated(
        config,
        TASK,
        EvalReport,
        scores.images,
        scores.bad,
        top1=scores.top1,
        top5=scores.top5,
        top1_interval=share_interval(scores.top1, scores.images),
        baseline_accuracy=commonest_share(scores.records[:, 1]),
        classes=len(checkpoint.classes),
    )


def class_names(checkpoint: CheckpointHandle) -> tuple[str, ...]:
    """Returns the class names of a classifier; those of ImageNet if it only has their number."""
    classes = checkpoint.classes
    if not checkpoint.names_classes and len(classes) in IMAGENETS:
        from timm.data import ImageNetInfo

        names = ImageNetInfo(IMAGENETS[len(classes)])
        return tuple(names.index_to_description(index) for index in range(len(classes)))
    return classes


def class_columns(source: Source, classes: Sequence[str], val: str = "") -> list[int]:
    """Returns the model's output index of each class of the source, by name; for ImageNet also by WordNet ID.

    Args:
        val: In a finetuning what a message calls the source, such as `--val 'PATH'`.

    Raises:
        DataError: The model does not have a class.
    """
    column_of = {name: column for column, name in enumerate(classes)}
    if len(classes) in IMAGENETS:
        from timm.data import ImageNetInfo

        ids = ImageNetInfo(IMAGENETS[len(classes)]).label_names()
        column_of = {name: column for column, name in enumerate(ids)} | column_of
    refuse_unknown(source.classes or (), classes, val or f"'{source.name}'", others=column_of, is_val=bool(val))
    return [column_of[name] for name in source.classes or ()]


@torch.no_grad()
def score(
    model: ImageClassifier, source: Source, columns: list[int], transform: Preprocessing, batching: Batching
) -> Scores:
    """Returns top-1 and top-5 of a model in evaluation mode over every readable image of a labelled source.

    Args:
        columns: From `class_columns`.
        transform: Preprocessing of the images.
    """
    world = batching.compute.world
    right1 = right5 = seen = 0
    bad: list[tuple[int, str, str]] = []
    mine: list[np.ndarray] = []
    column = np.array(columns, dtype=np.int64)
    for batch, logits in classify(model, source, transform, batching):
        bad += batch.bad
        if not len(batch):
            continue
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices
        likely = logits.softmax(dim=1).gather(1, best[:, :1])
        facts = torch.cat((likely, best.float()), dim=1).cpu().numpy()  # read at once: each read waits for the device
        targets = column[batch.tensors["labels"].numpy()]
        hits = facts[:, 1:] == targets[:, None]
        right1 += int(hits[:, 0].sum())
        right5 += int(hits.any(axis=1).sum())
        seen += len(batch)
        mine.append(np.column_stack((np.array(batch.indices, dtype=np.float64), targets, facts[:, 1], facts[:, 0])))
        done = min(len(source), seen * world.size)
        batching.on_event(Progress("eval", done, len(source), "image"))
    parts = world.gather((seen, right1, right5, bad, mine))
    seen, right1, right5 = (sum(part[number] for part in parts) for number in range(3))
    bad = sorted(record for part in parts for record in part[3])
    records = np.concatenate([np.empty((0, 4)), *(each for part in parts for each in part[4])])
    records = records[np.argsort(records[:, 0], kind="stable")]
    return Scores(seen, bad, right1 / max(1, seen), right5 / max(1, seen), records)
