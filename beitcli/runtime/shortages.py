"""Errors of a machine that lacks something (memory, processes, open files, space, a home), as errors with a way out."""

from __future__ import annotations

import errno
import os
import re

from beitcli.errors import BeitError, MemoryShortage, StorageError, UsageError

_MEMORY = re.compile(
    r"not enough memory|can(no|')t allocate memory(?! in static TLS)|bad_alloc|unable to mmap|failed to map segment|"
    r"out of memory",
    re.I,
)
_DEVICE_MEMORY = re.compile(r"\b(CUDA|HIP|XPU|MPS)\b.*out of memory|(CUBLAS|CUDNN)_STATUS_ALLOC_FAILED", re.I)
_PROCESSES = re.compile(r"can't start new thread|^Resource temporarily unavailable$|pthread_create")
_STARTERS = {
    "subprocess.py",
    "popen_fork.py",
    "popen_forkserver.py",
    "popen_spawn_posix.py",
    "util.py",
}  # of Python's own
_FILES = re.compile(r"Too many open files")
_HOME = "Could not determine home directory"


def shortage(error: BaseException) -> BeitError | None:
    """Returns the error that names what the machine lacks; None if `error` is about something else.

    Its cause is `error`.
    """
    for each in (error, error.__cause__):
        found = _named(each) if isinstance(each, Exception) and not isinstance(each, BeitError) else None
        if found is not None:
            found.__cause__ = error
            return found
    return None


def _named(error: Exception) -> BeitError | None:
    number = error.errno if isinstance(error, OSError) else None
    said = str(error) if isinstance(error, OSError | RuntimeError | ImportError) else ""
    if number == errno.EAGAIN and not _is_of_a_start(error):  # of a pipe, a terminal or a lock
        return None
    if type(error).__name__ == "OutOfMemoryError" or _DEVICE_MEMORY.search(said):  # torch's, which is not loaded here
        return MemoryShortage(
            "The GPU has not enough memory.",
            "Give a smaller --batch-size (a training: --micro-batch); nvidia-smi shows what else runs on it.",
        )
    if isinstance(error, MemoryError) or number == errno.ENOMEM or _MEMORY.search(said):
        return MemoryShortage(
            "Memory ran out, or a limit on it was reached.",
            "Give fewer --workers, a smaller --micro-batch or --batch-size, or raise the limit (ulimit -v, the job's).",
        )
    if number in (errno.EMFILE, errno.ENFILE) or _FILES.search(said):
        return UsageError(
            f"Too many files are open: the limit is {_limit('RLIMIT_NOFILE')}.",
            "Raise it (ulimit -n 4096), or give fewer --workers.",
        )
    if number == errno.EAGAIN or _PROCESSES.search(said):
        return UsageError(
            f"No further process or thread can be started: the limit is {_limit('RLIMIT_NPROC')}.",
            "Raise it (ulimit -u, the job's), give --workers 0, or set OMP_NUM_THREADS=1.",
        )
    if number == errno.ENOENT and _has_no_working_folder():
        return UsageError("The working folder has been removed.", "Change to another one: cd FOLDER.")
    if _HOME in said:
        return UsageError("There is no home folder, in which the caches are.", "Set HOME, or BEIT_CACHE_DIR=FOLDER.")
    if number in (errno.ENOSPC, errno.EDQUOT):
        way_out = "Free space, or set TMPDIR to a folder that has some; runs go on with --resume."
        return StorageError(f"No space is left{_at(error)}.", way_out)
    if number == errno.ENAMETOOLONG:
        return StorageError(f"The file system takes no name that long{_at(error)}.", "Check the path.")
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StorageError(f"Permission is denied{_at(error)}.", "Check the permissions of that file or folder.")
    return None


def _is_of_a_start(error: Exception) -> bool:
    """Whether the error comes from starting a process: the innermost frame is that of Python's own starters."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and os.path.basename(trace.tb_frame.f_code.co_filename) in _STARTERS


def _has_no_working_folder() -> bool:
    try:
        os.getcwd()
    except OSError:
        return True
    return False


def _at(error: Exception) -> str:
    name = getattr(error, "filename", None)
    return f": '{name}'" if isinstance(name, str) else ""


def _limit(name: str) -> str:
    try:
        import resource  # not on Windows

        soft, _ = resource.getrlimit(getattr(resource, name))
    except (ImportError, AttributeError):
        return "unknown"
    return "none for this user; a container or the job has one" if soft == resource.RLIM_INFINITY else f"{soft:,}"
