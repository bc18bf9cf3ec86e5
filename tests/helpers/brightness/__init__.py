"""A task as another package would bring it: the mean brightness of an image, learned from the image itself."""

from __future__ import annotations

from beitcli.config.tasks import TaskDefinition

TASK = TaskDefinition(
    name="brightness",
    kind="photometer",
    engine="brightness",
    opener="brightness.network:photometer_of",
    recipe="tiny",
    default_head="linear",
    prefix="gauge.",
)
