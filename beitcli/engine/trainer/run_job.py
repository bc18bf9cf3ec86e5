"""Runs one training job of any kind: plan or dry run, run folder, loop, report, warnings, model card.

    run_job(config, compute, on_event, prepare)
        --dry-run:  prepare(None)    -> plan, timed steps             -> the document of the plan
        else:       run folder -> prepare(session) -> train -> report -> RUN/README.md

A training defines the `Job` (job.py).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from beitcli.config.common import Training
from beitcli.engine.events import Note, OnEvent, Planned, Warned
from beitcli.engine.report.page import PAGE, report_page
from beitcli.engine.report.record import EVALUATION, read_record
from beitcli.engine.report.verdict import Measured, Verdict, verdict_of
from beitcli.engine.trainer.arithmetic import store_arithmetic
from beitcli.engine.trainer.busy_machine import busy_text, load_average
from beitcli.engine.trainer.dry_run import dry_run
from beitcli.engine.trainer.job import Finished, Job, Report
from beitcli.engine.trainer.loop import train
from beitcli.engine.trainer.model_card import CardHead, headed
from beitcli.engine.trainer.setup import open_run, resume_command
from beitcli.engine.trainer.task import RunSession, TrainingBatches
from beitcli.runtime.compute.cpu_matmul import TORCH, matmul_by
from beitcli.runtime.compute.device import Compute, describe
from beitcli.runtime.signals import StopRequest
from beitcli.runtime.storage.safe_json import dump_json

_TOLD = ("bad", "early")  # grades of a warning


def run_job(
    config: Training, compute: Compute, on_event: OnEvent, prepare: Callable[[RunSession | None], Job[Report]]
) -> Report | dict[str, Any]:
    """Trains and returns the report; with `dry_run`, returns the plan as a dict instead.

    Args:
        prepare: Builds the job once the run folder is open; gets None in a dry run.
    """
    with matmul_by(TORCH):  # a step routes products for the whole process, and what comes after the run is no step
        if config.dry_run:
            return dry_run(prepare(None))
        busy = busy_text(load_average(), os.cpu_count() or 1)  # before a tokenizer of its own makes it so
        rows = {"machine": busy} if busy else {}
        run = open_run(config, compute.world)
        store_arithmetic(run, compute)
        with StopRequest() as stop:
            session = RunSession(run, stop, config, resume_command(config, run.path))
            job = prepare(session)
            finished = train_job(job, session, rows)
        return report_job(job, finished)


def train_job(job: Job[Any], session: RunSession, rows: Mapping[str, str] | None = None) -> Finished:
    """Trains in an opened run folder.

    Args:
        rows: Of the plan, beside the job's own.
    """
    data = TrainingBatches(job.stream.start, job.data.bad, job.data.training.path, job.data.held_out)
    planned = Planned(job.title, job.planned | dict(rows or {}))
    job.task.on_training = not job.data.is_apart
    with job.task.running():
        state = train(job.task, job.plan, data, session, job.compute, job.on_event, planned)
    return Finished(session.run, job.plan, state)


def report_job(job: Job[Report], finished: Finished) -> Report:
    """Builds the report; emits its warnings and the verdict; writes evaluation.json, the model card and report.html."""
    report = job.report(finished)
    for warning in job.warnings(report):
        job.on_event(Warned(warning))
    if not job.compute.world.is_rank_zero:
        return report
    run = finished.run
    _attempt(job, EVALUATION, partial(_write_details, job, finished))
    try:
        verdict = verdict_of(_measured(finished))
    except Exception as error:  # as of a settings file that was edited meanwhile
        verdict = Verdict("unknown", f"No verdict: {error or type(error).__name__}.")
    job.on_event(Warned(verdict.text) if verdict.grade in _TOLD else Note(verdict.text))
    head = CardHead(job.task.kind, job.config, run.path, finished.metrics, verdict.text)
    hardware = job.rows.get("hardware") or describe(job.compute)
    run.write_text("README.md", headed(job.card(report, hardware), head))
    if _attempt(job, PAGE, lambda: run.write_text(PAGE, report_page([run.path], finished=True))):
        job.on_event(Note(f"Report: {run.path / PAGE}"))
    return report


def _attempt(job: Job[Any], name: str, write: Callable[[], None]) -> bool:
    """Writes a file without which the run is as good: a failure is a warning, and False."""
    try:
        write()
    except Exception as error:  # the run is whole: not even a bug of the page may fail it
        job.on_event(Warned(f"{name} was not written: {error or type(error).__name__}"))
        return False
    return True


def _write_details(job: Job[Any], finished: Finished) -> None:
    details = job.task.details()
    if details is not None:
        finished.run.write_text(EVALUATION, dump_json({"step": finished.state.step} | details))


def _measured(finished: Finished) -> Measured:
    """Returns what the verdict rests on: the metrics of all saves, and at the end those of the last one."""
    measured = read_record(finished.run.path).measured
    earlier = [pair for pair in measured.measurings if pair[0] < finished.state.step]
    return replace(measured, measurings=[*earlier, (finished.state.step, finished.metrics)])
