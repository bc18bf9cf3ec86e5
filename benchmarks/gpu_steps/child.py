"""One step: imports what it needs, waits until it is let go, runs, and says how it ended."""

from __future__ import annotations

import argparse
import importlib
import sys
import traceback

from beitcli.runtime.distributed.parent_death import end_with_parent
from gpu_steps.parent import MISSING_PACKAGE
from gpu_steps.schedule import STEPS


def run_step(given: argparse.Namespace) -> int:
    """The exit code: 0, MISSING_PACKAGE, or 1."""
    end_with_parent()
    step = next(step for step in STEPS if step.name == given.step)
    try:
        from gpu_steps.context import Context

        module = importlib.import_module(f"gpu_steps.{step.module}")
    except ModuleNotFoundError:
        traceback.print_exc()
        return MISSING_PACKAGE
    if not sys.stdin.readline():  # the parent has gone, or there is no time left
        return 1
    context = Context(given, step)
    try:
        module.run(context)
    except ModuleNotFoundError:
        traceback.print_exc()
        return MISSING_PACKAGE
    except BaseException as error:
        context.note_error("step", error)
        return 1
    context.record("finished", True)
    return 0
