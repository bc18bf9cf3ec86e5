"""The contract's "Everywhere": streams, JSON, exit codes, run folders, and what a terminal or a closed pipe sees."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from beitcli.cli import console as output
from beitcli.cli import progress
from beitcli.cli.app import main
from beitcli.engine.events import Progress, Warned
from beitcli.engine.report.intervals import wilson
from tests.helpers.forked import Child

BEIT = [sys.executable, "-m", "beitcli"]
TOKENIZER_FLAGS = ["--recipe", "tiny", "--vocab-size", 16, "--size", 16, "--width", 8]
PRETRAIN_FLAGS = ["--recipe", "tiny", "--image-size", 32, "--num-masked", 6]
SHORT = ["--steps", 2, "--batch-size", 4, "--workers", 0, "--device", "cpu"]

TRAINED = {
    "train-tokenizer": {
        "run",
        "checkpoint",
        "steps",
        "vocab_size",
        "codes_used",
        "perplexity",
        "mae",
        "psnr",
        "seconds",
        "total_seconds",
    },
    "pretrain": {
        *("run", "checkpoint", "step", "epoch", "images_seen", "loss", "masked_accuracy", "baseline_accuracy"),
        *("images_per_second", "seconds", "tokenizer_seconds", "total_seconds"),
    },
    "finetune": {
        *("run", "checkpoint", "task", "step", "epoch", "images_seen", "images", "top1", "top5", "images_per_second"),
        *("seconds", "total_seconds", "top1_interval", "baseline_accuracy"),
    },
}


def contents(folder: Path) -> dict[str, str]:
    """Every file below a folder with its hash, and every folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def training(request: pytest.FixtureRequest) -> Callable[[str], list[object]]:
    """The shortest command line of a training command, without --out."""

    def argv(command: str) -> list[object]:
        data = request.getfixturevalue("labelled_folder")
        if command == "train-tokenizer":
            return [command, data, *TOKENIZER_FLAGS, *SHORT]
        if command == "pretrain":
            return [command, data, *PRETRAIN_FLAGS, *SHORT, "--tokenizer", request.getfixturevalue("tokenizer_run")]
        init = request.getfixturevalue("pretrained_run")
        return [command, data, "--recipe", "tiny", "--init", init, "--size", 32, *SHORT]

    return argv


# Streams


@pytest.mark.parametrize("command", ["tokenize", "mask-preview", "predict", "attn-map"])
def test_per_image_commands_write_json_lines_into_a_pipe(
    beit: Callable, request: pytest.FixtureRequest, labelled_folder: Path, command: str
) -> None:
    argv = {
        "tokenize": lambda: [labelled_folder, "--tokenizer", request.getfixturevalue("tokenizer_run")],
        "mask-preview": lambda: [labelled_folder],
        "predict": lambda: [request.getfixturevalue("finetuned_run"), labelled_folder],
        "attn-map": lambda: [labelled_folder, "--model", request.getfixturevalue("pretrained_run")],
    }[command]()
    piped = beit(command, *argv)
    assert piped.code == 0
    assert [line["path"] for line in piped.lines] == [str(path) for path in sorted(labelled_folder.rglob("*.*"))]
    assert "{" not in piped.err
    asked = beit(command, *argv, "--json", "--quiet")
    assert (asked.code, asked.out, asked.err) == (0, piped.out, "")


def test_predict_documents_are_as_the_contract_says(beit: Callable, finetuned_run: Path, labelled_folder: Path) -> None:
    for document in beit("predict", finetuned_run, labelled_folder / "red").lines:
        assert set(document) == {"path", "label", "score", "top"}
        assert document["top"][0] == [document["label"], document["score"]]
        assert sorted(label for label, _ in document["top"]) == ["blue", "green", "red"]
        scores = [score for _, score in document["top"]]
        assert scores == sorted(scores, reverse=True)
        assert sum(scores) == pytest.approx(1, abs=1e-5)
    two = beit("predict", finetuned_run, labelled_folder / "red", "--top", 2, "--limit", 3).lines
    assert [len(document["top"]) for document in two] == [2, 2, 2]


def test_attn_map_documents_are_as_the_contract_says(beit: Callable, pretrained_run: Path, picture: Callable) -> None:
    (document,) = beit("attn-map", picture("a.png"), "--model", pretrained_run, "--point", "3,4").lines
    assert set(document) == {"path", "model", "layer", "grid", "output", "maps"}
    (entry,) = document["maps"]
    assert set(entry) == {"point", "patch", "head", "attention", "cls"}
    assert entry["point"] == [3, 4]
    assert sum(map(sum, entry["attention"])) + entry["cls"] == pytest.approx(1, abs=1e-5)


def test_attn_map_names_the_run_that_it_picked(
    beit: Callable, pretrained_run: Path, picture: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(pretrained_run, tmp_path / "runs" / "mine")
    monkeypatch.chdir(tmp_path)
    ended = beit("attn-map", picture("a.png"))
    assert ended.lines[0]["model"] == "runs/mine"
    assert ended.err == "Model: runs/mine, the newest run.\n"
    code, said = at_terminal(lambda: main(["attn-map", "a.png", "-o", "map.png"]))
    assert code == 0
    assert "Model: runs/mine, the newest run." in said


def test_eval_is_one_document_that_predict_agrees_with(
    beit: Callable, finetuned_run: Path, labelled_folder: Path
) -> None:
    ended = beit("eval", finetuned_run, labelled_folder)
    (document,) = ended.lines
    assert ended.code == 0
    assert {"model", "data", "task", "protocol", "images", "top1", "top5"} <= set(document)
    assert (document["model"], document["data"]) == (str(finetuned_run), str(labelled_folder))
    assert (document["task"], document["protocol"], document["images"]) == ("classify", "head", 24)
    assert document["top5"] == 1
    predicted = beit("predict", finetuned_run, labelled_folder).lines
    right = sum(Path(line["path"]).parent.name == line["label"] for line in predicted)
    assert document["top1"] == pytest.approx(right / 24)
    assert document["top1_interval"] == pytest.approx(wilson(right, 24))
    folders = [Path(line["path"]).parent.name for line in predicted]
    assert document["baseline_accuracy"] == max(map(folders.count, folders)) / 24
    assert document["classes"] == 3
    assert "top1" not in ended.err


@pytest.mark.parametrize("command", list(TRAINED))
def test_training_prints_the_path_alone_or_one_document(
    beit: Callable, training: Callable, tmp_path: Path, command: str
) -> None:
    plain = beit(*training(command), "--out", tmp_path / "plain")
    assert (plain.code, plain.out) == (0, f"{tmp_path / 'plain'}\n")
    assert plain.err
    asked = beit(*training(command), "--out", tmp_path / "asked", "--json", "-q")
    (document,) = asked.lines
    assert (asked.code, asked.err) == (0, "")
    assert TRAINED[command] <= set(document)
    assert document["run"] == str(tmp_path / "asked")
    assert Path(document["checkpoint"]).name == "step-0000002"
    assert (document.get("step") or document.get("steps")) == 2
    run = tmp_path / "asked"
    made = {"config.toml", "metrics.jsonl", "checkpoints", "README.md", "report.html"}
    made.add("evaluation.json" if command == "finetune" else "previews")
    if command != "train-tokenizer":
        made.add("arithmetic.json")
    assert {path.name for path in run.iterdir() if not path.name.startswith(".")} == made
    assert (run / "checkpoints" / "latest").read_text().strip() == "step-0000002"
    assert {path.name for path in Path(document["checkpoint"]).iterdir()} == {
        *("model.safetensors", "config.json", "trainer.safetensors", "trainer.json", "SHA256SUMS")
    }
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in logged] == [1, 2]


def test_training_without_out_names_the_run_after_command_and_time(
    beit: Callable, training: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = beit(*training("train-tokenizer"), "-q")
    assert re.fullmatch(r"runs/train-tokenizer-\d{8}-\d{6}\n", ended.out)
    assert (tmp_path / ended.out.strip() / "config.toml").exists()


def test_train_tokenizer_repeats_itself_from_its_config_file(
    beit: Callable, training: Callable, tmp_path: Path
) -> None:
    assert beit(*training("train-tokenizer"), "--out", tmp_path / "a").code == 0
    again = beit("train-tokenizer", "--config", tmp_path / "a" / "config.toml", "--out", tmp_path / "b")
    assert again.code == 0
    weights = [tmp_path / name / "checkpoints" / "step-0000002" / "model.safetensors" for name in "ab"]
    assert weights[0].read_bytes() == weights[1].read_bytes()


# Run folders


@pytest.mark.parametrize("command", list(TRAINED))
def test_dry_run_tells_the_plan_and_makes_nothing(
    beit: Callable, training: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = beit(*training(command), "--dry-run", "--out", "new")
    (document,) = ended.lines
    assert ended.code == 0
    assert document["dry_run"]
    assert document["job"] == command
    assert document["steps"] == 2
    assert document["estimated_seconds"] > 0
    assert ended.err.index("learning rate") < ended.err.index("step time") < ended.err.index("training  ")
    assert not any(tmp_path.iterdir())


def test_dry_run_of_two_trainings_shows_both_times_and_their_sum(
    beit: Callable, labelled_folder: Path, tmp_path: Path
) -> None:
    flags = [*PRETRAIN_FLAGS, *SHORT, "--tokenizer-steps", 30, "--out", tmp_path / "new"]
    ended = beit("pretrain", labelled_folder, *flags, "--dry-run")
    (document,) = ended.lines
    both = document["tokenizer"]["estimated_seconds"] + 2 * document["step_seconds"]
    assert document["estimated_seconds"] == pytest.approx(both)
    plan = document["plan"]
    assert plan["tokenizer first"] == document["tokenizer"]["plan"]["training"]
    assert "whole run" not in document["tokenizer"]["plan"]
    for row in ("training", "tokenizer first", "whole run"):
        assert re.search(rf"{row} +{re.escape(plan[row])}", ended.err)


@pytest.mark.parametrize("command", list(TRAINED))
def test_out_that_is_not_empty_is_refused_untouched(
    beit: Callable, training: Callable, tmp_path: Path, command: str
) -> None:
    (tmp_path / "full" / "inner").mkdir(parents=True)
    (tmp_path / "full" / "inner" / "thesis.txt").write_text("three years of work")
    before = contents(tmp_path)
    ended = beit(*training(command), "--out", tmp_path / "full")
    assert (ended.code, ended.out) == (2, "")
    assert "is not empty" in ended.err
    assert "Give a folder that is new or empty." in ended.err
    resumed = beit(*training(command), "--out", tmp_path / "full", "--resume")
    assert (resumed.code, resumed.out) == (2, "")
    assert "holds no run" in resumed.err
    assert beit(*training(command), "--out", tmp_path / "full" / "inner" / "thesis.txt").code == 2
    assert contents(tmp_path) == before


def test_resume_with_other_settings_is_refused_and_the_run_untouched(
    beit: Callable, pretrained_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(pretrained_run)
    ended = beit("pretrain", "--out", pretrained_run, "--resume", "--lr", "0.5", "--seed", "3")
    assert (ended.code, ended.out) == (2, "")
    assert "--lr: the run has 0.002, given is 0.5" in ended.err
    assert "--seed: the run has 0, given is 3" in ended.err
    monkeypatch.setenv("BEIT_MODEL", "small")
    assert "--model" in beit("pretrain", "--out", pretrained_run, "--resume").err
    assert contents(pretrained_run) == before


def test_resume_of_a_finished_run_with_harmless_differences_is_done_at_once(
    beit: Callable, pretrained_run: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(pretrained_run, tmp_path / "run")
    ended = beit("pretrain", "--out", run, "--resume", "--workers", 0, "--keep", 5, "--log-every", 3, "--json")
    (document,) = ended.lines
    assert (ended.code, document["step"], document["run"]) == (0, 4, str(run))
    kept = contents(pretrained_run / "checkpoints")
    assert contents(run / "checkpoints") == kept
    assert f"'{run}' is finished, all 4 steps; nothing is trained." in ended.err
    again = f"beit pretrain --config {run}/config.toml --steps 8 --out NEW"
    assert f"To train longer, start a new run: {again}" in ended.err
    assert "learning rate" not in ended.err
    assert "going on" not in ended.err
    longer = ["--config", run / "config.toml", "--steps", 8, "--out", tmp_path / "new", "--json"]
    assert beit("pretrain", *longer).lines[0]["step"] == 8


# Exit codes


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["mask-preview", "--stats", "3"], 0),
        (["mask-preview", "--grid", "0,3", "x.png"], 2),
        (["pretrain", "sample", "--recipe", "tiny", "--steps", "2", "--epochs", "2"], 2),
        (["pretrain", "sample", "--recipe", "tiny", "--gpus", "2"], 2),
        (["pretrain", "sample", "--recipe", "tiny", "--device", "mps"], 2),
        (["predict", "nowhere", "x.png"], 4),
        (["tokenize", "x.png", "--tokenizer", "nowhere"], 4),
        (["mask-preview", "nowhere.png"], 3),
    ],
    ids=str,
)
def test_exit_code_follows_the_table(beit: Callable, argv: list[str], code: int) -> None:
    ended = beit(*argv)
    assert ended.code == code
    assert bool(ended.err.startswith("error: ")) == (code != 0)


def test_divergence_ends_with_5_and_says_which_checkpoint_is_good(
    beit: Callable, training: Callable, tmp_path: Path
) -> None:
    ended = beit(*training("pretrain"), "--lr", "1e38", "--warmup-steps", 0, "--out", tmp_path / "run", "--steps", 6)
    assert (ended.code, ended.out) == (5, "")
    assert "diverged" in ended.err
    assert "--lr" in ended.err


def test_environment_sets_what_no_flag_does(beit: Callable, picture: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEIT_NUM_MASKED", "5")
    assert beit("mask-preview", picture("a.png")).lines[0]["num_masked"] == 5
    assert beit("mask-preview", picture("a.png"), "--num-masked", 9).lines[0]["num_masked"] == 9
    monkeypatch.setenv("BEIT_NUM_MASKD", "5")
    ended = beit("mask-preview", picture("a.png"))
    assert ended.code == 2
    assert "Did you mean 'BEIT_NUM_MASKED'?" in ended.err


@pytest.mark.slow
def test_ctrl_c_stops_a_command_that_saves_nothing(labelled_folder: Path) -> None:
    command = [*BEIT, "mask-preview", str(labelled_folder), "--grid", "64,64"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with process:
        process.stdout.readline()  # 23 more of 12 kB do not fit a pipe, so it waits in the midst of them
        process.send_signal(signal.SIGINT)
        err = process.stderr.read()
        code = process.wait(timeout=60)
    assert (code, err) == (130, "stopped: by Ctrl-C, at once.\n")


def test_a_stop_is_not_red_and_an_error_is() -> None:
    told = "from beitcli.cli.console import CommandConsole; from beitcli.errors import DataError, SignalStop\n"
    assert in_terminal(f"{told}CommandConsole().print_error(SignalStop('By a signal.'))").startswith(
        "\x1b[1;33mstopped: By a signal."
    )
    assert in_terminal(f"{told}CommandConsole().print_error(DataError('No.'))").startswith("\x1b[1;31merror: No.")


# Pipes and terminals


@pytest.mark.parametrize(
    "argv",
    [pytest.param(["mask-preview", "DATA", "--grid", "64,64"], marks=pytest.mark.slow), ["--help"]],
    ids=lambda argv: argv[0],
)
def test_closed_pipe_ends_quietly(labelled_folder: Path, argv: list[str]) -> None:
    command = [*BEIT, *(str(labelled_folder) if word == "DATA" else word for word in argv)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if argv[0] == "mask-preview":  # 24 lines of 12 kB, far more than a pipe holds
        assert json.loads(process.stdout.readline())["grid"] == [64, 64]
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(60) == 0


@pytest.mark.slow
def test_paths_come_from_a_real_stdin_and_results_go_to_a_real_pipe(labelled_folder: Path) -> None:
    paths = [str(path) for path in sorted(labelled_folder.rglob("*.png"))][:3]
    done = subprocess.run(
        [*BEIT, "mask-preview", "-0", "-"], input="\0".join(paths).encode(), capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert [json.loads(line)["path"] for line in done.stdout.splitlines()] == paths


def in_terminal(program: str, **environ: str) -> str:
    """What a program of a new interpreter writes where all of its streams are one terminal."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=terminal_variables(environ),
        close_fds=True,
    )
    os.close(theirs)
    said = read_all(ours)
    process.wait(60)
    return said


def at_terminal(
    work: Callable[[], int], stdout: int | None = None, encoding: str = "utf-8", **environ: str
) -> tuple[int, str]:
    """The exit code of work in a forked child, and what it writes to its terminal; its stdout may be something else."""
    ours, theirs = pty.openpty()

    def attached() -> int:
        os.close(ours)
        for stream, descriptor in enumerate((theirs, theirs if stdout is None else stdout, theirs)):
            os.dup2(descriptor, stream)
        os.close(theirs)
        sys.stdin, sys.stdout, sys.stderr = (
            open(stream, mode, encoding=encoding, closefd=False)  # noqa: SIM115
            for stream, mode in enumerate("rww")
        )
        variables = terminal_variables(environ)
        os.environ.clear(), os.environ.update(variables)
        return work()

    child = Child(attached)
    os.close(theirs)
    said = read_all(ours)
    return child.ended().code, said


def terminal_variables(more: dict[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "CI")}
    return kept | {"TERM": "xterm-256color", "COLUMNS": "100"} | more


def read_all(ours: int) -> str:
    said = b""
    while select.select([ours], [], [], 60)[0]:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        said += part
    os.close(ours)
    return said.decode()


def screen(said: str) -> list[str]:
    """The lines that a terminal shows in the end, of what rich writes: cursor up, erase, carriage return."""
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[\??[\d;]*[A-Za-z]|[\r\n]|[^\x1b\r\n]+", said):
        if part == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif part == "\r":
            column = 0
        elif part.startswith("\x1b"):
            if part.endswith("A"):
                row = max(0, row - int(part[2:-1] or 1))
            elif part == "\x1b[2K":
                lines[row] = ""
        else:
            lines[row] = lines[row][:column].ljust(column) + part + lines[row][column + len(part) :]
            column += len(part)
    return [line.rstrip() for line in lines]


def with_pauses(argv: list[str]) -> int:
    """The command, with a pause after each event in which its bar is drawn."""
    shown = output.CommandConsole.on_event

    def slowly(shell: output.CommandConsole, event: object) -> None:
        shown(shell, event)
        time.sleep(0.3)

    output.CommandConsole.on_event = slowly
    return main(argv)


def test_results_go_into_the_pipe_while_a_bar_is_on_the_terminal(
    beit: Callable, tokenizer_run: Path, labelled_folder: Path, tmp_path: Path
) -> None:
    argv = ["tokenize", str(labelled_folder), "--tokenizer", str(tokenizer_run), "--batch-size", "8"]
    with open(tmp_path / "out", "wb") as out:
        code, said = at_terminal(lambda: with_pauses(argv), out.fileno())
    assert code == 0
    assert (tmp_path / "out").read_text() == beit(*argv).out
    assert "tokenize" in said
    assert "/24" in said
    assert '"path"' not in said


def test_training_prints_its_path_into_the_pipe_while_a_bar_is_on_the_terminal(
    training: Callable, tmp_path: Path
) -> None:
    """RUN=$(beit train-tokenizer ...) at a terminal."""
    argv = [*map(str, training("train-tokenizer")), "--out", str(tmp_path / "run")]
    with open(tmp_path / "out", "wb") as out:
        code, said = at_terminal(lambda: main(argv), out.fileno())
    assert code == 0
    assert (tmp_path / "out").read_text() == f"{tmp_path / 'run'}\n"
    assert "/2" in said
    assert str(tmp_path / "run") not in said.splitlines()


def test_lines_stay_whole_beside_a_bar_on_one_terminal(tokenizer_run: Path, labelled_folder: Path) -> None:
    argv = ["tokenize", str(labelled_folder), "--tokenizer", str(tokenizer_run), "--batch-size", "8"]
    code, said = at_terminal(lambda: with_pauses(argv), COLUMNS="60")
    assert code == 0
    assert "/24" in said
    shown = [line for line in screen(said) if line]
    paths = [str(path) for path in sorted(labelled_folder.rglob("*.*"))]
    assert [line.split("  ")[0] for line in shown] == paths
    assert all(re.fullmatch(r".+  4 x 4 tokens: (\d+ ){8}\.\.\.", line) for line in shown)


def test_file_names_that_are_no_text_are_shown_on_a_terminal(picture: Callable, tmp_path: Path) -> None:
    name = bytes(tmp_path) + b"/\xff.png"
    with open(name, "wb") as file:
        file.write(picture("a.png").read_bytes())
    (tmp_path / "a.png").unlink()
    for encoding in ("utf-8", "ascii"):
        code, said = at_terminal(lambda: main(["mask-preview", str(tmp_path)]), encoding=encoding)
        assert code == 0, said
        assert f"{tmp_path}/\\udcff.png 75 of 196 patches hidden" in " ".join(said.split())  # wrapped


def test_names_with_line_breaks_forge_no_line_on_a_terminal(picture: Callable, tmp_path: Path) -> None:
    name = picture("a.png\nerror: forged.png")
    (tmp_path / "bad\nerror: forged.png").write_bytes(b"no image")
    code, said = at_terminal(lambda: main(["mask-preview", str(tmp_path)]))
    assert code == 3
    assert str(name).replace("\n", "\\n") in said
    assert said.count("error: forged") == 2
    assert "\nerror: forged" not in said

    def tell() -> int:
        console = output.CommandConsole()
        console.on_event(Warned("'x\nerror: forged' is left out"))
        console.print_metrics({"model": "x\nerror: forged"})
        console.print_rows([{"path": "x\nerror: forged"}])
        console.print_line("x\nerror: forged")
        return 0

    _, said = at_terminal(tell)
    assert said.count("x\\nerror: forged") == 4


# Counting where there is no terminal


def test_long_work_without_figures_tells_how_far_it_is_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_COUNT_SECONDS", 0.2)
    shell = output.CommandConsole()
    began = time.monotonic()
    for done in range(1, 61):
        shell.on_event(Progress("tokenize", done, 60, "image"))
        shell.on_event(Progress("pretrain", done, 60))
        time.sleep(0.01)
    seconds = time.monotonic() - began
    said = capsys.readouterr()
    lines = said.err.splitlines()
    assert said.out == ""
    assert 2 <= len(lines) <= seconds / 0.2
    assert all(re.fullmatch(r"tokenize: image \d+/60", line) for line in lines)
    assert "60/60" not in said.err


def test_download_is_told_in_megabytes_with_its_speed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_COUNT_SECONDS", 0.02)
    shell = output.CommandConsole()
    for done in range(0, 215_154_104, 40_000_000):
        shell.on_event(Progress("weights", done, 215_154_104, "byte"))
        time.sleep(0.03)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("weights: 40.0/215.2 MB, ")
    assert all(re.fullmatch(r"weights: \d+\.0/215\.2 MB, [\d.]+ MB/s", line) for line in lines)


def test_download_is_shown_in_megabytes_on_a_terminal() -> None:
    said = in_terminal(
        "import time\nfrom beitcli.cli.console import CommandConsole\nfrom beitcli.engine.events import Progress\n"
        "shell = CommandConsole()\n"
        "for done in (0, 50_000_000, 95_713_049):\n"
        "    shell.on_event(Progress('weights', done, 215_154_104, 'byte'))\n    time.sleep(0.2)\n"
        "shell.on_event(Progress('tokenize', 3, 9, 'image'))\nshell.close()\n"
    )
    assert re.search(r"95\.7/215\.2 MB, [\d.]+ MB/s", COLOUR_CODE.sub("", said))
    assert "3/9" in COLOUR_CODE.sub("", said)
    assert "95713049" not in said


def test_at_80_columns_a_bar_stands_above_the_figures() -> None:
    said = in_terminal(
        "import time\nfrom beitcli.cli.console import CommandConsole\nfrom beitcli.engine.events import Progress\n"
        "metrics = {'loss': 5.5, 'gradient_norm': 1.5, 'lr': 1e-3, 'masked_accuracy': 0.042, 'unigram_entropy': 6.8,\n"
        "           'baseline_accuracy': 0.004, 'images_per_second': 1934.2, 'data_wait_share': 0.034}\n"
        "measured = {'held_out_loss': 5.4, 'held_out_unigram_entropy': 6.7}\n"
        "shell = CommandConsole()\n"
        "for done, more in ((1, {}), (160_000, {}), (160_001, measured)):\n"
        "    shell.on_event(Progress('finetune', done, 320_000, 'step', metrics | more))\n    time.sleep(0.2)\n"
        "shell.close()\n",
        COLUMNS="80",
    )
    lines = [line.rstrip() for line in re.split(r"[\r\n]+", re.sub(r"\x1b\[[\d;]*[mKA]|\x1b\[\?25[lh]", "", said))]
    places = [number for number, line in enumerate(lines) if "160,000/320,000" in line]
    assert places
    for bar, figures in ((lines[place], lines[place + 1]) for place in places):
        assert re.fullmatch(r"finetune ━+[╸╺]?━* 160,000/320,000  1,934 images/s  data 3%(  [\d:]+ left)?", bar), bar
        assert figures.startswith("  masked accuracy 4.2% = 10.5 x guessing  loss 5.50, 1.30 below entropy 6.80")
        assert max(len(bar), len(figures)) <= 80
    told = "finetune: step 160,001, held-out: loss 5.40, 1.30 below entropy 6.70"
    assert lines.count(told) == 1
    assert "160,001/320,000" in next(line for line in lines[lines.index(told) :] if "/320,000" in line)


def test_megabytes_leave_out_what_is_not_known() -> None:
    assert progress.format_bytes(95_713_049, 215_154_104, 12_340_000) == "95.7/215.2 MB, 12.3 MB/s"
    assert progress.format_bytes(95_713_049, 0, 0) == "95.7 MB"


def test_figures_of_pixels_are_shown_beside_their_baseline() -> None:
    metrics = {"held_out_loss": 0.5, "held_out_baseline_loss": 0.98765, "baseline_loss": 1.0, "loss": 0.25}
    told = "loss 0.2500 = 25% of the mean colour's  held-out loss 0.5000 = 51% of the mean colour's"
    assert "  ".join(progress.figure_texts(metrics)) == told


def test_table_leaves_out_what_has_no_value(capsys: pytest.CaptureFixture[str]) -> None:
    output.CommandConsole().table({"mae": None, "codes_used": 0, "psnr": 20.5})
    assert [line.split() for line in capsys.readouterr().err.splitlines()] == [
        ["codes", "used", "0"],
        ["psnr", "20.5", "dB"],
    ]


def test_short_work_without_figures_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    shell = output.CommandConsole()
    for done in range(1, 61):
        shell.on_event(Progress("tokenize", done, 60, "image"))
    assert capsys.readouterr().err == ""


# stdin that is closed


@pytest.mark.parametrize("command", ["tokenize", "mask-preview", "predict", "attn-map"])
def test_closed_stdin_matters_only_to_those_who_read_it(
    beit: Callable,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    picture: Callable,
    command: str,
) -> None:
    words = {
        "tokenize": lambda: ["--tokenizer", request.getfixturevalue("tokenizer_run")],
        "mask-preview": list,
        "predict": lambda: [request.getfixturevalue("finetuned_run")],
        "attn-map": lambda: ["--model", request.getfixturevalue("pretrained_run")],
    }[command]()
    argv = [command, *map(str, words)]
    monkeypatch.setattr("sys.stdin", None)  # what Python makes of `<&-`
    assert main([*argv, str(picture("a.png"))]) == 0
    assert json.loads(capsys.readouterr().out)["path"].endswith("a.png")
    assert main([*argv, "-"]) == 3
    said = capsys.readouterr()
    assert said.out == ""
    assert "stdin" in said.err
    assert "bug" not in said.err


@pytest.mark.slow
def test_closed_stdin_of_a_real_shell(picture: Callable) -> None:
    program = (
        "import sys; from beitcli.cli.app import main; "
        "codes = [main(['mask-preview', each]) for each in sys.argv[1:]]; sys.exit(codes != [0, 3])"
    )
    line = f"exec {sys.executable} -c \"$PROGRAM\" '{picture('a.png')}' - <&-"
    environment = os.environ | {"PROGRAM": program}
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr


MISTAKE = "from beitcli.cli.app import main; main(['pretrian'])"
COLOUR_CODE = re.compile(r"\x1b\[[\d;]*m")
COLOUR = re.compile(r"\x1b\[[0-9;]*[34][0-7](?:;[0-9;]+)?m|\x1b\[[0-9;]*38;")


def test_terminal_gets_colour_unless_told_otherwise() -> None:
    assert COLOUR.search(in_terminal(MISTAKE))
    assert not COLOUR.search(in_terminal(MISTAKE, NO_COLOR="1"))
    assert "\x1b" not in in_terminal(MISTAKE, TERM="dumb")


def test_pipe_gets_no_escapes(beit: Callable, training: Callable, tmp_path: Path) -> None:
    ended = beit(*training("train-tokenizer"), "--out", tmp_path / "run")
    assert "\x1b" not in ended.out + ended.err
    assert "\r" not in ended.err


def test_terminal_gets_words_and_json_only_when_asked(labelled_folder: Path) -> None:
    image = str(labelled_folder / "red" / "01.png")
    line = ["mask-preview", image, "--grid", "4,4", "--num-masked", "4", "--min-block", "4"]

    def both() -> int:
        code = main(line)
        print("----")
        return code or main([*line, "--json"])

    code, said = at_terminal(both)
    assert code == 0
    words, document = said.split("----")
    assert f"{image}  4 of 16 patches hidden" in words
    assert words.count("██") == 4
    assert "{" not in words
    assert json.loads(document.splitlines()[1])["num_masked"] == 4


def test_main_returns_the_code_and_does_not_exit(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert main(["nonsense"]) == 2
    assert capsys.readouterr().out.startswith("beit ")
