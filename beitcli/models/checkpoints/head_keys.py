"""Maps the state-dict keys of segmentation and detection heads to ours, and identifies the head. Imports no torch.

The keys of the release (mmseg) and of transformers are those of segmentation; other heads are known by our keys only.

| here | the release | transformers on disk | transformers 5 in memory |
|---|---|---|---|
| decode_head.fpn1.0 | backbone.fpn1.0 | fpn1.0 | fpn.fpn1.conv_transpose1 |
| decode_head.psp_modules.0.1.conv | the same | the same | decode_head.psp_modules.blocks.0.conv.convolution |
| decode_head.bottleneck | the same | the same | decode_head.psp_bottleneck |
| decode_head.conv_seg | the same | decode_head.classifier | decode_head.classifier |
| decode_head.auxiliary | auxiliary_head | auxiliary_head | auxiliary_head |
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from beitcli.config.tasks import task_of_head

_BEGINNINGS = ("decode_head.", "auxiliary_head.", "fpn")
_RENAMED = (
    (r"^backbone\.", ""),
    (r"^fpn\.", ""),
    (r"^fpn1\.conv_transpose1\.", "fpn1.0."),
    (r"^fpn1\.normalization\.", "fpn1.1."),
    (r"^fpn1\.conv_transpose2\.", "fpn1.3."),
    (r"^fpn2\.(weight|bias)$", r"fpn2.0.\1"),
    (r"^(fpn[12]\.)", r"decode_head.\1"),
    (r"^auxiliary_head\.", "decode_head.auxiliary."),
    (r"\.psp_modules\.blocks\.(\d+)\.conv\.", r".psp_modules.\1.1."),
    (r"\.psp_bottleneck\.", ".bottleneck."),
    (r"\.convolution\.", ".conv."),
    (r"\.normalization\.", ".bn."),
    (r"\.classifier\.", ".conv_seg."),
)


def head_name(name: str, *, of_transformers: bool = False) -> str | None:
    """Returns our key of a head's tensor; None if the tensor does not belong to a head.

    Args:
        of_transformers: Whether the file has Hugging Face's keys; in all others the keys inside a head are ours.
    """
    if not of_transformers and task_of_head([name]):
        return name
    if not name.removeprefix("backbone.").startswith(_BEGINNINGS):
        return None
    for pattern, ours in _RENAMED:
        name = re.sub(pattern, ours, name)
    return name


def head_kind(names: Iterable[str]) -> str | None:
    """Identifies a head by its `KEYS` among our keys; if several match, the one with the most; None if none does."""
    names = set(names)
    task = task_of_head(names)
    if task is None or task.heads is None:
        return None
    keys = {head: task.heads.literal(head, "KEYS", ()) for head in task.heads.names()}
    told = [head for head, needed in keys.items() if needed and names.issuperset(needed)]
    return max(told, key=lambda head: len(keys[head]), default=None)


def head_classes(head: str | None, layout: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Returns the number of classes of a head, from the shape of its classifier; 0 if unknown.

    Args:
        head: Name of the head; None if unknown here.
        layout: Our key -> the file's key.
        shapes: Shapes by the file's keys.
    """
    task = task_of_head(layout)
    if task is None:
        return 0
    classifier = task.heads.literal(head, "CLASSIFIER", task.classifier) if task.heads and head else task.classifier
    shape = shapes.get(layout.get(classifier, ""), ())
    return max(0, shape[0] - task.background) if shape else 0
