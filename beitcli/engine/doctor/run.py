"""`beit doctor`: opens the data, examines every image, and writes the page and the list that are asked for."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from beitcli.config.doctor import LISTS, PAGE, DoctorConfig
from beitcli.config.intensity import parse_intensity
from beitcli.config.output_formats import unknown_format
from beitcli.data.loading.sampler import select_limit
from beitcli.data.sources.base import Source
from beitcli.data.sources.concat import Concat
from beitcli.data.sources.every_split import open_every_split
from beitcli.data.sources.format import Request
from beitcli.data.sources.open_data import open_data
from beitcli.data.sources.subset import Subset
from beitcli.engine.doctor.collect import Collected
from beitcli.engine.doctor.list_of_good import list_of_good, require_files
from beitcli.engine.doctor.page import doctor_page
from beitcli.engine.doctor.passes import examine_all
from beitcli.engine.doctor.report import Diagnosis, DoctorReport, diagnose
from beitcli.engine.events import Event, Note, OnEvent, Progress, Warned, Written, ignore, openings
from beitcli.engine.io.output_paths import is_stdout, make_folder
from beitcli.engine.io.outputs import require_writable_outputs
from beitcli.engine.io.protected_inputs import ProtectedInputs
from beitcli.engine.io.write_output import write_output
from beitcli.errors import UsageError
from beitcli.runtime.metric_text import counted

_TELL_EVERY = 16  # images
_ALL, _TRAIN, _VAL = "all", "train", "val"


def doctor(config: DoctorConfig, on_event: OnEvent = ignore, stdin: BinaryIO | None = None) -> DoctorReport:
    """Looks at every image of DATA and returns what is wrong with them.

    Raises:
        DataError: DATA is missing or empty.
        UsageError: An output has an unknown ending, or exists.
    """
    _require_format(config.output)
    asides: list[str] = []

    def listen(event: Event) -> None:
        if isinstance(event, Note) and " not " in event.message:  # what of DATA is not read
            asides.append(event.message)
        on_event(event)

    whole = _opened(config, listen, stdin)
    parts = {name: _limited(each, config) for name, each in whole.items()}
    source: Source = next(iter(parts.values())) if len(parts) == 1 else Concat(list(parts.values()))
    source.intensity = parse_intensity(config.intensity_range)
    inputs = ProtectedInputs(config, source)
    for output in map(Path, config.output):
        require_writable_outputs([output], f"-o '{output}'", inputs, overwrite=config.overwrite, follows=True)
    if any(output.lower().endswith(LISTS) for output in config.output):
        require_files(next(iter(parts.values())))
    collected = Collected.empty(len(source))
    for image in examine_all(source, config.workers):
        collected.add(image)
        if image.index % _TELL_EVERY == _TELL_EVERY - 1 or image.index + 1 == len(source):
            on_event(Progress("examining", image.index + 1, len(source), "image"))
    first = next(iter(whole))
    unreadable = int((~collected.signatures.readable[: len(parts[first])]).sum())
    to_train_on = len(whole[first]) - unreadable if first in (_ALL, _TRAIN) else 0
    diagnosis = diagnose(" ".join(config.data), parts, collected, asides, to_train_on)
    lists = [output for output in config.output if output.lower().endswith(LISTS)]
    if lists and {"unreadable", "duplicates"} <= set(config.drop):
        diagnosis = diagnosis.with_list(lists[0])
    for output in map(Path, config.output):
        _write(output, config, parts, diagnosis, on_event)
    return diagnosis.report


def _require_format(outputs: tuple[str, ...]) -> None:
    for output in outputs:
        if is_stdout(output) or Path(output).suffix.lower() not in (PAGE, *LISTS):
            hint = f"Give a page that ends in {PAGE}, or a list that ends in {' or '.join(LISTS)}."
            raise unknown_format(output, hint=hint)


def _opened(config: DoctorConfig, on_event: OnEvent, stdin: BinaryIO | None) -> dict[str, Source]:
    """Opens DATA and returns its splits by name, whole; `--val` comes last."""
    told = openings(on_event)
    request = Request.of(config, stdin=stdin, on_progress=told, tells_splits=False, reports_missing=True)
    parts = {name or _ALL: each for name, each in open_every_split(config.data, request).items()}
    if config.val is not None:
        if _VAL in parts or "validation" in parts:
            raise UsageError(
                f"'{config.data[0]}' has a validation split, and --val is given beside it.",
                "Leave --val out, or give --split train.",
            )
        val = open_data([config.val], replace(request, split=None, role="eval"))
        parts = {config.split or _TRAIN: next(iter(parts.values())), _VAL: val}
    return parts


def _limited(source: Source, config: DoctorConfig) -> Source:
    if config.limit is None or config.limit >= len(source):
        return source
    return Subset(source, np.sort(select_limit(source, config.limit, config.seed)))


def _write(
    output: Path, config: DoctorConfig, parts: dict[str, Source], diagnosis: Diagnosis, on_event: OnEvent
) -> None:
    make_folder(output.absolute().parent)
    if output.suffix.lower() == PAGE:
        page = doctor_page(diagnosis, list(parts.values())).encode(errors="replace")
        write_output(output, lambda file: file.write(page))
        on_event(Written(f"Page: {output}"))
        return
    name, source = next(iter(parts.items()))
    good = list_of_good(source, diagnosis, config.drop, with_labels=output.suffix.lower() == ".tsv")
    write_output(output, partial(_put, good.content))
    dropped = ", ".join(f"{number:,} {word}" for word, number in good.dropped.items())
    of = f" of split {name}" if len(parts) > 1 else ""
    on_event(
        Written(f"List: {output}, {counted(good.images, 'image')}{of}" + (f"; left out: {dropped}" if dropped else ""))
    )
    for why, number in good.unnamed.items():
        on_event(Warned(f"Left out of '{output}': {counted(number, 'image')}, as {why}."))


def _put(content: bytes, file: BinaryIO) -> None:
    file.write(content)
