"""Semantic segmentation."""

from __future__ import annotations

from beitcli.config.registry import Registry
from beitcli.config.tasks import TaskDefinition

HEADS = Registry("beitcli.heads.segmentation", "HEAD", "segmentation head")
TASK = TaskDefinition(
    name="segment",
    kind="segmenter",
    engine="beitcli.engine.segmentation",
    opener="beitcli.models.checkpoints.build:load_segmenter",
    output="folder",
    predicts_into_folder="masks",
    data="beitcli.data.sources.segmentation:require_masks",
    recipe="base-ade20k",
    default_head="upernet",
    heads=HEADS,
    prefix="decode_head.",
    classifier="decode_head.conv_seg.weight",
    eval_options=("--multi-scale", "--flip"),
    predict_options=("-o", "masks/", "--overlay"),
)
