"""Multi-process commands: launching the ranks, and reporting how this rank ended."""

from __future__ import annotations

import os
import re
import sys
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from beitcli.config.fields import settings_of
from beitcli.errors import BeitError, DistributedError, MemoryShortage, ReaderGone, Stopped, UsageError
from beitcli.runtime.distributed.parent_death import living_ranks
from beitcli.runtime.distributed.rank_env import RankInfo, rank_info_from_env

if TYPE_CHECKING:
    from beitcli.cli.console import CommandConsole
    from beitcli.config.common import Launched

_LEAVE_SECONDS = 20.0
_LEAVE_BLOCKED_SECONDS = 2.0  # after an error that all ranks meet at once, or one alone while the others wait for it
_SOURCE = re.compile(r"\[/\S+:\d+\] ?")  # a place in torch's own source


def place_of(config_class: type) -> RankInfo | None:
    """Returns the rank of this process in its job; None for a single process, or for a single-process command."""
    return rank_info_from_env() if _is_launched(config_class) else None


def _is_launched(config_class: type) -> bool:
    """Whether a command can run in several processes: a subclass of `Launched`, which others need not import."""
    return "rdzv_endpoint" in settings_of(config_class)


def run_multi_process(config: Any, words: list[str], console: CommandConsole) -> bool:
    """Runs the command in the processes that `--gpus` asks for; returns False if this process has to run it.

    Args:
        words: The command line after `beit`.
    """
    in_slurm = "SLURM_STEP_ID" in os.environ
    if not _is_launched(type(config)) or (config.gpus == 1 and config.nodes == 1 and not in_slurm):
        return False
    from beitcli.config.common import Training
    from beitcli.engine.events import Note
    from beitcli.runtime.distributed.launch import launch, plan_launch, with_options

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
    if "-" in (*references, getattr(config, "query", None)):
        raise UsageError(
            "Paths on stdin cannot be shared by several processes.", "Write them to a list: ... > images.txt"
        )
    named = None
    if isinstance(config, Training) and not config.out and not config.dry_run:
        if plan.nodes > 1:
            raise UsageError("Several machines need the name of one run folder.", "Add --out RUN, on a shared disk.")
        from beitcli.engine.trainer.setup import run_path

        named = run_path(config)
        words = with_options(words, "--out", str(named))
    if plan.max_restarts and config.starts_over:
        console.on_event(Note(f"It is not started again after a crash, as {config.starts_over}."))
        plan = replace(plan, max_restarts=0)
    try:
        launch(words, plan, lambda text: console.on_event(Note(text)))
    finally:
        if named is not None:
            with suppress(OSError):
                named.rmdir()  # only if nothing has been begun in it
    return True


def goes_on(config: Launched) -> bool:
    """Whether a restarted job resumes what is there; one that replaces an older file starts over."""
    return hasattr(config, "resume") and not getattr(config, "overwrite", False) and not config.starts_over


def tell_restart(place: RankInfo, config: Launched, console: CommandConsole) -> None:
    """Warns that the job was restarted, and names the cause.

    Raises:
        BeitError: The cause, if a restart only leads to it again.
    """
    from beitcli.engine.events import Warned
    from beitcli.runtime.distributed.failure_reports import FOLDER_VARIABLE, read_failures

    folder = os.environ.get(FOLDER_VARIABLE)
    before = read_failures(folder, place.restarts - 1) if folder and os.path.isdir(folder) else []
    for each in before:
        if each.ends_the_job and not each.is_peer_failure:  # one rank ended with it while the others hung
            raise each.as_error()
    own = [each for each in before if not each.is_peer_failure]
    cause = f"Rank {own[0].rank} failed ({own[0].kind}: {own[0].message})" if own else "A process was killed"
    console.on_event(Warned(f"{cause}: all start again, restart {place.restarts} of {config.max_restarts}."))


def ended(place: RankInfo, error: BaseException, console: CommandConsole) -> int:
    """Reports the error that ended this process; returns its exit code.

    Under our launcher the exit code of a job error (bad setting, bad data, stop) is 0, so that nothing is restarted;
    the launcher prints the error and returns its exit code.
    """
    from beitcli.runtime.distributed.failure_reports import FOLDER_VARIABLE, read_failures, write_failure

    if error.__cause__ is not None and _is_peer_failure(error.__cause__):
        error = error.__cause__  # not the shortage that its words sound like
    by_peer = _is_peer_failure(error) or (isinstance(error, Stopped) and _stopped_for_a_dead_peer(place))
    folder = os.environ.get(FOLDER_VARIABLE)
    if folder and os.path.isdir(folder):
        own = write_failure(folder, place.rank, place.restarts, error, is_peer_failure=by_peer)
        causes = [each for each in read_failures(folder) if not each.is_peer_failure] if by_peer else [own]
        if not any(each.ends_the_job for each in causes):
            return own.exit_code
        seconds = _LEAVE_BLOCKED_SECONDS if isinstance(error, MemoryShortage) else _LEAVE_SECONDS
        return 0 if _others_have_ended(folder, place, seconds) else own.exit_code or 1
    if by_peer:  # nobody starts it again: it was started by torchrun, or by srun
        if place.rank == 0:
            console.print_error(_lost_peers(place, error))
        return DistributedError.exit_code
    console.print_error(error)
    return error.exit_code if isinstance(error, BeitError) else 1


def _is_peer_failure(error: BaseException) -> bool:
    """Whether an error means that another rank has failed. Before this one has joined it, it cannot.

    Imports nothing: a signal may have struck amid the import of torch, which cannot be imported again.
    """
    world: Any = sys.modules.get("beitcli.runtime.distributed.world")
    return hasattr(world, "is_peer_failure") and bool(world.is_peer_failure(error))


def _lost_peers(place: RankInfo, error: BaseException) -> DistributedError:
    """Returns the error of a rank whose peers are gone, from what torch says of it."""
    said = _SOURCE.sub("", " ".join(str(error).split())).partition(". ")[0][:200]  # then follows advice to programmers
    return DistributedError(
        f"Rank {place.rank} of {place.size} lost its peers: {said}.",
        "Another process failed first, which its own output or the scheduler tells. Go on with --resume.",
    )


def _stopped_for_a_dead_peer(place: RankInfo) -> bool:
    """Whether this rank was stopped by the launcher because another one has died, and not by a signal of the user."""
    from beitcli.runtime.distributed.failure_reports import FOLDER_VARIABLE, read_failures, was_signalled

    folder, launcher = os.environ.get(FOLDER_VARIABLE), os.environ.get("BEIT_LAUNCHER", "")
    if not folder or not launcher.isdecimal() or was_signalled(folder):
        return False
    living = living_ranks(int(launcher))
    reported = {each.rank for each in read_failures(folder, place.restarts)}
    return living is not None and living + len(reported - {place.rank}) < place.local_size


def _others_have_ended(folder: str, place: RankInfo, seconds: float) -> bool:
    """Waits for the reports of all ranks of this machine; False if some hang and the launcher has to kill them."""
    from beitcli.runtime.distributed.failure_reports import read_failures

    end = time.monotonic() + seconds
    while len(read_failures(folder, place.restarts)) < place.local_size:
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def reader_has_gone(place: RankInfo, error: ReaderGone) -> None:
    """Reports to the other ranks that stdout is closed, which ends the job but is not a failure."""
    from beitcli.runtime.distributed.failure_reports import FOLDER_VARIABLE, write_failure

    folder = os.environ.get(FOLDER_VARIABLE)
    if folder and os.path.isdir(folder):
        write_failure(folder, place.rank, place.restarts, error, is_peer_failure=False)


def shutdown() -> None:
    """Leaves the process group, if this process has joined one; only for a rank that has succeeded."""
    if "beitcli.runtime.distributed.world" in sys.modules:
        sys.modules["beitcli.runtime.distributed.world"].shutdown()
