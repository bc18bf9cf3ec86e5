"""A run computes its steps alike from its first to its last, whatever the machine would choose by now."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from beitcli.config.finetune import FinetuneConfig
from beitcli.config.pretrain import PretrainConfig
from beitcli.config.resolve import resolve
from beitcli.engine.events import OnEvent, Planned, Warned, ignore
from beitcli.engine.finetune import finetune
from beitcli.engine.pretrain import pretrain
from beitcli.engine.trainer.arithmetic import with_step_arithmetic
from beitcli.models.checkpoints.open import open_checkpoint
from beitcli.runtime.compute import arithmetic_choice, cpu_matmul
from beitcli.runtime.compute.arithmetic_trial import Tried
from beitcli.runtime.compute.cpu_matmul import Arithmetic, routed_matmul
from beitcli.runtime.compute.device import Compute
from beitcli.runtime.distributed.world import SINGLE_PROCESS, DistributedContext
from beitcli.runtime.storage.hashing import sha256_of
from tests.helpers.processes import in_processes

CHOICES = {
    "fp32": ({}, ("fp32", "torch")),
    "onednn": ({"torch": 10.0, "onednn": 5.0}, ("fp32", "onednn")),
    "bf16": ({"torch": 10.0, "onednn": 5.0, "bf16": 1.0}, ("bf16", "torch")),
}


@pytest.fixture
def processor(monkeypatch, tmp_path):
    """A processor on which arithmetics take so many milliseconds, and that has what they need."""

    def be(milliseconds: dict[str, float]) -> None:
        features = {"onednn": "avx512_f", "bf16": "avx512_bf16"}
        held = {feature: True for name, feature in features.items() if name in milliseconds}
        monkeypatch.setattr(cpu_matmul, "_capabilities", lambda: held)
        monkeypatch.setattr(platform, "machine", lambda: "x86_64")
        monkeypatch.setenv("BEIT_CACHE_DIR", str(tmp_path / f"cache-{len(milliseconds)}"))
        monkeypatch.setattr(arithmetic_choice, "_remembered", {})

        def benchmark(shape, candidates):
            return Tried({name: milliseconds[name] for name in candidates if name in milliseconds})

        monkeypatch.setattr(arithmetic_choice, "benchmark_arithmetic", benchmark)
        monkeypatch.setattr(arithmetic_choice, "product_error", lambda shape, context: 3e-7)

    return be


def begin(data: Path, tokenizer: Path | str, run: Path, on_event: OnEvent = ignore, **more: object) -> Path:
    flags = {"recipe": "tiny", "image_size": 32, "num_masked": 6, "tokenizer": str(tokenizer), "data": [str(data)]}
    flags |= {"steps": 4, "batch_size": 8, "save_every": 2, "log_every": 1, "device": "cpu", "workers": 0}
    pretrain(resolve(PretrainConfig, flags | {"out": str(run), "previews": 0} | more).config, on_event)
    return run


class Killed(Exception):
    """As a signal ends a process, wherever it is."""


def until(kind: type, job: Callable[[OnEvent], object]) -> Any:
    """Runs a job until it emits an event of a kind, and returns that."""
    events: list = []

    def on_event(event: object) -> None:
        events.append(event)
        if isinstance(event, kind):
            raise Killed

    with pytest.raises(Killed):
        job(on_event)
    return events[-1]


def half_of(run: Path, copy: Path) -> Path:
    """The run as it was after two of its four steps."""
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "checkpoints" / "step-0000004")
    return copy


def resume(run: Path, events: list | None = None) -> Path:
    on_event = (lambda event: None) if events is None else events.append
    pretrain(resolve(PretrainConfig, {"out": str(run), "resume": True, "workers": 0}).config, on_event)
    return run


def weights(run: Path, step: int = 4) -> bytes:
    return (run / "checkpoints" / f"step-000000{step}" / "model.safetensors").read_bytes()


def record(run: Path, step: int = 4) -> tuple[str, str]:
    trainer = json.loads((run / "checkpoints" / f"step-000000{step}" / "trainer.json").read_text())
    return trainer["arithmetic"]["precision"], trainer["arithmetic"]["matmul"]


@pytest.mark.parametrize("choice", CHOICES)
def test_a_resumed_run_goes_on_as_it_began(tmp_path, labelled_folder, tokenizer_run, processor, choice):
    milliseconds, expected = CHOICES[choice]
    processor(milliseconds)
    run = begin(labelled_folder, tokenizer_run, tmp_path / "run")
    assert record(run) == record(run, 2) == expected
    assert routed_matmul() == "torch"
    copy = half_of(run, tmp_path / "copy")
    others = {"fp32": "bf16", "onednn": "bf16", "bf16": "onednn"}
    processor(CHOICES[others[choice]][0])  # which would be chosen by now
    assert record(resume(copy)) == expected
    assert weights(copy) == weights(run)


def resumed(run: Path, world: DistributedContext = SINGLE_PROCESS, **flags: object) -> Compute:
    config = resolve(PretrainConfig, {"out": str(run), "resume": True, "workers": 0} | flags).config
    compute = Compute(torch.device("cpu"), "fp32", world)
    return with_step_arithmetic(config, compute, config.architecture, compiled=False, on_event=ignore)


@pytest.mark.parametrize("own", [False, True], ids=["in its first steps", "while its own tokenizer trains"])
def test_a_run_killed_before_its_first_save_goes_on_as_it_began(
    tmp_path, labelled_folder, tokenizer_run, processor, own
):
    processor(CHOICES["onednn"][0])
    run, tokenizer = tmp_path / "run", "own" if own else tokenizer_run
    planned = until(Planned, lambda on_event: begin(labelled_folder, tokenizer, run, on_event))
    assert planned.title == ("Tokenizer" if own else "Pretraining")
    assert not list(run.glob("checkpoints/step-*"))
    processor(CHOICES["bf16"][0])  # which would be chosen by now
    found = resumed(run).training
    assert (found.precision, found.matmul) == ("fp32", "onednn")
    (run / "arithmetic.json").write_text("damaged")
    assert resumed(run).training.precision == "bf16"


def test_bf16_steps_compute_other_weights_than_fp32(tmp_path, labelled_folder, tokenizer_run, processor):
    processor(CHOICES["bf16"][0])
    low = begin(labelled_folder, tokenizer_run, tmp_path / "low")
    exact = begin(labelled_folder, tokenizer_run, tmp_path / "exact", precision="fp32")
    assert record(exact) == ("fp32", "onednn")
    assert weights(low) != weights(exact)


def test_a_run_of_an_earlier_version_stays_fp32(tmp_path, labelled_folder, tokenizer_run, processor):
    run = begin(labelled_folder, tokenizer_run, tmp_path / "run")
    copy = half_of(run, tmp_path / "copy")
    checkpoint = copy / "checkpoints" / "step-0000002"
    trainer = json.loads((checkpoint / "trainer.json").read_text())
    del trainer["arithmetic"]
    (checkpoint / "trainer.json").write_text(json.dumps(trainer))
    sums = [line.split("  ") for line in (checkpoint / "SHA256SUMS").read_text().splitlines()]
    (checkpoint / "SHA256SUMS").write_text("".join(f"{sha256_of(checkpoint / n)}  {n}\n" for _, n in sums))
    settings = (copy / "config.toml").read_text()
    assert 'cpu_matmul = "auto"' in settings
    (copy / "config.toml").write_text(settings.replace('cpu_matmul = "auto"\n', ""))
    processor(CHOICES["bf16"][0])
    assert record(resume(copy)) == ("fp32", "torch")
    assert weights(copy) == weights(run)


def test_onednn_is_not_taken_where_it_cannot_compute_fp32(tmp_path, labelled_folder, tokenizer_run, processor):
    processor(CHOICES["onednn"][0])
    run = begin(labelled_folder, tokenizer_run, tmp_path / "run")
    copy = half_of(run, tmp_path / "copy")
    processor({})
    events: list = []
    assert record(resume(copy, events)) == ("fp32", "torch")
    told = [each for each in events if isinstance(each, Warned)]
    assert any("torch hands none to oneDNN" in str(each) for each in told)


def test_the_plan_says_the_arithmetic(tmp_path, labelled_folder, tokenizer_run, processor, beit):
    processor(CHOICES["bf16"][0])
    words = ("pretrain", labelled_folder, "--recipe", "tiny", "--tokenizer", tokenizer_run, "--image-size", 32)
    words += ("--num-masked", 6, "--steps", 1, "--batch-size", 4, "--device", "cpu", "--workers", 0, "--dry-run")
    plan = json.loads(beit(*words, "--json").out)["plan"]
    assert plan["arithmetic"] == "bf16 (5.0x fp32 here); measured in fp32"
    assert "large bf16 products reach here" in plan["utilisation"]
    plan = json.loads(beit(*words, "--json", "--precision", "fp32").out)["plan"]
    assert plan["arithmetic"] == "fp32 (oneDNN, 2.0x torch's library here); measured in fp32"
    plan = json.loads(beit(*words, "--json", "--precision", "fp32", "--cpu-matmul", "torch").out)["plan"]
    assert "arithmetic" not in plan
    ended = beit(*words, "--compile", "--cpu-matmul", "onednn")
    assert (ended.code, "--cpu-matmul onednn does not go with --compile" in ended.err) == (2, True)


def test_the_own_tokenizers_dry_run_computes_as_its_training_does(labelled_folder, processor):
    processor(CHOICES["bf16"][0])
    flags = {"recipe": "tiny", "data": [str(labelled_folder)], "image_size": 32, "num_masked": 6, "steps": 1}
    flags |= {"tokenizer": "own", "batch_size": 4, "device": "cpu", "workers": 0, "dry_run": True}
    plan = until(Planned, lambda on_event: pretrain(resolve(PretrainConfig, flags).config, on_event))
    assert plan.title == "tokenizer (dry run)"
    assert ", fp32, torch" in plan.rows["hardware"]


def test_a_finetuned_model_is_measured_in_fp32(tmp_path, labelled_folder, pretrained_run, processor):
    processor(CHOICES["bf16"][0])
    flags = {"recipe": "tiny", "init": str(pretrained_run), "size": 32, "steps": 2, "batch_size": 8, "save_every": 2}
    flags |= {"data": [str(labelled_folder)], "out": str(tmp_path / "run"), "device": "cpu", "workers": 0}
    finetune(resolve(FinetuneConfig, flags).config)
    assert record(tmp_path / "run", 2) == ("bf16", "torch")
    assert open_checkpoint(str(tmp_path / "run")).compute("cpu", "auto").precision == "fp32"


def chosen(compute: Compute, **flags: object) -> Compute:
    settings = {"recipe": "tiny", "data": ["none"], "tokenizer": "none", "steps": 1, "device": "cpu"}
    config = resolve(PretrainConfig, settings | flags).config
    return with_step_arithmetic(config, compute, config.architecture, compiled=False, on_event=lambda event: None)


def test_the_choice_of_rank_0_is_that_of_all_ranks(processor):
    class Other(DistributedContext):
        def run_on_rank_zero(self, do):
            return Arithmetic("bf16")

    processor({})
    found = chosen(Compute(torch.device("cpu"), "fp32", Other(rank=1, size=2)))
    assert (found.training.precision, found.precision) == ("bf16", "fp32")


class FirstOfTwo(DistributedContext):
    """Rank 0 of two, whose questions to the other are answered here."""

    def run_on_rank_zero(self, do):
        return do()


def test_a_sharded_step_and_a_given_precision_are_left_as_they_are(processor):
    processor(CHOICES["bf16"][0])
    alone, two = (Compute(torch.device("cpu"), "fp32", world) for world in (SINGLE_PROCESS, FirstOfTwo(size=2)))
    assert chosen(alone).training.precision == chosen(two).training.precision == "bf16"
    assert chosen(two, shard=True).training.precision == "fp32"
    assert chosen(alone, shard=True).training.precision == "bf16"  # nothing is sharded
    assert chosen(Compute(torch.device("cpu"), "bf16"), precision="bf16").steps is None
    assert chosen(Compute(torch.device("cuda"), "bf16")).steps is None


@pytest.mark.parametrize("world", [SINGLE_PROCESS, FirstOfTwo(size=2)], ids=["one process", "two"])
def test_a_run_that_is_sharded_later_measures_as_before(tmp_path, labelled_folder, tokenizer_run, processor, world):
    processor(CHOICES["bf16"][0])
    run = tmp_path / "run"
    until(Planned, lambda on_event: begin(labelled_folder, tokenizer_run, run, on_event))
    found = resumed(run, world, shard=True)
    assert (found.training.precision, found.precision) == ("bf16", "fp32")


@pytest.mark.slow
def test_sharded_bf16_steps_learn_as_whole_ones_do(tmp_path, labelled_folder, tokenizer_run, processor):
    """A run whose bf16 was chosen goes on sharded: its weights are gathered in fp32, and measured in it."""
    processor(CHOICES["bf16"][0])
    run = begin(labelled_folder, tokenizer_run, tmp_path / "run", drop_path=0)
    copy = half_of(run, tmp_path / "copy")
    words = ["pretrain", "--out", copy, "--resume", "--shard", "--workers", 0, "--device", "cpu", "--quiet"]
    for ended in in_processes(2, words):
        assert ended.code == 0, ended.err
    assert record(copy) == ("bf16", "torch")
    figures = [
        json.loads((each / "checkpoints/step-0000004/trainer.json").read_text())["figures"] for each in (run, copy)
    ]
    assert figures[1]["loss"] == pytest.approx(figures[0]["loss"], rel=2e-3)
