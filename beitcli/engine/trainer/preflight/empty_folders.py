"""A finding about folders without images beside those of the classes."""

from __future__ import annotations

import os
from collections.abc import Iterator

from beitcli.data.sources.base import Source
from beitcli.data.sources.files import folders_below
from beitcli.data.sources.formats.folder import FolderSource
from beitcli.engine.trainer.preflight.findings import Finding
from beitcli.runtime.metric_text import counted

_MOST_FOLDERS = 10_000  # below DATA, looked at


def empty_folder_findings(training: Source) -> Iterator[Finding]:
    """Yields whether folders beside those of the classes hold no images, and so are no classes."""
    empty: list[str] = []
    for leaf in training.leaves():
        if isinstance(leaf, FolderSource) and leaf.classes is not None:
            there, with_images = folders_below(leaf.root)[:_MOST_FOLDERS], set(leaf.classes)
            empty += [os.path.join(leaf.root, name) for name in there if name not in with_images]
    if empty:
        yield Finding(
            "empty-folders",
            "warning",
            f"{counted(len(empty), 'folder')} without images will be no class, the first: '{empty[0]}'.",
            "Put images there, or remove it.",
        )
