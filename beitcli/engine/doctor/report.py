"""The report of `beit doctor`: facts, findings with the images that they are about, copies, and what splits share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from beitcli.config.pretrain import PretrainConfig
from beitcli.data.sources.base import Source
from beitcli.engine.doctor.collect import Collected, class_counts, size_counts
from beitcli.engine.doctor.copies import Copies, find_copies
from beitcli.engine.doctor.label_conflicts import label_conflicts
from beitcli.engine.doctor.likeness import likenesses
from beitcli.engine.doctor.marks import LIST, MARKS
from beitcli.engine.doctor.paths import Paths
from beitcli.engine.trainer.preflight.amount import few_findings, held_out_images, one_image_findings
from beitcli.engine.trainer.preflight.empty_folders import empty_folder_findings
from beitcli.engine.trainer.preflight.findings import Severity
from beitcli.engine.trainer.preflight.schedule import class_findings
from beitcli.escaping import shell_word
from beitcli.runtime.metric_text import counted

MOST_EXAMPLES = 100  # paths of a finding in JSON
_ALIKE = "Some may only be alike: look at them. A list has all of them, unless --drop names near-duplicates."
SAME = {"bytes": "byte for byte", "pixels": "in every pixel", "near": "nearly"}


@dataclass(frozen=True)
class DataFinding:
    """Something about some of the images.

    Attributes:
        kind: Word that programs can tell it by.
        images: Number of images; 0 if it is about the whole.
        what: A sentence.
        way_out: What this program does, or what to do.
        examples: Path and words of the first images.
    """

    kind: str
    severity: Severity
    images: int
    what: str
    way_out: str = ""
    examples: list[dict[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class CopyGroup:
    """Images that are the same.

    Attributes:
        same: What is: `bytes`, `pixels` or `near`; of several, the least.
        splits: Those of the members, without repetition.
    """

    same: str
    splits: list[str]
    paths: list[str]


@dataclass(frozen=True)
class DoctorReport:
    """Report of `beit doctor`.

    Attributes:
        splits: Images of each split, by its name; `all` where there is one only.
        sizes: Shorter sides in pixels: `median`, `least`, `greatest`, and `histogram` with images by upper bound.
        classes: Images of each class, by split.
        copies: Groups of images that are the same, within and across splits.
        shared: Images of a split that are in an earlier one too.
    """

    data: str
    images: int
    readable: int
    unreadable: int
    bytes: int
    splits: dict[str, int]
    formats: dict[str, int]
    sizes: dict[str, Any]
    classes: dict[str, dict[str, int]]
    findings: list[DataFinding]
    copies: list[CopyGroup]
    shared: int
    left_aside: list[str]


@dataclass(frozen=True)
class Diagnosis:
    """A report with the indices that it is about.

    Attributes:
        names: Of the splits, in order; the images of each follow those of the one before.
        starts: (splits + 1,) first index of each.
        image_of: (kind, indices) of findings about single images.
        conflicts: Of `label_conflicts`.
    """

    report: DoctorReport
    collected: Collected
    copies: list[Copies]
    names: list[str]
    starts: np.ndarray
    image_of: dict[str, np.ndarray]
    conflicts: list[tuple[int, int, str, str]]

    def split_of(self, index: int) -> int:
        return int(np.searchsorted(self.starts, index, side="right")) - 1

    def with_list(self, name: str) -> Diagnosis:
        """Returns the same with the name of the list that is written where a way out names an example."""
        written = f"-o {shell_word(name)}"
        findings = [replace(each, way_out=each.way_out.replace(LIST, written)) for each in self.report.findings]
        return replace(self, report=replace(self.report, findings=findings))

    @property
    def copies_to_drop(self) -> dict[str, set[int]]:
        """Indices by `--drop`: in each group those that a split's earlier member or another split makes needless."""
        dropped: dict[str, set[int]] = {"duplicates": set(), "near-duplicates": set(), "overlap": set()}
        pixels = self.collected.signatures.pixels
        for group in self.copies:
            splits = [self.split_of(member) for member in group.members]
            seen: set[tuple[int, bytes]] = set()  # a group of near ones may hold equal ones
            earlier: set[int] = set()
            last = max(splits)
            for member, split in zip(group.members, splits, strict=True):
                key = (split, pixels[member].tobytes())
                if key in seen:
                    dropped["duplicates"].add(member)
                elif split in earlier:
                    dropped["near-duplicates"].add(member)
                seen.add(key)
                earlier.add(split)
                if last > split:
                    dropped["overlap"].add(member)
        return dropped


def diagnose(
    data: str, parts: dict[str, Source], collected: Collected, left_aside: list[str], to_train_on: int = 0
) -> Diagnosis:
    """Draws the conclusions of a pass.

    Args:
        parts: Sources by the name of their split; the pass was over all of them in this order.
        to_train_on: Images that a training would take, those beyond a `--limit` too, without those that are seen to be
            unreadable; 0 if it would take others.
    """
    names = list(parts)
    starts = np.cumsum([0, *(len(part) for part in parts.values())])
    paths = Paths(list(parts.values()), starts)
    copies = find_copies(collected.signatures)
    image_of = {name: collected.marked(name) for name in MARKS}
    conflicts = label_conflicts(copies, collected.signatures.pixels, paths.place)
    diagnosis = Diagnosis(_nothing(data), collected, copies, names, starts, image_of, conflicts)
    findings = [*_of_images(collected, image_of, paths), *_of_copies(diagnosis, paths), *_of_classes(parts)]
    findings += _of_conflicts(diagnosis, paths)
    findings += _of_trainings(to_train_on)
    readable = int(collected.signatures.readable.sum())
    groups = [
        CopyGroup(
            group.kind,
            list(dict.fromkeys(names[diagnosis.split_of(member)] for member in group.members)),
            [paths(member) for member in group.members],
        )
        for group in copies
    ]
    report = DoctorReport(
        data=data,
        images=int(starts[-1]),
        readable=readable,
        unreadable=int(starts[-1]) - readable,
        bytes=collected.stored_bytes,
        splits={name: len(part) for name, part in parts.items()},
        formats=dict(collected.formats.most_common()),
        sizes=size_counts(collected.sides),
        classes={name: counts for name, part in parts.items() if (counts := class_counts(part))},
        findings=sorted(findings, key=lambda each: each.severity != "warning"),
        copies=groups,
        shared=sum(len(_later(diagnosis, group)) for group in copies),
        left_aside=left_aside,
    )
    return replace(diagnosis, report=report)


def _nothing(data: str) -> DoctorReport:
    return DoctorReport(data, 0, 0, 0, 0, {}, {}, {}, {}, [], [], 0, [])


def _of_images(
    collected: Collected, image_of: dict[str, np.ndarray], paths: Callable[[int], str]
) -> Iterator[DataFinding]:
    total = len(collected.marks)
    for name, mark in MARKS.items():
        indices = image_of[name]
        if len(indices):
            examples = [
                {"path": paths(index), "why": collected.words.get((name, index), "")}
                for index in indices[:MOST_EXAMPLES].tolist()
            ]
            title = mark.title if len(indices) > 1 else mark.title_of_one
            what = f"{len(indices):,} of {counted(total, 'image')} {title}."
            yield DataFinding(name, mark.severity, len(indices), what, mark.way_out, examples)


def _later(diagnosis: Diagnosis, group: Copies) -> list[int]:
    """Returns the members whose split is not that of the first."""
    first = diagnosis.split_of(group.members[0])
    return [member for member in group.members if diagnosis.split_of(member) != first]


def _of_copies(diagnosis: Diagnosis, paths: Callable[[int], str]) -> Iterator[DataFinding]:
    counts: Counter[tuple[str, bool]] = Counter()
    examples: dict[tuple[str, bool], list[dict[str, str]]] = {}
    for group in diagnosis.copies:
        for copy in likenesses(group, diagnosis.collected.signatures, diagnosis.split_of):
            key = copy.kind, copy.is_apart
            counts[key] += 1
            if counts[key] <= MOST_EXAMPLES:
                examples.setdefault(key, []).append({"path": paths(copy.member), "why": f"as {paths(copy.of)}"})
    for kind, same in SAME.items():
        across, repeated = counts[kind, True], counts[kind, False]
        apart, within = (examples.get((kind, is_apart), []) for is_apart in (True, False))
        if across:
            what = f"{counted(across, 'image')} of a later split {_are(across)} also in an earlier one, {same}."
            way_out = "Metrics will be too good: a list written by -o leaves them out of the earlier split."
            yield DataFinding(f"overlap-{kind}", "warning", across, what, way_out, apart)
        if repeated:
            what = f"{counted(repeated, 'image')} repeat{'s'[: repeated == 1]} another of the same split, {same}."
            way_out = _ALIKE if kind == "near" else f"A list of the good ones ({LIST}) has one of each."
            severity: Severity = "note" if kind == "near" else "warning"
            yield DataFinding(f"duplicates-{kind}", severity, repeated, what, way_out, within)


def _of_conflicts(diagnosis: Diagnosis, paths: Paths) -> Iterator[DataFinding]:
    found = diagnosis.conflicts
    if found:
        examples = [
            {"path": paths(index), "why": f"labelled '{name}', its copy {paths(first)} '{other}'"}
            for index, first, name, other in found[:MOST_EXAMPLES]
        ]
        what = f"{counted(len(found), 'image')} {_are(len(found))} a copy of one of another class."
        way_out = f"One of the two labels is wrong: remove that file, before a list ({LIST}) takes one of them."
        yield DataFinding("label-conflict", "warning", len(found), what, way_out, examples)


def _are(number: int) -> str:
    return "is" if number == 1 else "are"


def _of_classes(parts: dict[str, Source]) -> Iterator[DataFinding]:
    def prefix(name: str) -> str:
        return f"Split {name}: " if len(parts) > 1 else ""

    for name, part in parts.items():
        for each in (*class_findings(part), *empty_folder_findings(part)):
            yield DataFinding(each.kind, each.severity, 0, prefix(name) + each.what, each.way_out)
        if part.classes is not None and len(part.classes) == 1:
            what = f"{prefix(name)}All images are of one class, '{part.classes[0]}'."
            yield DataFinding("one-class", "note", 0, what, "A classifier needs two: FOLDER/CLASS/image.jpg.")
    labelled = [(name, set(part.classes)) for name, part in parts.items() if part.classes is not None]
    for name, classes in labelled[1:]:
        further = sorted(classes - labelled[0][1])
        if further:
            what = f"{prefix(name)}{len(further):,} of its classes are not in {labelled[0][0]}, such as '{further[0]}'."
            yield DataFinding("unknown-classes", "warning", 0, what, "Add images of them.")


def _of_trainings(images: int) -> Iterator[DataFinding]:
    """Yields what `pretrain`, and the tokenizer that it may train before, would say of so many images.

    Args:
        images: Readable ones of the split to train on; of 0 nothing is said.
    """
    if not images:
        return
    held_out = held_out_images(images, PretrainConfig.holdout)
    if (alone := next(iter(one_image_findings("pretrain", images)), None)) is not None:
        what = f"1 image is too few to pretrain on: {alone.what.partition(': ')[2]}"
        yield DataFinding(f"{alone.kind}-to-pretrain", "note", 0, what, alone.way_out)
        way_out = "A trial: `beit train-tokenizer sample --recipe tiny`."
        what = "1 image is too few for a tokenizer, too."
        yield DataFinding(f"{alone.kind}-to-train-tokenizer", "note", 0, what, way_out)
        return
    for command, what in (("pretrain", "To pretrain on"), ("train-tokenizer", "For a tokenizer")):
        for each in few_findings(command, images - held_out, held_out):
            yield DataFinding(f"{each.kind}-to-{command}", "note", 0, f"{what}: {each.what}", each.way_out)
