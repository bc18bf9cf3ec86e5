"""How long training waits for a checkpoint of BEiT-B, and how long until it is on disk, by the engine's own saver."""

from __future__ import annotations

import shutil
import time
from typing import Any

from measure import spread

from beitcli.engine.events import OnEvent, Saved
from beitcli.engine.trainer.bad_images import BadImageLedger
from beitcli.engine.trainer.checkpointing import Saver, TrainState
from beitcli.runtime.storage.run_dir import RunFolder
from gpu_steps.context import Context
from gpu_steps.setups import Setup, make_setup

_SAVES = 3


def run(context: Context) -> None:
    setup = make_setup(context, "base", 4 if context.small else 64, compile_model=False)
    folder = context.scratch / "run"
    shutil.rmtree(folder, ignore_errors=True)
    events: list[Any] = []
    saver = saver_of(setup, RunFolder.create(folder, resume=False), events.append)
    steps = 2 if context.small else 6
    for _ in range(2):
        setup.step()
    context.wait()
    before = context.seconds_of(setup.step, steps)
    context.record("step_ms", spread([1000 * seconds for seconds in before]))
    saves: list[dict[str, Any]] = []
    for number in range(1, _SAVES + 1):
        saves.append(one_save(context, setup, saver, number))
        context.record("saves", saves)
    written = [event for event in events if isinstance(event, Saved)]
    context.record("written_seconds", [event.seconds for event in written])
    newest = max((folder / "checkpoints").glob("step-*"))
    context.record("bytes", sum(path.stat().st_size for path in newest.rglob("*") if path.is_file()))
    shutil.rmtree(folder, ignore_errors=True)


def saver_of(setup: Setup, run: RunFolder, on_event: OnEvent) -> Saver:
    ledger = BadImageLedger(run, setup.plan.images, 0, "")
    return Saver(setup.task, run, setup.compute, setup.scaler, ledger, on_event)


def one_save(context: Context, setup: Setup, saver: Saver, number: int) -> dict[str, Any]:
    """A save as the loop makes it, then steps beside the writing until it is on disk.

    The first one finds pinned memory and files as no later one does.
    """
    context.wait()
    start = time.perf_counter()
    saver.save(setup.plan, TrainState(step=number, metrics={"loss": 0.0}))
    stall = time.perf_counter() - start
    saver_stall = saver.stall
    beside = []
    while saver.last_saved != number and time.perf_counter() - start < 60:
        beside += context.seconds_of(setup.step, 1, warmup=0)
        saver.poll_writer()
    saver.finish()
    on_disk = time.perf_counter() - start
    return {
        "stall_seconds": stall,
        "stall_by_saver": saver_stall,
        "on_disk_seconds": on_disk,
        "step_ms_beside": spread([1000 * seconds for seconds in beside]) if beside else None,
    }
