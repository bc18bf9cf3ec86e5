"""Reads what a report needs from the files of a run; what is missing, damaged or hostile is left out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beitcli.engine.report.run_state import (
    State,
    as_mapping,
    document_in,
    finite_numbers,
    is_step,
    newest_documents,
    newest_folder,
    read_run,
    settings_of_run,
)
from beitcli.engine.report.run_time import RunTime, time_of
from beitcli.engine.report.verdict import OF_OWN_TOKENIZER, Measured
from beitcli.runtime.metric_text import HELD_OUT
from beitcli.runtime.storage.regular_files import open_regular
from beitcli.runtime.storage.safe_json import parse_json

EVALUATION = "evaluation.json"
_PREVIEW = re.compile(r"step-([0-9]{7,})\.png")
_LARGEST_LOG = 256 << 20
_LARGEST_EVALUATION = 64 << 20
_BAD_NAMED = 20


@dataclass(frozen=True)
class RunRecord:
    """What the files of one run say.

    Attributes:
        settings: Of config.toml, without the command.
        rows: Lines of metrics.jsonl in order of their steps: finite numbers by name.
        bad: (path, reason) of the first unreadable images.
        bad_count: Number of all of them.
        fingerprint: Of the training data; empty if unknown.
        evaluation: The document of evaluation.json; empty without one.
        on_training: Whether the measured images are training images, too few to hold any out.
        time: How long it took, in its parts.
        vocab_size: Codes of a tokenizer, or of that whose tokens are predicted; 0 if unknown.
        tokenizer: What is known of the tokenizer that the run trained for itself; None without one.
    """

    path: Path
    command: str
    state: State
    step: int
    time: RunTime
    settings: dict[str, Any]
    rows: list[dict[str, float]]
    bad: list[tuple[str, str]]
    bad_count: int
    fingerprint: str
    evaluation: dict[str, Any]
    vocab_size: int = 0
    tokenizer: Measured | None = None
    on_training: bool = False

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def held_out(self) -> dict[str, float]:
        """Metrics of held-out images at the last save, without the prefix."""
        measured = self.measurings
        return measured[-1][1] if measured else {}

    @property
    def measurings(self) -> list[tuple[int, dict[str, float]]]:
        """(step, metrics of held-out images) of each save that measured them."""
        found = []
        for row in self.rows:
            own = {name.removeprefix(HELD_OUT): value for name, value in row.items() if name.startswith(HELD_OUT)}
            if own:
                found.append((int(row["step"]), own))
        return found

    @property
    def measured(self) -> Measured:
        """What the verdict rests on."""
        labelled: dict[int, int] = {}
        classes = self.evaluation.get("classes")
        classes = classes if isinstance(classes, list) else None
        with suppress(KeyError, TypeError, ValueError, OverflowError):
            for label, _, count in self.evaluation["confusion"] if "labelled" not in self.evaluation else ():
                labelled[int(label)] = labelled.get(int(label), 0) + int(count)
            labelled |= {n: int(count) for n, count in enumerate(self.evaluation.get("labelled", ()))}
        return Measured(
            tokenizer=self.tokenizer,
            command=self.command,
            measurings=self.measurings,
            vocab_size=self.vocab_size,
            classes=len(self.class_names if classes is None else classes),
            commonest=max(labelled.values(), default=0) / max(1, sum(labelled.values())),
            labelled=sum(count > 0 for count in labelled.values()),
            absent=frozenset(str(each) for n, each in enumerate(classes or ()) if labelled and not labelled.get(n)),
            on_training=self.on_training,
            length=self._length,
        )

    @property
    def _length(self) -> str:
        """The option of how long the training is; of a pretraining's own tokenizer that of the pretraining."""
        if self.command == "train-tokenizer" and self.path.resolve().name == "tokenizer":
            with suppress(OSError, ValueError):  # a run of its own
                if settings_of_run(self.path.resolve().parent).get("command") == "pretrain":
                    return OF_OWN_TOKENIZER
        return "--steps" if self.settings.get("steps") else "--epochs"

    @property
    def class_names(self) -> list[str]:
        """Classes that have a metric of their own."""
        return [name.partition("/")[2] for name in self.held_out if "/" in name]


def read_record(path: Path) -> RunRecord:
    """Reads a run. Raises OSError or ValueError if it has no readable config.toml."""
    settings = settings_of_run(path)
    run = read_run(path)
    newest = newest_folder(path / "checkpoints")
    trainer = document_in(newest, "trainer.json")
    saved = as_mapping(document_in(newest, "config.json").get("beit"))
    codes = as_mapping(saved.get("architecture")).get("vocab_size")
    if saved.get("target") == "tokens":
        codes = saved.get("outputs")
    bad = list(_bad_images(path / "bad-images.jsonl"))
    command = str(settings.pop("command", "?"))
    return RunRecord(
        path=path,
        command=command,
        state=run.state,
        step=run.step,
        time=time_of(path),
        settings=settings,
        rows=_rows(path / "metrics.jsonl"),
        bad=bad[:_BAD_NAMED],
        bad_count=len(bad),
        fingerprint=str(trainer.get("data", "")),
        evaluation=_evaluation(path / EVALUATION),
        vocab_size=codes if is_step(codes) else 0,
        tokenizer=_own_tokenizer(path / "tokenizer") if command == "pretrain" else None,
        on_training=trainer.get("on_training") is True,
    )


def read_measured(path: Path, step: int) -> Measured:
    """Returns what the verdict on a finetuned model of a run rests on, up to its step; from few files, and short ones.

    Of the metrics the last megabyte is read: those of a step that is further back are not found.

    Raises:
        OSError, ValueError: It has no readable config.toml.
    """
    settings = settings_of_run(path)
    trainer = document_in(newest_folder(path / "checkpoints"), "trainer.json")
    lines = reversed(list(newest_documents(path / "metrics.jsonl")))
    return RunRecord(
        path=path,
        command=str(settings.get("command", "?")),
        state="stopped",
        step=step,
        time=RunTime(),
        settings=settings,
        rows=[row for row in _by_step(lines) if row["step"] <= step],
        bad=[],
        bad_count=0,
        fingerprint="",
        evaluation=_evaluation(path / EVALUATION),
        on_training=trainer.get("on_training") is True,
    ).measured


def _own_tokenizer(folder: Path) -> Measured | None:
    with suppress(OSError, ValueError):  # it has none, or a damaged one
        if settings_of_run(folder).get("command") == "train-tokenizer":
            return read_record(folder).measured
    return None


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with suppress(OSError):
        if path.stat().st_size > _LARGEST_LOG:
            return
        with open_regular(path) as file:
            for line in file:
                with suppress(ValueError):  # an incomplete line of a killed process
                    yield as_mapping(parse_json(line))


def _rows(path: Path) -> list[dict[str, float]]:
    """Returns the lines with a step; several of one step as one, with the last value of each name."""
    return _by_step(_lines(path))


def _by_step(lines: Iterable[dict[str, Any]]) -> list[dict[str, float]]:
    by_step: dict[int, dict[str, float]] = {}
    for line in lines:
        if is_step(line.get("step")):
            by_step.setdefault(line["step"], {}).update(finite_numbers(line))
    return [by_step[step] for step in sorted(by_step)]


def _bad_images(path: Path) -> Iterator[tuple[str, str]]:
    for line in _lines(path):
        if isinstance(line.get("path"), str):
            yield line["path"], str(line.get("error", ""))


def _evaluation(path: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        if path.stat().st_size <= _LARGEST_EVALUATION:
            with open_regular(path) as file:
                return as_mapping(parse_json(file.read()))
    return {}


def preview_files(folder: Path) -> list[tuple[Path, int]]:
    """Returns the previews in a folder and their steps, in the order of the steps; none if it is a link."""
    if folder.is_symlink() or not folder.is_dir():
        return []
    found = [(path, _PREVIEW.fullmatch(path.name)) for path in folder.iterdir()]
    return sorted(((path, int(match[1])) for path, match in found if match), key=lambda pair: pair[1])
