"""`beit eval` of a classifier: its figures on labelled images (as in the release: bicubic resize, central crop).

Every readable image counts once. Top-k is the share of images whose label is among the k likeliest classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from timm.data import ImageNetInfo

from beitcli.config.evaluate import EvalConfig
from beitcli.data.loading.batches import Batch, ordered_batches
from beitcli.data.sources.base import Source
from beitcli.data.transforms.base import evaluation_view, normalize
from beitcli.engine.events import OnEvent, Progress, Warned, ignore, warn
from beitcli.engine.io.inputs import open_inputs
from beitcli.engine.trainer.bad_images import refuse_many_bad
from beitcli.engine.trainer.distributed_eval import synchronized_batches
from beitcli.errors import DataError
from beitcli.models.checkpoints.build import Preprocessing, classifier_of, preprocessing
from beitcli.models.checkpoints.handle import CheckpointHandle
from beitcli.models.checkpoints.metadata import IMAGENETS
from beitcli.models.networks.classifier import ImageClassifier
from beitcli.runtime.compute.device import Compute, choose_workers, join_compute


@dataclass(frozen=True)
class EvalReport:
    """Figures as fractions in 0-1; `bad` images are left out of `images`."""

    model: str
    data: str
    task: str
    protocol: str
    images: int
    bad: int
    top1: float
    top5: float


@dataclass(frozen=True)
class Scores:
    images: int
    bad: list[tuple[int, str, str]]
    top1: float
    top5: float


def evaluate_classifier(config: EvalConfig, checkpoint: CheckpointHandle, on_event: OnEvent = ignore) -> EvalReport:
    """Measures a classifier.

    Args:
        checkpoint: What `config.model` names.

    Raises:
        DataError: No labels, classes the model does not know, or too many bad images.
    """
    model, checkpoint = classifier_of(checkpoint, config.size)
    checkpoint = checkpoint.normalized(config.normalization)
    compute = join_compute(config, checkpoint.compute(config.device, config.precision))
    on_event = compute.world.rank_zero_only(on_event)
    warn(checkpoint.warnings, on_event)
    size = max(model.architecture.image_size)
    source = compute.world.rank_zero_first(
        lambda: open_inputs(config, sample_size=size, labelled=True, on_event=on_event)
    )
    columns = class_columns(source, checkpoint.classes)
    workers = choose_workers(config.workers, compute.device, compute.world.local_size)
    view = preprocessing(checkpoint, model)
    scores = score(model.to(compute.device), source, columns, view, compute, config.batch_size, workers, on_event)
    refuse_many_bad(scores.bad, len(source), config.max_bad, "Mend or remove them, or raise --max-bad.")
    if scores.bad:
        on_event(Warned(f"{len(scores.bad)} unreadable images are left out, the first: {scores.bad[0][1]}."))
    return EvalReport(
        model=config.model,
        data=" ".join(config.data),
        task="classify",
        protocol=config.protocol,
        images=scores.images,
        bad=len(scores.bad),
        top1=scores.top1,
        top5=scores.top5,
    )


def class_names(checkpoint: CheckpointHandle) -> tuple[str, ...]:
    """Of a classifier; those of ImageNet, where it says only how many there are."""
    classes = checkpoint.classes
    if not checkpoint.names_classes and len(classes) in IMAGENETS:
        names = ImageNetInfo(IMAGENETS[len(classes)])
        return tuple(names.index_to_description(index) for index in range(len(classes)))
    return classes


def class_columns(source: Source, classes: Sequence[str]) -> list[int]:
    """The model's column of each class of the source, matched by name, ImageNet's by WordNet's ids too.

    Raises:
        DataError: The model does not know a class.
    """
    column_of = {name: column for column, name in enumerate(classes)}
    if len(classes) in IMAGENETS:
        ids = ImageNetInfo(IMAGENETS[len(classes)]).label_names()
        column_of = {name: column for column, name in enumerate(ids)} | column_of
    unknown = [name for name in source.classes or () if name not in column_of]
    if unknown:
        raise DataError(
            f"{len(unknown)} classes of the data are none of the model's {len(classes)} (first: '{unknown[0]}').",
            "Name the class folders as in training, or finetune on this data.",
        )
    return [column_of[name] for name in source.classes or ()]


@torch.no_grad()
def score(
    model: ImageClassifier,
    source: Source,
    columns: list[int],
    view: Preprocessing,
    compute: Compute,
    batch_size: int,
    workers: int,
    on_event: OnEvent = ignore,
    check_stop: Callable[[], None] = lambda: None,
) -> Scores:
    """Top-1 and top-5 of a model in evaluation mode over every readable image of a labelled source.

    Args:
        columns: From `class_columns`.
        view: Of the images.
        check_stop: See `synchronized_batches`.
    """
    world = compute.world
    right1 = right5 = seen = 0
    bad: list[tuple[int, str, str]] = []
    column = torch.tensor(columns, device=compute.device)
    for batch, logits in classify(model, source, view, compute, batch_size, workers, check_stop):
        bad += batch.bad
        if not len(batch):
            continue
        wanted = column[batch.tensors["labels"].to(compute.device)].unsqueeze(1)
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices
        hits = best == wanted
        right1 += int(hits[:, 0].sum())
        right5 += int(hits.any(dim=1).sum())
        seen += len(batch)
        on_event(Progress("eval", min(len(source), seen * world.size), len(source), "image", {"top1": right1 / seen}))
    parts = world.gather((seen, right1, right5, bad))
    seen, right1, right5 = (sum(part[number] for part in parts) for number in range(3))
    bad = sorted(record for part in parts for record in part[3])
    return Scores(seen, bad, right1 / max(1, seen), right5 / max(1, seen))


def classify(
    model: ImageClassifier,
    source: Source,
    view: Preprocessing,
    compute: Compute,
    batch_size: int,
    workers: int,
    check_stop: Callable[[], None] = lambda: None,
) -> Iterator[tuple[Batch, torch.Tensor]]:
    """This process's batches in order with their (B, classes) fp32 logits; an empty batch has none."""
    crop, world = evaluation_view(model.architecture.image_size, view.crop_share), compute.world
    batches = ordered_batches(source, crop, batch_size=batch_size, workers=workers, share=(world.rank, world.size))
    for batch in synchronized_batches(batches, len(source), batch_size, world, check_stop):
        if not len(batch):
            yield batch, torch.empty(0)
            continue
        images = normalize(batch.to(compute.device)["images"], *view.normalization)
        with torch.inference_mode(), compute.autocast():
            logits = model(images)
        yield batch, logits.float()
