"""A command in several processes: starting them, and being one of them."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import Any

from beitcli.cli.console import Shell
from beitcli.config.common import Launched, Training
from beitcli.errors import BeitError, UsageError
from beitcli.runtime.distributed.failure_reports import FOLDER_VARIABLE, leave_word, read_failures
from beitcli.runtime.distributed.parent_death import end_with_parent
from beitcli.runtime.distributed.rank_env import Place, place_of_this_process

_LEAVE_SECONDS = 20.0


def begin_as_process() -> None:
    """Where a launcher of ours started this process: it ends with it."""
    launcher = os.environ.get("BEIT_LAUNCHER", "")
    if FOLDER_VARIABLE in os.environ and "RANK" in os.environ and launcher.isdecimal():
        end_with_parent(int(launcher))


def place_of(config_class: type) -> Place | None:
    """This process's place among those of its job; None where it computes alone."""
    return place_of_this_process() if issubclass(config_class, Launched) else None


def in_several(config: Any, words: list[str], shell: Shell) -> bool:
    """Runs the command in the processes that `--gpus` asks for; False where this process is to run it.

    Args:
        words: The command line after `beit`.
    """
    in_slurm = "SLURM_STEP_ID" in os.environ
    if not isinstance(config, Launched) or (config.gpus == 1 and config.nodes == 1 and not in_slurm):
        return False
    from beitcli.engine.events import Note
    from beitcli.runtime.distributed.launch import launch, plan_launch

    plan = plan_launch(
        config.gpus,
        config.nodes,
        config.rdzv_endpoint,
        config.device,
        words,
        config.max_restarts,
        config.rdzv_timeout,
    )
    if plan is None:
        return False
    references = getattr(config, "data", None) or getattr(config, "inputs", None) or ("-",)
    if "-" in references:
        raise UsageError(
            "Paths on stdin cannot be shared by several processes.", "Write them to a list: ... > images.txt"
        )
    if isinstance(config, Training) and not config.out and not config.dry_run:
        if plan.nodes > 1:
            raise UsageError("Several machines need the name of one run folder.", "Add --out RUN, on a shared disk.")
        from beitcli.engine.trainer.setup import run_path

        words = [*words, "--out", str(run_path(config))]
    if getattr(config, "output", None) == "-":  # what is on stdout already would come again
        plan = replace(plan, max_restarts=0)
    launch(words, plan, lambda text: shell.on_event(Note(text)))
    return True


def tell_restart(place: Place, config: Launched, shell: Shell) -> None:
    """Says which restart this is, and what is known of its cause.

    Raises:
        BeitError: The cause, where starting again only leads there again.
    """
    from beitcli.engine.events import Warned

    folder = os.environ.get(FOLDER_VARIABLE)
    before = read_failures(folder) if folder and os.path.isdir(folder) else []
    for each in before:
        if each.ends_the_job and not each.by_a_peer:  # one process ended by it while the others hung
            raise each.as_error()
    own = [each for each in before if not each.by_a_peer]
    cause = f"Rank {own[0].rank} failed ({own[0].kind}: {own[0].message})" if own else "A process was killed"
    shell.on_event(Warned(f"{cause}: all start again, restart {place.restarts} of {config.max_restarts}."))


def ended(place: Place, error: BaseException, shell: Shell) -> int:
    """Tells how this process ended; the exit code of its process.

    Under a launcher of ours an error of the job ends a process with 0, as nothing is to be started again for it; the
    launcher shows it and gives the exit code.
    """
    from beitcli.runtime.distributed.world import is_by_a_peer

    by_a_peer = is_by_a_peer(error)
    folder = os.environ.get(FOLDER_VARIABLE)
    if folder and os.path.isdir(folder):
        own = leave_word(folder, place.rank, place.restarts, error, by_a_peer=by_a_peer)
        causes = [each for each in read_failures(folder) if not each.by_a_peer] if by_a_peer else [own]
        if not any(each.ends_the_job for each in causes):
            return own.exit_code
        return 0 if _others_have_ended(folder, place) else own.exit_code or 1
    if place.rank == 0 or not by_a_peer:
        shell.failed(error)
    if by_a_peer:
        return 6
    return error.exit_code if isinstance(error, BeitError) else 1


def _others_have_ended(folder: str, place: Place) -> bool:
    """Whether all processes of this machine leave word soon; those that hang must be ended by the launcher."""
    end = time.monotonic() + _LEAVE_SECONDS
    while len([each for each in read_failures(folder) if each.restarts == place.restarts]) < place.local_size:
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def reader_has_gone(place: Place, error: BrokenPipeError) -> None:
    """Tells the others that nobody reads what this process writes, which ends the job, but is no failure."""
    folder = os.environ.get(FOLDER_VARIABLE)
    if folder and os.path.isdir(folder):
        leave_word(folder, place.rank, place.restarts, error, by_a_peer=False)


def leave() -> None:
    """Ends this process's part in its group, where it has one."""
    import sys

    if "beitcli.runtime.distributed.world" in sys.modules:
        sys.modules["beitcli.runtime.distributed.world"].leave()
