"""The page of `beit doctor`: figures, and pictures of the images that it complains about."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from beitcli.data.sources.base import Source
from beitcli.engine.doctor.copies import Copies
from beitcli.engine.doctor.likeness import likenesses
from beitcli.engine.doctor.paths import Paths
from beitcli.engine.doctor.report import SAME, DataFinding, Diagnosis
from beitcli.errors import BadImage
from beitcli.pictures.page_file import Page, assemble, fill, image_url, page_part, plain_section
from beitcli.runtime.metric_text import counted, size_text

_MOST_PICTURES = 200
_MOST_OF_A_FINDING = 24
_MOST_GROUPS = 40
_MOST_IN_GROUP = 8
_MOST_CLASSES = 200
_SIDE = 128


def doctor_page(diagnosis: Diagnosis, parts: Sequence[Source]) -> str:
    """Builds the page as HTML."""
    report = diagnosis.report
    pictures = _Pictures(Paths(parts, diagnosis.starts), diagnosis.collected.signatures.readable, _MOST_PICTURES)
    findings = [_finding(each, diagnosis, pictures) for each in report.findings]
    groups = [
        {
            "splits": list(dict.fromkeys(diagnosis.names[diagnosis.split_of(member)] for member in group.members)),
            "total": len(group.members),
            **_members(group, diagnosis, pictures),
        }
        for group in sorted(diagnosis.copies, key=lambda each: each.kind == "near")[:_MOST_GROUPS]
    ]
    classes = [
        {"split": split, "counts": sorted(counts.items(), key=lambda pair: -pair[1])[:_MOST_CLASSES], "of": len(counts)}
        for split, counts in report.classes.items()
    ]
    data: dict[str, Any] = {
        "images": report.images,
        "readable": report.readable,
        "size": size_text(report.bytes),
        "splits": report.splits,
        "formats": report.formats,
        "sizes": report.sizes,
        "classes": classes,
        "findings": findings,
        "groups": groups,
        "all_groups": len(report.copies),
        "aside": report.left_aside,
    }
    body = fill(page_part("doctor/page.html"), title=report.data)
    styles, script = page_part("doctor/style.css"), page_part("doctor/page.js")
    texts = [
        f"{counted(report.images, 'image')}, of which {report.readable:,} can be read; {size_text(report.bytes)}.",
        "Pictures, copies, sizes and classes are drawn by JavaScript, which is off here.",
    ]
    rows = [(each["severity"], f"{each['what']} {each['way_out']}") for each in findings] or [("nothing found", "")]
    plain = plain_section(report.data, texts, rows)
    return assemble(Page(f"beit doctor: {report.data}", body, styles, script, data, plain))


def _members(group: Copies, diagnosis: Diagnosis, pictures: _Pictures) -> dict[str, Any]:
    """Returns the number of copies in a group by what they have in common, and pictures of its first images."""
    copies = likenesses(group, diagnosis.collected.signatures, diagnosis.split_of)
    counts: Counter[str] = Counter(copy.kind for copy in copies)
    names = {member: os.path.basename(pictures.paths(member)) for member in group.members[:_MOST_IN_GROUP]}
    images = [pictures.of(group.members[0])]
    for copy in copies[: _MOST_IN_GROUP - 1]:
        images.append(pictures.of(copy.member, f"{SAME[copy.kind]} as {names[copy.of]}"))
    return {"counts": [[SAME[kind], counts[kind]] for kind in SAME if counts[kind]], "images": images}


def _finding(finding: DataFinding, diagnosis: Diagnosis, pictures: _Pictures) -> dict[str, Any]:
    indices = diagnosis.image_of.get(finding.kind, np.array([], dtype=np.int64))[:_MOST_OF_A_FINDING].tolist()
    conflicts = diagnosis.conflicts[: _MOST_OF_A_FINDING // 2] if finding.kind == "label-conflict" else []
    words = diagnosis.collected.words
    return {
        "kind": finding.kind,
        "severity": finding.severity,
        "what": finding.what,
        "way_out": finding.way_out,
        "total": finding.images if indices or conflicts else 0,
        "named": len(finding.examples),
        "images": [pictures.of(index, words.get((finding.kind, index), "")) for index in indices],
        "pairs": [
            [pictures.of(first, f"labelled '{other}'"), pictures.of(index, f"labelled '{name}'")]
            for index, first, name, other in conflicts
        ],
    }


class _Pictures:
    """Small pictures of images, up to a number; further ones, and unreadable images, are names and a reason."""

    def __init__(self, paths: Paths, readable: np.ndarray, most: int) -> None:
        self.paths, self.left = paths, most
        self._readable = readable  # (images,) bool
        self._most = f"the page shows {most:,} pictures at most"
        self._made: dict[int, str] = {}

    def of(self, index: int, why: str = "") -> dict[str, str]:
        if not self._readable[index]:
            self._made[index] = ""
        elif index not in self._made and self.left > 0:
            part, inner = self.paths.place(index)
            try:
                image = part.image(inner)
            except BadImage:
                self._made[index] = ""
            else:
                image.thumbnail((_SIDE, _SIDE), Image.Resampling.BICUBIC)
                self._made[index] = image_url(image, quality=80)
                self.left -= 1
        picture = self._made.get(index)
        missing = self._most if picture is None else "" if picture else "cannot be read"
        return {"path": self.paths(index), "why": why, "picture": picture or "", "missing": missing}
