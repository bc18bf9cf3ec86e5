"""Failure reports: how each rank of a job ended, as files for the launcher (stdlib only).

A rank that ends with an error writes a report; the launcher prints the first cause only. An error of the job itself (a
wrong setting, bad data, a stop) ends its process with exit code 0, so that nothing is restarted for it; a crash does
not.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from beitcli import errors
from beitcli.errors import BeitError, DistributedError, ReaderGone

FOLDER_VARIABLE = "BEIT_LAUNCH"  # folder of the reports
STOPPING = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1")  # signals that a launcher passes on to its ranks
_STOPPING = {int(getattr(signal, name)) for name in STOPPING if hasattr(signal, name)}
_SIGNALS = "signals"  # file of the numbers of the signals that the launcher got, a byte each


@dataclass(frozen=True)
class Failure:
    """Report of one rank.

    Attributes:
        kind: Class name of the error.
        exit_code: That of the error; 1 if it is not a BeitError.
        is_peer_failure: Whether it only means that another rank has died.
        restarts: How often the job had been restarted before.
    """

    rank: int
    restarts: int
    when: float
    kind: str
    exit_code: int
    message: str
    hint: str = ""
    is_peer_failure: bool = False
    trace: str = ""
    process: int = 0
    host: str = ""

    @property
    def ends_the_job(self) -> bool:
        """Whether a restart would only end the same way."""
        return self.exit_code not in (1, DistributedError.exit_code)

    def as_error(self) -> BeitError:
        kind = getattr(errors, self.kind, None)
        if not (isinstance(kind, type) and issubclass(kind, BeitError)):
            kind = DistributedError
        return kind(self.message, self.hint)


def write_failure(folder: str, rank: int, restarts: int, error: BaseException, *, is_peer_failure: bool) -> Failure:
    """Writes the report of this rank."""
    is_expected = isinstance(error, BeitError)
    failure = Failure(
        rank=rank,
        restarts=restarts,
        when=time.time(),
        kind=type(error).__name__,
        exit_code=_exit_code(error),
        message=error.message if isinstance(error, BeitError) else _first_line(error),
        hint=error.hint if isinstance(error, BeitError) else "",
        is_peer_failure=is_peer_failure,
        trace="" if is_expected else "".join(traceback.format_exception(error)),
        process=os.getpid(),
        host=socket.gethostname(),
    )
    target = Path(folder) / f"rank-{rank}-{restarts}.json"
    beside = target.with_suffix(".partial")
    beside.write_text(json.dumps(asdict(failure)))
    beside.replace(target)
    return failure


def read_failures(folder: str, restarts: int | None = None) -> list[Failure]:
    """Reads the reports of an attempt, earliest first.

    Args:
        restarts: How often the job had been restarted before it; None for the latest attempt that has reports.
    """
    found = [Failure(**json.loads(path.read_text())) for path in Path(folder).glob("rank-*.json")]
    if restarts is None:
        restarts = max((failure.restarts for failure in found), default=0)
    return sorted((each for each in found if each.restarts == restarts), key=lambda each: each.when)


@contextmanager
def signals_recorded(folder: str) -> Iterator[None]:
    """Context in which Python writes down the signals of this process, the launcher, before any handler runs."""
    file = os.open(os.path.join(folder, _SIGNALS), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK, 0o600)
    before = signal.set_wakeup_fd(file)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(file)


def was_signalled(folder: str) -> bool:
    """Whether the launcher got a signal to stop, which it passes on to its ranks."""
    try:
        return not set(Path(folder, _SIGNALS).read_bytes()).isdisjoint(_STOPPING)
    except OSError:
        return False


@dataclass(frozen=True)
class Death:
    """How the launcher saw a rank end that failed.

    Attributes:
        process: Its number; that of the rank's report, unless the report is of an earlier attempt.
        exit_code: Minus the number of the signal that killed it.
        when: Whole seconds since 1970. Ranks that had to be killed because of another are seen 30 s after it.
    """

    rank: int
    process: int
    exit_code: int
    when: float


def first_cause(failures: Sequence[Failure], deaths: Sequence[Death], size: int) -> Failure:
    """Returns the failure that ended the job.

    Args:
        failures: From `read_failures`.
        deaths: In the order in which they were seen.
        size: World size.
    """
    process_of = {failure.rank: failure.process for failure in failures}
    if any(process_of.get(death.rank, death.process) != death.process for death in deaths):
        failures = []  # they are of an earlier attempt
    own = [failure for failure in failures if not failure.is_peer_failure]
    if own:
        return own[0]
    told = {failure.process for failure in failures}
    silent = [death for death in deaths if death.process not in told]
    if silent:
        hung = any("timed out" in each.message.lower() or "timeout" in each.message.lower() for each in failures)
        return _of_silent(silent, size, hung=hung)
    if failures:
        message = f"Rank {failures[0].rank} of {size} lost its peers: {failures[0].message}"
        hint = "A process of another machine failed first: its launcher says why. Go on with --resume."
    else:
        message, hint = "A process ended without a word.", "See its machine's system log."
    return Failure(0, 0, 0.0, DistributedError.__name__, DistributedError.exit_code, message, hint)


def _of_silent(deaths: Sequence[Death], size: int, *, hung: bool) -> Failure:
    """Returns the failure of the first rank that ended without a report: later ones were ended because of it.

    Args:
        hung: Whether other ranks waited for one in vain.
    """
    first = min(deaths, key=lambda death: death.when)
    code = first.exit_code
    where = f"Rank {first.rank} of {size}"
    if hung and code == -signal.SIGKILL:
        together = sorted(each.rank for each in deaths if (each.exit_code, each.when) == (code, first.when))
        if len(together) > 1:
            where = f"One of the ranks {', '.join(map(str, together))} of {size}"
        message = f"{where} did not answer any more (it hung), and was ended."
        hint = "Look at that process's machine; --process-timeout says how long the others wait."
    elif code < 0:
        message = f"{where} was killed by {_signal_name(-code)}."
        hint = "Out of memory, perhaps: see the system's log. Go on with --resume; --max-restarts N does by itself."
    else:
        message = f"{where} ended with exit code {code}, without a word."
        hint = "See what it printed, and its machine's system log. Go on with --resume."
    return Failure(first.rank, 0, 0.0, DistributedError.__name__, DistributedError.exit_code, message, hint)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def as_error(cause: Failure, size: int) -> BeitError:
    """Converts the cause to an error; one that is not a BeitError becomes a DistributedError (exit code 6)."""
    if cause.exit_code != 1:
        return cause.as_error()
    where = f"Rank {cause.rank} of {size} (process {cause.process} on {cause.host})"
    return DistributedError(
        f"{where} failed: {cause.kind}: {cause.message}", "--debug shows where. Go on with --resume when it is mended."
    )


def _exit_code(error: BaseException) -> int:
    if isinstance(error, ReaderGone):
        return 0
    return error.exit_code if isinstance(error, BeitError) else 1


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:500]
