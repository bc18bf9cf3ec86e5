"""Image classification."""

from __future__ import annotations

from beitcli.config.tasks import TaskDefinition

TASK = TaskDefinition(
    name="classify",
    kind="classifier",
    engine="beitcli.engine.classification",
    opener="beitcli.models.checkpoints.build:classifier_of",
    output="lines",
    data="beitcli.data.sources.label_columns:require_labels",
    default_head="linear",
    shards=True,
)
