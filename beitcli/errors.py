"""What can go wrong that a user can mend, one exit code each (stdlib only).

BeitError
├── UsageError          2   an option or a setting is wrong
│   └── MemoryShortage      the machine or the device has too little memory for them
├── DataError           3   data missing, unreadable, or more bad images than allowed
│   └── BadImage            one image; jobs catch it, count it and go on
│       └── ReadFailed          the disk, network or memory failed: it may be good later
├── StorageError        4   checkpoint, weights or storage
├── DivergedError       5   loss or gradient is not finite
├── DistributedError    6   a process or the rendezvous failed
└── Stopped                 the job saved and stopped because it was asked to
    ├── SignalStop     75   SIGTERM, SIGUSR1: run again to go on
    └── Interrupted   130   Ctrl-C

Anything that is not a BeitError is a bug: exit code 1, with its traceback.
"""

from __future__ import annotations


class BeitError(Exception):
    """A failure with a way out.

    Args:
        message: What is wrong, with the value.
        hint: How to put it right; one line.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[type[BeitError], tuple[str, str]]:
        return type(self), (self.message, self.hint)  # loader workers send errors between processes


class UsageError(BeitError):
    exit_code = 2


class MemoryShortage(UsageError):
    """The machine or the device has too little memory. One rank may meet it alone, while the others wait for it."""


class DataError(BeitError):
    exit_code = 3


class BadImage(DataError):
    """One image that cannot be used; `message` says why, without the path."""


class ReadFailed(BadImage):
    """The disk, the network or the memory failed, not the image: the next attempt may succeed."""


class StorageError(BeitError):
    exit_code = 4


class DivergedError(BeitError):
    exit_code = 5


class DistributedError(BeitError):
    exit_code = 6


class Stopped(BeitError):
    """Progress is saved; the same command with `--resume` goes on."""


class SignalStop(Stopped):
    exit_code = 75


class Interrupted(Stopped):
    exit_code = 130


class ReaderGone(BrokenPipeError):
    """The program that stdout is piped to has ended, as in `| head`: the job ends quietly. No failure."""
