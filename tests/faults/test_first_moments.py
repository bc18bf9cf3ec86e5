"""Signals and kills in the first moments of a process: while Python imports, and as workers and ranks are born."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import pty
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from multiprocessing import connection, resource_sharer
from pathlib import Path

import pytest

from beitcli.cli.signal_exit import ImmediateStop, immediate_stop_on_signal
from beitcli.data.loading.worker_monitor import prepare_worker, starting_workers
from beitcli.errors import SignalStop
from beitcli.runtime.distributed.failure_reports import signals_recorded, was_signalled
from beitcli.runtime.signals import StopRequest, forget, note_signals, noted
from tests.faults.launches import Launched, alive, kill, logged
from tests.faults.runs import command, whole_checkpoints
from tests.helpers.forked import forked

pytestmark = pytest.mark.faults

# Imported by Python before the program, and so it holds each import of `beitcli.cli.app` until it is signalled.
_HOLD = """
import importlib.abc, os, sys, time

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "beitcli.cli.app" and os.environ.get("RANK", "none") == os.environ["HELD_RANK"]:
            open(os.path.join(os.environ["HELD"], str(os.getpid())), "w").close()
            time.sleep(1)
            end = time.monotonic() + 60
            while os.path.exists(os.environ["HELD"] + "/hold") and time.monotonic() < end:
                time.sleep(0.01)
        return None

sys.meta_path.insert(0, Finder())
"""


def holding(folder: Path, rank: str = "none") -> dict[str, str]:
    """An environment in which a process stops amid its first import, after it has made a file of its pid's name."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(_HOLD)
    (folder / "hold").touch()
    paths = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {"PYTHONPATH": paths, "HELD": str(folder), "HELD_RANK": rank}


def held(folder: Path, seconds: float = 120) -> int:
    """Waits for the held process and returns its pid."""
    end = time.monotonic() + seconds
    while not (found := [int(path.name) for path in folder.iterdir() if path.name.isdecimal()]):
        assert time.monotonic() < end
        time.sleep(0.01)
    return found[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGHUP, 75), (signal.SIGINT, 130)],
    ids=lambda value: getattr(value, "name", value),
)
def test_a_signal_amid_the_first_import_counts(tmp_path: Path, labelled_folder: Path, number: int, code: int) -> None:
    run = Launched(["mask-preview", labelled_folder, "-o", tmp_path / "x.png"], holding(tmp_path / "held"))
    pid = held(tmp_path / "held")
    os.kill(pid, number)
    (tmp_path / "held" / "hold").unlink()
    ended, out, err = run.ended()
    assert (ended, out) == (code, ""), err
    assert err.startswith("stopped: ")
    assert not (tmp_path / "x.png").exists()


@pytest.mark.slow
def test_a_rank_held_in_its_first_import_dies_with_its_launcher(
    tmp_path: Path, labelled_folder: Path, tokenizer_run: Path
) -> None:
    words = [*command(labelled_folder, tokenizer_run, tmp_path / "run"), "--gpus", "2"]
    run = Launched(words, holding(tmp_path / "held", rank="1"))
    rank = held(tmp_path / "held")
    kill(run.process.pid)
    run.process.communicate()
    end = time.monotonic() + 5
    while alive(rank) and time.monotonic() < end:
        time.sleep(0.02)
    assert not alive(rank)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda n: n.name)
def test_a_rank_struck_in_its_first_import_does_not_end_the_others_promise(
    tmp_path: Path, labelled_folder: Path, tokenizer_run: Path, number: int
) -> None:
    """Killed, it is started again; asked to stop, it stops the job."""
    words = [*command(labelled_folder, tokenizer_run, tmp_path / "run"), "--gpus", "2"]
    run = Launched(words, holding(tmp_path / "held", rank="1"))
    os.kill(held(tmp_path / "held"), number)
    (tmp_path / "held" / "hold").unlink()
    code, _, err = run.ended()
    assert code == (0 if number == signal.SIGKILL else 75), err


@pytest.mark.slow
def test_a_killed_rank_of_tokenize_is_started_again(tmp_path: Path, labelled_folder: Path, tokenizer_run: Path) -> None:
    """The others are stopped by the launcher then; that is no stop of the user's."""
    out = tmp_path / "tokens.jsonl"
    words = ["tokenize", labelled_folder, "--tokenizer", tokenizer_run, "--batch-size", 1, "--workers", 0]
    run = Launched([*words, "--device", "cpu", "--gpus", 2, "-o", out, "--resume"])
    run.wait_until(lambda: 1 in run.ranks())
    kill(run.ranks()[1])
    code, _, err = run.ended()
    assert code == 0, err
    assert len(out.read_text().splitlines()) == 24


def test_signals_at_the_birth_of_a_worker_leave_it_alive() -> None:
    """Any number of them, from another process than its parent, before and after it is prepared."""

    def parent() -> int:
        me, (prepared, ready) = os.getpid(), os.pipe()
        with starting_workers():
            worker = os.fork()
            if not worker:
                time.sleep(0.2)  # struck here, unprepared
                prepare_worker(0, me)
                os.write(ready, b"1")
                time.sleep(30)
        for round_of_signals in range(3):
            if round_of_signals == 2:
                os.read(prepared, 1)
            for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT):
                subprocess.run([sys.executable, "-c", f"import os; os.kill({worker}, {number})"], check=True)
        assert os.waitpid(worker, os.WNOHANG) == (0, 0)
        os.kill(worker, signal.SIGTERM)  # its parent's own is obeyed
        return os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])

    ended = forked(parent)
    assert ended.code == 0, ended.err


@pytest.mark.parametrize("is_prepared", [True, False])
def test_a_worker_is_silent_about_a_main_process_that_died_amid_a_batch(tmp_path: Path, is_prepared: bool) -> None:
    """The main process connects for the memory of a batch, and dies before it says which."""

    def parent() -> int:
        me, address = os.getpid(), tmp_path / "address"
        worker = os.fork()
        if not worker:
            if is_prepared:
                prepare_worker(0, me)
            multiprocessing.current_process().authkey = b"key"
            shared = resource_sharer.DupFd(0)
            address.with_suffix(".part").write_text(shared._id[0])
            address.with_suffix(".part").rename(address)
            time.sleep(30)
        while not address.exists():
            time.sleep(0.01)
        connection.Client(address.read_text(), authkey=b"key").close()
        time.sleep(0.3)
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)
        return 0

    ended = forked(parent)
    assert ended.code == 0
    assert ("_serve" in ended.err) is not is_prepared


def test_a_worker_whose_parent_died_before_it_was_prepared_ends(tmp_path: Path) -> None:
    def parent() -> int:
        me = os.getpid()
        worker = os.fork()
        if not worker:
            while os.getppid() == me:
                time.sleep(0.01)
            prepare_worker(0, me)
            (tmp_path / "survived").touch()
            os._exit(0)
        (tmp_path / "pid").write_text(str(worker))
        os.kill(me, signal.SIGKILL)
        return 0

    assert forked(parent).code == -signal.SIGKILL
    worker = int((tmp_path / "pid").read_text())
    end = time.monotonic() + 5
    while alive(worker) and time.monotonic() < end:
        time.sleep(0.01)
    assert not alive(worker)
    assert not (tmp_path / "survived").exists()


def test_a_signal_that_code_swallows_is_obeyed_by_the_training_that_follows() -> None:
    def work() -> int:
        note_signals()
        with immediate_stop_on_signal():
            with suppress(ImmediateStop):  # as a destructor would
                os.kill(os.getpid(), signal.SIGHUP)
            assert noted() == signal.SIGHUP
            with StopRequest() as stop:
                assert stop.received == signal.SIGHUP
                assert type(stop.stopped("", "")) is SignalStop
            assert noted() is None
        return 0

    ended = forked(work)
    assert ended.code == 0, ended.err


def test_a_signal_noted_before_is_raised_where_it_may_be() -> None:
    def work() -> int:
        note_signals()
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(ImmediateStop), immediate_stop_on_signal():
            raise AssertionError("not reached")
        forget()
        return 0

    ended = forked(work)
    assert ended.code == 0, ended.err


@pytest.mark.slow
@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, ImmediateStop), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_amid_an_import_is_raised_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, error: type[BaseException]
) -> None:
    """Where C++ runs Python, as torch does while it is imported, an error would end the process with SIGABRT."""
    (tmp_path / "struck_amid_import.py").write_text(
        f"import os, time\nos.kill(os.getpid(), {int(number)})\ntime.sleep(0.15)\nfinished = True\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(error), immediate_stop_on_signal():  # noqa: PT012
        importlib.import_module("struck_amid_import")
        time.sleep(10)
    assert sys.modules.pop("struck_amid_import").finished
    assert noted() == number
    forget()
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_second_ctrl_c_does_not_wait_for_an_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "struck_twice.py").write_text("import os\nos.kill(os.getpid(), 2)\nos.kill(os.getpid(), 2)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(KeyboardInterrupt), immediate_stop_on_signal():
        importlib.import_module("struck_twice")
    assert "struck_twice" not in sys.modules
    forget()


def test_a_run_whose_terminal_closes_is_saved(tmp_path: Path, labelled_folder: Path, tokenizer_run: Path) -> None:
    """The kernel sends SIGHUP, and whatever is written to the terminal fails from then on."""
    words = [word for word in command(labelled_folder, tokenizer_run, tmp_path / "run") if word != "--quiet"]
    words[words.index("--steps") + 1] = "100000"
    terminal, own = pty.openpty()
    begin = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
    run = subprocess.Popen(
        [sys.executable, "-c", begin, sys.executable, "-m", "beitcli", *words],
        stdin=own, stdout=own, stderr=own, start_new_session=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    os.close(own)
    seen = logged(tmp_path / "run", 3)
    end = time.monotonic() + 120
    while not seen() and time.monotonic() < end:
        if select.select([terminal], [], [], 0.05)[0]:
            os.read(terminal, 65_536)
    os.close(terminal)
    assert run.wait(120) == 75
    assert whole_checkpoints(tmp_path / "run")


def test_an_ignored_hangup_stays_ignored() -> None:
    """Under nohup."""

    def work() -> int:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        note_signals()
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop
        return 0

    ended = forked(work)
    assert ended.code == 0, ended.err


def test_a_launcher_s_signals_are_written_down(tmp_path: Path) -> None:
    def work() -> int:
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        with signals_recorded(str(tmp_path)):
            os.kill(os.getpid(), signal.SIGCHLD)
            assert not was_signalled(str(tmp_path))
            os.kill(os.getpid(), signal.SIGTERM)
            assert was_signalled(str(tmp_path))
        return 0

    ended = forked(work)
    assert ended.code == 0, ended.err


# Signals its own process when torch is imported first, and records each import.
_STRUCK = """
import importlib.abc, os, signal, sys

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "torch":
            with open(os.environ["TORCH_IMPORTS"], "a") as file:
                file.write("x")
            if os.path.getsize(os.environ["TORCH_IMPORTS"]) > 1:
                raise ValueError("torch cannot be imported twice")
            os.kill(os.getpid(), signal.SIGTERM)
        return None

sys.meta_path.insert(0, Finder())
"""


def test_a_rank_that_is_stopped_amid_the_import_of_torch_does_not_import_it_again(
    tmp_path: Path, labelled_folder: Path
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(_STRUCK)
    paths = os.pathsep.join([str(tmp_path / "site"), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {"PYTHONPATH": paths, "TORCH_IMPORTS": str(tmp_path / "imports")}
    environment |= {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    run = Launched(["pretrain", labelled_folder, "--recipe", "tiny", "--out", tmp_path / "run"], environment)
    ended, out, err = run.ended()
    assert (ended, out) == (75, ""), err
    assert "Traceback" not in err
    assert (tmp_path / "imports").read_text() == "x"
