"""Faults of one process among several: signals, crashes, hangs, wrong numbers, wrong places to meet."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from beitcli.data.loading.batches import ordered_batches
from beitcli.engine.mim.task import PretrainTask
from beitcli.engine.probing import feature_extraction
from beitcli.engine.trainer import data as data_module
from beitcli.engine.trainer import distributed_eval
from beitcli.engine.trainer import loop as training
from beitcli.engine.trainer.checkpointing import Saver
from beitcli.errors import DataError
from beitcli.runtime.storage.checkpoint import newest_checkpoint, step_of
from beitcli.runtime.weight_files.reader import read_tensors
from tests.faults.launches import Launched, alive, harmed, kill, logged
from tests.faults.runs import command, resumption, whole_checkpoints
from tests.helpers.processes import free_port, in_processes, start

pytestmark = [pytest.mark.faults, pytest.mark.slow]


@pytest.fixture
def words(labelled_folder: Path, tokenizer_run: Path, tmp_path: Path) -> list[str]:
    """12 steps of 5 images, saved after 4 and 8."""
    return command(labelled_folder, tokenizer_run, tmp_path / "run")


@pytest.fixture
def loud(words: list[str]) -> list[str]:
    return [word for word in words if word != "--quiet"]


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, labelled_folder: Path, tokenizer_run: Path
) -> dict[str, torch.Tensor]:
    """Weights of the run of two processes that nothing disturbs."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    assert [each.code for each in in_processes(2, command(labelled_folder, tokenizer_run, run))] == [0, 0]
    return weights(run)


def weights(run: Path) -> dict[str, torch.Tensor]:
    newest = newest_checkpoint(run)
    assert newest is not None
    return read_tensors(newest.path / "model.safetensors")


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def at_step(number: int, rank: int, mine: int, harm: Any) -> None:
    """Does `harm(task)` in one rank right before its `number`-th step."""
    if rank != mine:
        return
    step, calls = training.optimizer_step, [0]

    def harmed_step(task: Any, *args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == number:
            harm(task)
        return step(task, *args, **kwargs)

    training.optimizer_step = harmed_step  # type: ignore[assignment]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=lambda n: n.name)
def test_a_signal_to_one_of_two_ranks_stops_both_at_one_step(words, tmp_path, undisturbed, number):
    send = lambda task: os.kill(os.getpid(), number)  # noqa: E731
    ended = in_processes(2, words, before=lambda rank: at_step(6, rank, 1, send), seconds=60)
    assert [each.code for each in ended] == [75, 75]
    newest = whole_checkpoints(tmp_path / "run")[0]
    # it came in the sixth step, whose processes had agreed on the seventh already
    assert step_of(tmp_path / "run" / "checkpoints" / newest) == 7
    assert f"by {signal.Signals(number).name} at step 7; progress is saved." in ended[0].err
    assert [each.code for each in in_processes(2, resumption(tmp_path / "run"))] == [0, 0]
    assert_equal(weights(tmp_path / "run"), undisturbed)


def test_a_signal_while_one_rank_measures_stops_both(words, tmp_path):
    def before(rank: int) -> None:
        measure = PretrainTask.evaluate

        def signalled(task: PretrainTask, check_stop: Callable[[], None]) -> dict[str, float]:
            if rank == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return measure(task, check_stop)

        PretrainTask.evaluate = signalled  # type: ignore[method-assign]

    assert [each.code for each in in_processes(2, words, before=before)] == [75, 75]
    assert whole_checkpoints(tmp_path / "run") == ["step-0000004"]


def saved_steps(folder: Path, rank: int) -> None:
    """From now on each save of this process adds its step to a file of the rank's name."""
    save = Saver.save

    def noted(saver: Saver, plan: Any, state: Any) -> None:
        with (folder / str(rank)).open("a") as lines:
            lines.write(f"{state.step}\n")
        save(saver, plan, state)

    Saver.save = noted  # type: ignore[method-assign]


@pytest.mark.parametrize(("first", "second", "saves"), [(2, 3, "3"), (6, 7, "4 7"), (1, 1, "2"), (11, 100, "4 8 12")])
def test_signals_to_both_ranks_at_different_steps_save_one_step_in_both(words, tmp_path, first, second, saves):
    def before(rank: int) -> None:
        saved_steps(tmp_path, rank)
        number = (signal.SIGTERM, signal.SIGUSR1)[rank]
        step = (second, first)[rank]
        at_step(step, rank, rank, lambda task: os.kill(os.getpid(), number))

    ended = in_processes(2, words, before=before, seconds=60)
    assert [each.code for each in ended] == [75, 75], [each.err for each in ended]
    assert [(tmp_path / rank).read_text().split() for rank in ("0", "1")] == [saves.split()] * 2


@pytest.mark.parametrize(("step", "saved"), [(1, []), (2, []), (5, [4]), (7, [4]), (12, [8, 4])])
@pytest.mark.parametrize("mine", [0, 1])
def test_a_batch_that_one_rank_cannot_read_ends_both_before_its_step(words, tmp_path, step, saved, mine):
    """It is missed one step ahead, while both still have steps to compute."""

    def before(rank: int) -> None:
        if rank != mine:
            return
        batches = data_module.training_batches

        def broken(*args: Any, **kwargs: Any) -> Any:
            for number, batch in enumerate(batches(*args, **kwargs), start=1):
                if number == step:
                    raise DataError("The shelf is empty.", "Fill it.")
                yield batch

        data_module.training_batches = broken  # type: ignore[assignment]

    ended = in_processes(2, words, before=before, seconds=60)
    assert [each.code for each in ended] == [3, 3], [each.err for each in ended]
    assert f"Rank {mine} of 2: The shelf is empty." in " ".join(ended[0].err.split())
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines() if step > 1 else []
    assert [json.loads(line)["step"] for line in lines] == list(range(1, step))
    assert whole_checkpoints(tmp_path / "run") == [f"step-{number:07d}" for number in saved]


def deadly(source: Any, transform: Any, **more: Any) -> Any:
    """The batches of a loader whose worker is killed at its first image."""

    def kill_worker(*image: Any) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)

    return ordered_batches(source, kill_worker, **more | {"workers": 1})


def unreadable(source: Any, transform: Any, **more: Any) -> Any:
    yield next(ordered_batches(source, transform, **more))
    raise DataError("The shelf is empty.", "Fill it.")


@pytest.mark.parametrize(("loads", "said"), [(deadly, "worker"), (unreadable, "The shelf is empty.")])
def test_an_error_of_one_rank_that_measures_ends_both_with_its_cause(words, tmp_path, loads, said):
    def before(rank: int) -> None:
        if rank == 1:
            distributed_eval.ordered_batches = loads

    ended = in_processes(2, [*words, "--holdout", "0"], before=before, seconds=60)
    assert [each.code for each in ended] == [3, 3], [each.err for each in ended]
    first = " ".join(ended[0].err.split())
    assert "Rank 1 of 2: " in first
    assert said in first
    assert whole_checkpoints(tmp_path / "run") == ["step-0000012", "step-0000008"]  # the last one costs no step


@pytest.mark.parametrize("loads", [deadly, unreadable])
def test_an_error_of_one_rank_that_computes_features_ends_both_with_its_cause(
    pretrained_run, labelled_folder, tmp_path, loads
):
    def before(rank: int) -> None:
        if rank == 1:
            feature_extraction.ordered_batches = loads

    words = ["embed", pretrained_run, labelled_folder, "-o", tmp_path / "x.npy", "--batch-size", 4, "--workers", 0]
    ended = in_processes(2, [*words, "--device", "cpu"], before=before, seconds=60)
    assert [each.code for each in ended] == [3, 3], [each.err for each in ended]
    assert "Rank 1 of 2: " in " ".join(ended[0].err.split())


def spoil(value: float, ranks: tuple[int, ...], calls: range) -> Any:
    """Makes the loss `value` at some calls in some ranks."""

    def before(rank: int) -> None:
        if rank not in ranks:
            return
        loss, count = PretrainTask.loss, [0]

        def spoilt(task: PretrainTask, batch: Any) -> Any:
            count[0] += 1
            right, more = loss(task, batch)
            return (right * value if count[0] in calls else right), more

        PretrainTask.loss = spoilt  # type: ignore[method-assign]

    return before


def skipped(run: Path) -> list[int]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if line.get("skipped_steps")]


@pytest.mark.parametrize(("size", "ranks"), [(1, (0,)), (2, (1,)), (2, (0, 1))])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_in_one_rank_is_skipped_in_all(words, tmp_path, size, ranks, value):
    alone = ["--micro-batch", "5"]  # one call of the loss a step
    ended = in_processes(size, [*words, *alone], before=spoil(value, ranks, range(3, 4)))
    assert [each.code for each in ended] == [0] * size, ended[0].err
    assert skipped(tmp_path / "run") == [3]
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path / "run").values())


@pytest.mark.parametrize(("size", "ranks"), [(1, (0,)), (2, (1,))])
def test_steps_that_stay_not_finite_end_the_run_and_name_their_images(words, tmp_path, size, ranks):
    words = [*words, "--micro-batch", "5"]
    ended = in_processes(size, words, before=spoil(float("nan"), ranks, range(6, 100)))
    assert [each.code for each in ended] == [5] * size
    said = " ".join(ended[0].err.split())
    assert "not finite in 5 steps in a row, the last of them step 10" in said
    assert "The checkpoint of step 8 is from before." in said  # whose weights are those of step 5
    assert ".png" in said or ".jpg" in said
    assert whole_checkpoints(tmp_path / "run") == ["step-0000008", "step-0000004"]
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path / "run").values())


def test_a_flipped_bit_in_one_rank_is_found_and_not_saved(words, tmp_path):
    def flip(task: Any) -> None:
        parameter = task.model.blocks[0].mlp.fc1.weight.data
        parameter.view(torch.int32)[3, 5] ^= 1 << 11

    ended = in_processes(2, words, before=lambda rank: at_step(6, rank, 1, flip))
    assert [each.code for each in ended] == [6, 6]
    assert "Rank 1 of 2 has other weights than the rest at step 8" in " ".join(ended[0].err.split())
    assert "the checkpoint of step 4 is from before" in " ".join(ended[0].err.split())
    assert whole_checkpoints(tmp_path / "run") == ["step-0000004"]


def test_a_killed_rank_is_started_again_and_the_run_ends_the_same(loud, tmp_path, undisturbed):
    harm = harmed(tmp_path / "site", 1, 6, "os.kill(os.getpid(), signal.SIGKILL)", attempts=2)
    code, out, err = Launched([*loud, "--gpus", 2], harm).ended()
    assert code == 0, err
    assert out.split() == [str(tmp_path / "run")]
    assert "restart 2 of 3" in err
    assert_equal(weights(tmp_path / "run"), undisturbed)


@pytest.mark.parametrize(
    ("harm", "more", "said"),
    [
        ("raise RuntimeError('the fan is broken')", ("--max-restarts", 1), "Rank 1 of 2 (process"),
        ("time.sleep(1e6)", ("--process-timeout", 5, "--max-restarts", 0), "did not answer any more"),
        ("os.kill(os.getpid(), signal.SIGKILL)", ("--max-restarts", 0), "Rank 1 of 2 was killed by SIGKILL"),
    ],
    ids=["raises", "hangs", "dies"],
)
def test_a_rank_that_always_fails_is_named_alone(words, tmp_path, harm, more, said):
    environment = harmed(tmp_path / "site", 1, 2, harm)
    code, out, err = Launched([*words, "--gpus", 2, *more], environment).ended()
    assert (code, out) == (6, "")
    assert said in err
    assert err.count("error:") == 1
    assert "Rank 0" not in err
    assert "Traceback" not in err
    assert ("RuntimeError: the fan is broken" in err) == ("fan" in harm)


def test_the_killed_rank_is_named_although_its_peer_had_to_be_killed_too(words, tmp_path):
    """The peer hears no SIGTERM, as one that waits in C++ for what never comes; torch kills it 30 s later."""
    flag = str(tmp_path / "deaf-")
    waits = f"[time.sleep(0.02) for _ in iter(lambda: rank == '0' or not os.path.exists({flag + '0'!r}), False)]"
    harm = "rank = os.environ['RANK']; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    harm += f"open({flag!r} + rank, 'w').close(); {waits}; os.kill(os.getpid(), signal.SIGKILL)"
    environment = harmed(tmp_path / "site", 0, 3, harm, more_ranks=(1,))
    code, out, err = Launched([*words, "--gpus", 2, "--max-restarts", 0], environment).ended()
    assert (code, out) == (6, "")
    assert "Rank 1 of 2 was killed by SIGKILL" in err
    assert "Rank 0" not in err


def test_no_process_outlives_a_launcher_that_is_killed(words, tmp_path):
    launched = Launched([*words, "--gpus", 2, "--steps", 100_000])
    launched.wait_until(logged(tmp_path / "run", 2))
    ranks = launched.ranks()
    assert sorted(ranks) == [0, 1]
    kill(launched.process.pid)
    launched.ended()
    deadline = time.monotonic() + 5
    while any(map(alive, ranks.values())) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(alive, ranks.values()))


def test_a_signal_to_the_launcher_saves_once_and_tells_how_to_go_on(loud, tmp_path):
    launched = Launched([*loud, "--gpus", 2, "--steps", 100_000])
    launched.wait_until(logged(tmp_path / "run", 2))
    launched.process.send_signal(signal.SIGUSR1)
    code, _, err = launched.ended()
    assert code == 75, err
    assert f"beit pretrain --out {tmp_path / 'run'} --resume" in err
    assert err.count("stopped:") == 1
    assert len(whole_checkpoints(tmp_path / "run")) == 1


def test_bad_settings_end_a_launch_without_restarts(loud, tmp_path):
    code, _, err = Launched([*loud, "--gpus", 2, "--batch-size", 1]).ended()
    assert code == 2
    assert "--batch-size 1 leaves some of 2 processes without an image" in err
    assert err.count("error:") == 1
    assert "restart" not in err


def test_a_port_in_use_is_told_with_its_place(words):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        code, _, err = Launched([*words, "--gpus", 2, "--nodes", 2, "--rdzv-endpoint", place]).ended(60)
    assert code == 6, err
    assert place in err
    assert err.count("error:") == 1


def test_a_machine_that_nobody_knows_is_told_with_its_place(words):
    code, _, err = Launched([*words, "--gpus", 2, "--nodes", 2, "--rdzv-endpoint", "no-such-host.invalid:29400"]).ended(
        60
    )
    assert code == 6, err
    assert "no-such-host.invalid:29400" in err


def test_a_machine_too_few_is_told_with_the_place_and_the_number(words):
    place = f"127.0.0.1:{free_port()}"
    late = ("--rdzv-timeout", 6)
    code, _, err = Launched([*words, "--gpus", 2, "--nodes", 2, "--rdzv-endpoint", place, *late]).ended(60)
    assert code == 6, err
    assert f"The 2 machines did not meet at {place} within 6 s" in err


def test_another_number_of_processes_than_asked_for_is_refused(words):
    ended = in_processes(2, [*words, "--gpus", "3"])
    assert [each.code for each in ended] == [2, 2]
    assert "--gpus is 3, but the launcher started 2 processes" in " ".join(ended[0].err.split())


def test_a_process_that_finds_nobody_says_where_it_looked(words):
    port = free_port()

    def before(rank: int) -> None:
        os.environ["MASTER_PORT"] = str(port)
        if rank == 0:
            os._exit(7)

    gone, lonely = start(2, [*words, "--process-timeout", 3], before=before)
    assert gone.ended().code == 7
    ended = lonely.ended(60)
    assert ended.code == 6
    assert f"found no process group at 127.0.0.1:{port}" in ended.err


def test_a_signal_right_after_a_save_saves_no_second_time(words, tmp_path):
    send = lambda task: os.kill(os.getpid(), signal.SIGTERM)  # noqa: E731
    words = [*words, "--save-every", "1"]
    ended = in_processes(2, words, before=lambda rank: at_step(3, rank, 1, send))
    assert [each.code for each in ended] == [75, 75], [each.err for each in ended]
    assert whole_checkpoints(tmp_path / "run") == ["step-0000003", "step-0000002"]


def test_a_signal_while_the_last_step_is_measured_again_is_a_stop(words, tmp_path):
    def before(rank: int) -> None:
        measure = PretrainTask.evaluate

        def signalled(task: PretrainTask, check_stop: Callable[[], None]) -> dict[str, float]:
            os.kill(os.getpid(), signal.SIGTERM)
            return measure(task, check_stop)

        PretrainTask.evaluate = signalled  # type: ignore[method-assign]

    last = [*words, "--save-every", "12"]
    assert [each.code for each in in_processes(2, last, before=before)] == [75, 75]
    assert [each.code for each in in_processes(2, resumption(tmp_path / "run"), before=before)] == [75, 75]
    assert [each.code for each in in_processes(1, resumption(tmp_path / "run"))] == [0]


def test_a_checkpoint_that_cannot_be_written_ends_all_ranks_alike(words, tmp_path):
    def before(rank: int) -> None:
        if rank == 0:
            resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    ended = in_processes(2, words, before=before)
    assert [each.code for each in ended] == [4, 4], [each.err for each in ended]
    assert whole_checkpoints(tmp_path / "run") == []


@pytest.mark.parametrize("size", [1, 2])
def test_unreadable_images_of_all_ranks_are_listed_at_a_stop(labelled_folder, tokenizer_run, tmp_path, size):
    data = Path(shutil.copytree(labelled_folder, tmp_path / "data"))
    for name in ("red/01.png", "blue/03.png", "green/04.jpg"):
        (data / name).write_bytes(b"no image")
    more = ("--log-every", 100, "--max-bad", 0.5, "--holdout", 0, "--save-every", 100)
    send = lambda task: os.kill(os.getpid(), signal.SIGTERM)  # noqa: E731
    words = command(data, tokenizer_run, tmp_path / "run", *more)
    ended = in_processes(size, words, before=lambda rank: at_step(7, rank, 0, send))
    assert {each.code for each in ended} == {75}, [each.err for each in ended]
    listed = [json.loads(line)["path"] for line in (tmp_path / "run" / "bad-images.jsonl").read_text().splitlines()]
    assert sorted(Path(path).name for path in listed) == ["01.png", "03.png", "04.jpg"]


def test_too_little_memory_in_one_rank_is_told_without_restarts(loud, tmp_path):
    harm = harmed(tmp_path / "site", 1, 2, "import torch; raise torch.OutOfMemoryError('none left')")
    code, _, err = Launched([*loud, "--gpus", 2], harm).ended()
    assert code == 2, err
    assert "not enough memory" in err
    assert err.count("error:") == 1
    assert "restart" not in err


@pytest.mark.parametrize("task", ["segment", "classify"])
def test_fewer_images_than_processes_are_refused(tmp_path, task, labelled_folder):
    recipe = {"segment": "tiny-segment", "classify": "tiny"}[task]
    words = ["finetune", "sample", "--task", task, "--recipe", recipe, "--init", "random", "--batch-size", 1]
    ended = in_processes(2, [*words, "--device", "cpu", "--limit", 8, "--out", tmp_path / "run"])
    assert [each.code for each in ended] == [2, 2]
    assert "--batch-size 1 leaves some of 2 processes without an image" in " ".join(ended[0].err.split())


def test_a_task_whose_peer_is_killed_says_that_it_lost_its_peers(words):
    """Started by torchrun or srun, without a launcher that would start both again."""

    def before(rank: int) -> None:
        at_step(3, rank, 1, lambda task: os.kill(os.getpid(), signal.SIGKILL))

    lonely, killed = in_processes(2, words, before=before)
    assert killed.code == -signal.SIGKILL
    assert lonely.code == 6
    said = " ".join(lonely.err.split())
    assert "error: Rank 0 of 2 lost its peers: " in said
    assert "bug" not in said  # neither ours nor, in torch's own words, the application's
