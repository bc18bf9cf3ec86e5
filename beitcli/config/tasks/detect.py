"""Object detection and instance segmentation."""

from __future__ import annotations

from beitcli.config.registry import Registry
from beitcli.config.tasks import TaskDefinition

HEADS = Registry("beitcli.heads.detection", "HEAD", "detection head")
TASK = TaskDefinition(
    name="detect",
    kind="detector",
    engine="beitcli.engine.detection",
    opener="beitcli.models.checkpoints.build:load_detector",
    output="folder",
    data="beitcli.data.sources.detection:require_annotations",
    recipe="base-coco",
    default_head="faster-rcnn",
    heads=HEADS,
    prefix="detection.",
    classifier="detection.roi_heads.box_predictor.cls_score.weight",
    background=1,
    predict_options=("-o", "boxes/"),
)
