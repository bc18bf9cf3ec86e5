"""What is to be started, in words where it cannot be; who this process is; and who was the first to fail."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest

from beitcli.cli.multi_process import tell_restart
from beitcli.errors import DataError, DistributedError, SignalStop, UsageError
from beitcli.runtime.distributed.failure_reports import (
    FOLDER_VARIABLE,
    Death,
    as_error,
    first_cause,
    read_failures,
    write_failure,
)
from beitcli.runtime.distributed.launch import plan_launch, with_options
from beitcli.runtime.distributed.rank_env import RankInfo, expand_hosts, rank_info_from_env, slurm_step
from beitcli.runtime.distributed.rendezvous import split_endpoint

WORDS = ["pretrain", "photos", "--gpus", "16", "--out", "runs/a"]
OTHER = 1 << 22  # above the number of any process
SLURM = {
    "SLURM_PROCID": "5", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1", "SLURM_NODEID": "1",
    "SLURM_STEP_NODELIST": "gpu[08-09]", "SLURM_STEP_TASKS_PER_NODE": "4(x2)", "SLURM_JOB_ID": "123456",
}  # fmt: skip


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("SLURM_", "TORCHELASTIC"))]:
        monkeypatch.delenv(name)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


def plan(gpus: int, nodes: int = 1, endpoint: str | None = None, device: str = "cpu", words: list[str] = WORDS):
    return plan_launch(gpus, nodes, endpoint, device, words, 3, 600)


def test_one_process_starts_nothing_and_processes_of_a_cpu_share_its_cores():
    assert plan(1) is None
    found = plan(2)
    assert (found.processes, found.nodes, found.size, found.max_restarts) == (2, 1, 2, 3)
    assert found.threads == max(1, len(os.sched_getaffinity(0)) // 2)
    assert plan(10_000).threads == 1


def test_more_gpus_than_there_are_are_refused_with_the_commands_to_run(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    with pytest.raises(UsageError) as caught:
        plan(16, device="auto")
    assert caught.value.exit_code == 2
    assert caught.value.message == "--gpus is 16, but this machine has 8."
    by_hand = "beit pretrain photos --out runs/a --gpus 16 --nodes 2 --rdzv-endpoint HOST:29400"
    in_slurm = "srun --nodes=2 --ntasks-per-node=1 --gpus-per-node=8 beit pretrain photos --out runs/a --gpus 16"
    assert by_hand in caught.value.hint
    assert in_slurm in caught.value.hint


def test_a_machine_without_gpus_is_told_of_processes_on_its_cpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(UsageError, match=r"--gpus is 2, but this machine has 0\.") as caught:
        plan(2, device="auto")
    assert "beit pretrain photos --out runs/a --gpus 2 --device cpu" in caught.value.hint


@pytest.mark.parametrize(
    ("words", "whole"),
    [
        (["pretrain", "photos"], ["pretrain", "photos", "--out", "a"]),
        (["pretrain", "--gpus", "2", "--", "-photos"], ["pretrain", "--gpus", "2", "--out", "a", "--", "-photos"]),
        (["--", "pretrain", "photos"], ["--", "pretrain", "photos", "--out", "a"]),
        (["--", "pretrain", "--", "-a", "--"], ["--", "pretrain", "--out", "a", "--", "-a", "--"]),
    ],
)
def test_options_are_added_where_they_are_read_as_options(words: list[str], whole: list[str]):
    assert with_options(words, "--out", "a") == whole


def test_the_commands_to_run_keep_names_that_begin_with_a_dash(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(UsageError) as caught:
        plan(2, device="auto", words=["pretrain", "--gpus", "2", "--", "-photos"])
    assert "beit pretrain --gpus 2 --device cpu -- -photos" in caught.value.hint


def test_gpus_that_machines_cannot_share_evenly_are_refused():
    with pytest.raises(UsageError, match="--gpus 16 are not shared out evenly over --nodes 3") as caught:
        plan(16, 3, "a:1")
    assert "multiple of 3" in caught.value.hint


def test_machines_need_a_place_to_meet_and_are_told_how_to_say_it():
    with pytest.raises(UsageError, match="--nodes 2 needs a place where the machines meet") as caught:
        plan(16, 2)
    assert "--gpus 16 --nodes 2 --rdzv-endpoint $(hostname):29400" in caught.value.hint


@pytest.mark.parametrize("endpoint", ["gpu01", "gpu01:", ":29400", "gpu01:0", "gpu01:70000", "gpu01:port"])
def test_a_place_that_is_none_is_refused(endpoint):
    with pytest.raises(UsageError, match="--rdzv-endpoint is"):
        split_endpoint(endpoint)


def test_places_are_read():
    assert split_endpoint("gpu01:29400") == ("gpu01", 29400)
    assert split_endpoint("[::1]:29400") == ("::1", 29400)


def test_a_task_of_slurm_a_machine_launches_and_meets_at_the_first_host(monkeypatch):
    for name, value in (SLURM | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}).items():
        monkeypatch.setenv(name, value)
    assert rank_info_from_env() is None
    found = plan(16)
    assert (found.processes, found.nodes) == (8, 2)
    assert found.endpoint == f"gpu08:{15000 + 123456 % 15000}"


def test_a_task_of_slurm_a_process_joins(monkeypatch):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    assert rank_info_from_env() == RankInfo(5, 8, 1, 4, "gpu08", 15000 + 123456 % 15000)
    assert plan(8) is None


def test_steps_of_one_job_of_slurm_meet_at_ports_of_their_own():
    ports = {}
    for job in (123456, 123457):
        for number in ("0", "1", "2"):
            place = rank_info_from_env(SLURM | {"SLURM_STEP_ID": number, "SLURM_JOB_ID": str(job)})
            assert place is not None
            ports[job, number] = place.port
    assert len(set(ports.values())) == 6
    assert all(15000 <= port < 30000 for port in ports.values())


def test_torchrun_s_processes_join_and_one_alone_does_not():
    variables = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "h"}
    variables |= {"MASTER_PORT": "7", "TORCHELASTIC_RESTART_COUNT": "2"}
    assert rank_info_from_env(variables) == RankInfo(3, 4, 1, 2, "h", 7, 2)
    assert rank_info_from_env(variables | {"WORLD_SIZE": "1", "RANK": "0"}) is None
    with pytest.raises(UsageError, match="MASTER_PORT is 'x', which is no whole number"):
        rank_info_from_env(variables | {"MASTER_PORT": "x"})


def test_the_batch_script_itself_is_no_task():
    assert slurm_step({"SLURM_PROCID": "0", "SLURM_JOB_ID": "1"}) is None


@pytest.mark.parametrize(
    ("names", "hosts"),
    [
        ("a", ["a"]),
        ("a,b-1", ["a", "b-1"]),
        ("gpu[08-10,2]", ["gpu08", "gpu09", "gpu10", "gpu2"]),
        ("r[1-2]n[1-2]-ib,login", ["r1n1-ib", "r1n2-ib", "r2n1-ib", "r2n2-ib", "login"]),
    ],
)
def test_host_lists_of_slurm_are_written_out(names, hosts):
    assert expand_hosts(names) == hosts


def test_the_first_own_failure_is_the_cause_and_keeps_its_class(tmp_path: Path):
    write_failure(str(tmp_path), 0, 0, RuntimeError("Connection closed by peer"), is_peer_failure=True)
    write_failure(str(tmp_path), 1, 0, DataError("No images.", "Give some."), is_peer_failure=False)
    write_failure(str(tmp_path), 2, 0, ValueError("later"), is_peer_failure=False)
    cause = first_cause(read_failures(str(tmp_path)), [], 3)
    error = as_error(cause, 3)
    assert (type(error), error.message, error.hint) == (DataError, "No images.", "Give some.")
    assert cause.ends_the_job


def test_only_the_latest_attempt_counts(tmp_path: Path):
    write_failure(str(tmp_path), 0, 0, ValueError("first"), is_peer_failure=False)
    write_failure(str(tmp_path), 1, 1, SignalStop("By SIGTERM.", "Go on."), is_peer_failure=False)
    (found,) = read_failures(str(tmp_path))
    assert (found.rank, found.exit_code) == (1, 75)


def test_an_unknown_error_is_a_failed_process_by_name(tmp_path: Path):
    write_failure(str(tmp_path), 3, 0, ValueError("odd\nmore"), is_peer_failure=False)
    error = as_error(first_cause(read_failures(str(tmp_path)), [], 4), 4)
    assert isinstance(error, DistributedError)
    assert error.message.startswith(f"Rank 3 of 4 (process {os.getpid()} on ")
    assert error.message.endswith("failed: ValueError: odd")


def test_a_killed_process_is_named_with_its_signal(tmp_path: Path):
    write_failure(str(tmp_path), 0, 0, RuntimeError("Connection reset"), is_peer_failure=True)
    deaths = [Death(1, OTHER, -signal.SIGSEGV, 100), Death(0, os.getpid(), -signal.SIGTERM, 100)]
    cause = first_cause(read_failures(str(tmp_path)), deaths, 2)
    assert as_error(cause, 2).message == "Rank 1 of 2 was killed by SIGSEGV."


def test_peers_that_timed_out_name_the_one_that_hung(tmp_path: Path):
    write_failure(str(tmp_path), 0, 0, RuntimeError("Timed out waiting 5000ms for recv"), is_peer_failure=True)
    deaths = [Death(0, os.getpid(), 6, 100), Death(1, OTHER, -signal.SIGKILL, 130)]
    cause = first_cause(read_failures(str(tmp_path)), deaths, 2)
    assert "Rank 1 of 2 did not answer any more" in as_error(cause, 2).message


def test_ranks_that_hung_together_are_all_named(tmp_path: Path):
    write_failure(str(tmp_path), 0, 0, RuntimeError("Timed out waiting 5000ms for recv"), is_peer_failure=True)
    deaths = [Death(0, os.getpid(), 6, 100)]
    deaths += [Death(rank, OTHER + rank, -signal.SIGKILL, 130) for rank in (1, 2)]
    message = first_cause(read_failures(str(tmp_path)), deaths, 3).message
    assert message.startswith("One of the ranks 1, 2 of 3 did not answer any more")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (-signal.SIGKILL, "was killed by SIGKILL."),
        (-signal.SIGTERM, "was killed by SIGTERM."),
        (-40, "was killed by signal 40."),
        (7, "ended with exit code 7, without a word."),
    ],
)
def test_the_rank_that_ended_first_is_named_and_not_those_that_were_ended_for_it(code: int, said: str):
    seen = [(-signal.SIGKILL, 130), (code, 100), (-signal.SIGABRT, 130)]
    deaths = [Death(rank, OTHER + rank, *each) for rank, each in enumerate(seen)]
    assert first_cause([], deaths, 3).message == f"Rank 1 of 3 {said}"


def test_a_rank_that_lost_its_peers_is_no_cause_although_it_had_to_be_killed(tmp_path: Path):
    write_failure(str(tmp_path), 0, 0, RuntimeError("Connection reset"), is_peer_failure=True)
    deaths = [Death(0, os.getpid(), -signal.SIGKILL, 130)]
    message = first_cause(read_failures(str(tmp_path)), deaths, 4).message
    assert message == "Rank 0 of 4 lost its peers: Connection reset"


@pytest.mark.parametrize("is_peer_failure", [True, False])
def test_reports_of_an_earlier_attempt_are_no_word_of_a_rank_that_was_killed(tmp_path: Path, is_peer_failure: bool):
    """As of a machine with one rank of two: what it said before the restart, then nothing."""
    write_failure(str(tmp_path), 0, 0, RuntimeError("Connection reset"), is_peer_failure=is_peer_failure)
    deaths = [Death(0, OTHER, -signal.SIGKILL, 130)]
    message = first_cause(read_failures(str(tmp_path)), deaths, 2).message
    assert message == "Rank 0 of 2 was killed by SIGKILL."


def test_a_restart_tells_what_ended_the_attempt_before_it(tmp_path: Path, monkeypatch):
    """Not what ended the one before that, where the last one was killed silently."""
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    write_failure(str(tmp_path), 0, 0, ValueError("odd"), is_peer_failure=False)
    told: list[str] = []
    console = SimpleNamespace(on_event=lambda event: told.append(event.message))
    for restarts in (1, 2):
        place = RankInfo(0, 2, 0, 1, "h", 7, restarts)
        tell_restart(place, SimpleNamespace(max_restarts=3), console)
    assert told == [
        "Rank 0 failed (ValueError: odd): all start again, restart 1 of 3.",
        "A process was killed: all start again, restart 2 of 3.",
    ]


def test_tasks_of_slurm_without_gpus_would_be_jobs_of_their_own(monkeypatch):
    for name, value in (SLURM | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="srun started 2 tasks of one job, but --gpus is 1"):
        plan(1)


@pytest.mark.parametrize(
    "names",
    ["gpu[01-03", "gpu[a-b]", "gpu[1-999999999]", "", "[", ",", "gpu[3-1]", "a[1-99999][1-99999]", "gpu[[1-2]]"],
)
def test_odd_host_lists_of_slurm_are_refused_by_name(names):
    with pytest.raises(UsageError, match="list of machines"):
        expand_hosts(names)
