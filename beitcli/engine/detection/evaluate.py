"""`beit eval` of a detector: average precision over the data set (COCO's), boxes in the images' own pixels."""

from __future__ import annotations

from dataclasses import dataclass

from beitcli.config.evaluate import EvalConfig
from beitcli.data.loading.sampler import select_limit
from beitcli.data.sources.detection import open_detection
from beitcli.engine.detection.inference import score
from beitcli.engine.detection.metrics import require_pycocotools
from beitcli.engine.events import OnEvent, Warned, ignore, openings, warn
from beitcli.engine.trainer.bad_images import Bad, refuse_many_bad
from beitcli.errors import DataError
from beitcli.models.checkpoints.build import detector_of
from beitcli.models.checkpoints.handle import CheckpointHandle
from beitcli.runtime.compute.device import choose_workers, join_compute


@dataclass(frozen=True)
class DetectionEvalReport:
    """Figures as fractions in 0-1, None where nothing is to be found; `bad` images are left out of `images`.

    Attributes:
        ap_of_class: By class name.
    """

    model: str
    data: str
    task: str
    protocol: str
    images: int
    bad: int
    ap: float | None
    ap50: float | None
    ap75: float | None
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    mask_ap: float | None
    mask_ap50: float | None
    mask_ap75: float | None
    ap_of_class: dict[str, float | None]


def evaluate_detector(
    config: EvalConfig, checkpoint: CheckpointHandle, on_event: OnEvent = ignore
) -> DetectionEvalReport:
    """Measures a detector.

    Args:
        checkpoint: What `config.model` names.

    Raises:
        DataError: No annotations, categories the model does not know, no box at all, or too many bad images.
        UsageError: pycocotools is not installed.
    """
    require_pycocotools()
    model, checkpoint = detector_of(checkpoint, config.size)
    checkpoint = checkpoint.normalized(config.normalization)
    compute = join_compute(config, checkpoint.compute(config.device, config.precision))
    world, on_event = compute.world, compute.world.rank_zero_only(on_event)
    warn(checkpoint.warnings, on_event)
    source = world.rank_zero_first(
        lambda: open_detection(
            config.data,
            split=config.split,
            role="eval",
            outlines=model.head_name == "mask-rcnn",
            sample_size=max(model.architecture.image_size),
            on_progress=openings(on_event),
        )
    )
    left_out: list[Bad] = [(-1, path, reason) for path, reason in source.bad]
    refuse_many_bad(left_out, len(source) + len(left_out), config.max_bad, "Mend the annotations or raise --max-bad.")
    source = source.renamed(checkpoint.classes)
    if config.limit is not None and config.limit < len(source):
        source, left_out = source.some(select_limit(source, config.limit, config.seed)), []
    if not any(len(source.boxes(index)) for index in range(len(source))):
        raise DataError(f"None of the {len(source)} images of '{source.name}' has a box.", "Check the annotations.")
    workers = choose_workers(config.workers, compute.device, world.local_size)
    model.to(compute.device)
    scored = score(model, source, checkpoint.normalization, compute, config.batch_size, workers, on_event)
    bad = [*left_out, *scored.bad]
    refuse_many_bad(bad, len(source) + len(left_out), config.max_bad, "Mend or remove them, or raise --max-bad.")
    if bad:
        on_event(Warned(f"{len(bad)} images are left out, the first: {bad[0][1]}: {bad[0][2]}."))
    figures = scored.figures
    return DetectionEvalReport(
        model=config.model,
        data=" ".join(config.data),
        task="detect",
        protocol="head",
        images=scored.images,
        bad=len(bad),
        ap=figures.ap,
        ap50=figures.ap50,
        ap75=figures.ap75,
        ap_small=figures.ap_small,
        ap_medium=figures.ap_medium,
        ap_large=figures.ap_large,
        mask_ap=figures.mask_ap,
        mask_ap50=figures.mask_ap50,
        mask_ap75=figures.mask_ap75,
        ap_of_class=dict(zip(checkpoint.classes, figures.of_class, strict=True)),
    )
