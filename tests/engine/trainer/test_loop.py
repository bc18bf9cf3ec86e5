"""The training loop and the pretraining task: steps, micro-batches, measures that change nothing, and divergence."""

from __future__ import annotations

import json
import math
import random
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from beitcli.cli.app import main
from beitcli.config.pretrain import PretrainConfig
from beitcli.config.resolve import resolve
from beitcli.data.loading.batches import ordered_batches
from beitcli.data.sources.open_data import open_data
from beitcli.engine.events import Planned, Progress, Saved
from beitcli.engine.mim.targets import unigram_metrics
from beitcli.engine.mim.task import PretrainTask, transform_and_masking
from beitcli.engine.pretrain import pretrain
from beitcli.engine.trainer.data import hold_out
from beitcli.engine.trainer.optimizer_step import optimizer_step
from beitcli.engine.trainer.setup import make_plan
from beitcli.errors import DataError, DivergedError, StorageError, UsageError
from beitcli.masking import make_masking
from beitcli.runtime.compute.device import Compute
from beitcli.runtime.storage.checkpoint import damage, load_tensors, newest_checkpoint, step_folders
from beitcli.tokenizers.open import open_tokenizer

CPU = Compute(torch.device("cpu"), "fp32")


def settings(data: Path, tokenizer: Path, out: Path | str = "", **more: object) -> PretrainConfig:
    flags = {
        "recipe": "tiny", "data": [str(data)], "tokenizer": str(tokenizer), "image_size": 32, "num_masked": 6,
        "device": "cpu", "workers": 0, "log_every": 1, "steps": 4, "batch_size": 8, "warmup_steps": 0, "out": str(out),
    }  # fmt: skip
    return resolve(PretrainConfig, flags | more).config


def make_task(config: PretrainConfig) -> PretrainTask:
    source = open_data(config.data, role="train")
    held = hold_out(source, config.holdout, config.seed)
    masking = make_masking(config.masking, config.architecture.grid, config.num_masked or 1, config.min_block)
    tokenizer = open_tokenizer(config.tokenizer) if config.target == "tokens" else None
    plan = make_plan(config, held.training)
    return PretrainTask(config, plan, tokenizer, masking if config.mask else None, held.measured, CPU)


def one_batch(task: PretrainTask, count: int = 8) -> dict[str, torch.Tensor]:
    transform, masking = transform_and_masking(task.config, task.tokenizer, task.masking)
    source = open_data(task.config.data, role="train")
    return next(ordered_batches(source, transform, batch_size=count, workers=0, masking=masking)).to(CPU.device)


def metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_tensors(step_folders(run / "checkpoints")[0] / "model.safetensors")


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(t, second[name]) for name, t in first.items())


# The task


def test_unigram_figures_by_hand():
    accuracy, entropy = unigram_metrics(torch.tensor([1, 0, 3, 0, 4]))
    assert accuracy == pytest.approx(0.5)
    assert entropy == pytest.approx(math.log(8) / 8 + 3 / 8 * math.log(8 / 3) + math.log(2) / 2)
    assert unigram_metrics(torch.tensor([0, 9])) == pytest.approx((1.0, 0.0))
    assert unigram_metrics(torch.full((16,), 5)) == pytest.approx((1 / 16, math.log(16)))


def test_figures_count_the_tokens_of_the_hidden_patches(labelled_folder, tokenizer_run):
    task = make_task(settings(labelled_folder, tokenizer_run))
    batch = one_batch(task)
    task.loss(batch)
    tokens = task.tokenizer.encode(batch["token_images"])[batch["mask"]]
    counts = torch.bincount(tokens, minlength=16)
    assert counts.sum() == 8 * 6
    assert torch.equal(task.target.state()["token_counts"], counts)
    share = counts[counts > 0] / 48
    assert task.log_metrics()["baseline_accuracy"] == pytest.approx(float(share.max()))
    assert task.log_metrics()["unigram_entropy"] == pytest.approx(float(-(share * share.log()).sum()))


def test_loss_is_the_cross_entropy_of_the_hidden_patches_by_hand(labelled_folder, tokenizer_run):
    task = make_task(settings(labelled_folder, tokenizer_run))
    batch = one_batch(task)
    task.model.eval()
    loss, metrics = task.loss(batch)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    with torch.no_grad():
        features = task.model.hidden_features((batch["images"] / 255 - mean) / std, batch["mask"])
        chances = task.model.token_head(features).log_softmax(dim=-1)
    tokens = task.tokenizer.encode(batch["token_images"])
    by_hand, right = [], 0
    for image in range(8):
        for patch in batch["mask"][image].nonzero().flatten().tolist():
            by_hand.append(-float(chances[image, patch, tokens[image, patch]]))
            right += int(chances[image, patch].argmax() == tokens[image, patch])
    assert len(by_hand) == 48
    assert float(loss.detach()) == pytest.approx(sum(by_hand) / 48, abs=1e-5)
    assert float(metrics["masked_accuracy"]) == pytest.approx(right / 48)


@pytest.mark.parametrize(("mask", "predict"), [(True, "all"), (False, "all")])
def test_ablations_predict_every_patch(labelled_folder, tokenizer_run, mask, predict):
    task = make_task(settings(labelled_folder, tokenizer_run, mask=mask, predict=predict))
    batch = one_batch(task)
    task.model.eval()
    (logits,), targets = task.forward_with_targets(batch)
    assert logits.shape == (8 * 16, 16)
    assert torch.equal(targets, task.tokenizer.encode(batch["token_images"]).flatten())
    assert ("mask" in batch) == mask
    if mask:
        batch["mask"] = batch["mask"].roll(1, dims=1)
        assert not torch.equal(task.forward_with_targets(batch)[0][0], logits)


def test_measure_leaves_generators_and_weights_untouched(labelled_folder, tokenizer_run):
    task = make_task(settings(labelled_folder, tokenizer_run, color_jitter=0.4))
    task.loss(one_batch(task))
    before = {name: tensor.clone() for name, tensor in task.model.state_dict().items()}
    counts, generators = task.target.counts.clone(), (random.getstate(), np.random.get_state()[1].copy())  # noqa: NPY002
    task.model.eval()
    first, second = task.evaluate(), task.evaluate()
    assert first == second
    assert random.getstate() == generators[0]
    assert np.array_equal(np.random.get_state()[1], generators[1])  # noqa: NPY002
    assert torch.equal(task.target.counts, counts)
    assert same(before, task.model.state_dict())
    assert all(parameter.grad is None for parameter in task.model.parameters())


def test_micro_batches_give_the_gradient_of_the_whole_batch(labelled_folder, tokenizer_run):
    results = []
    for micro in (8, 3, 1):
        task = make_task(settings(labelled_folder, tokenizer_run, micro_batch=micro, drop_path=0.0, clip=0.5))
        task.optimizer = torch.optim.SGD(task.model.parameters(), lr=0.1)
        sums: dict[str, torch.Tensor] = {}
        for _ in range(3):
            optimizer_step(task, task.plan, one_batch(task), CPU, CPU.scaler(), sums)
        results.append((task.model.state_dict(), {name: float(value) for name, value in sums.items()}))
    for tensors, metrics in results[1:]:
        assert metrics == pytest.approx(results[0][1], abs=1e-5)
        for name, tensor in tensors.items():
            assert (tensor - results[0][0][name]).abs().max() <= 1e-6, name


def test_gradients_are_clipped_to_the_norm(labelled_folder, tokenizer_run):
    task = make_task(settings(labelled_folder, tokenizer_run, clip=0.01))
    sums: dict[str, torch.Tensor] = {}
    optimizer_step(task, task.plan, one_batch(task), CPU, CPU.scaler(), sums)
    norm = torch.stack([p.grad.norm() for p in task.model.parameters() if p.grad is not None]).norm()
    assert float(norm) == pytest.approx(0.01, rel=1e-3)
    assert float(sums["gradient_norm"]) > 0.05  # what is logged is the norm before


# The loop


def test_a_run_logs_saves_and_reports(tmp_path, labelled_folder, tokenizer_run):
    events: list[object] = []
    report = pretrain(settings(labelled_folder, tokenizer_run, tmp_path / "run", save_every=3), events.append)
    lines = metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert [line["epoch"] for line in lines] == [round(8 * step / 23, 4) for step in (1, 2, 3, 4)]
    assert [event.step for event in events if isinstance(event, Saved)] == [3, 4]
    assert [event.done for event in events if isinstance(event, Progress)] == [1, 2, 3, 4]
    assert any(isinstance(event, Planned) for event in events)
    assert report.loss == lines[-1]["held_out_loss"]
    assert report.masked_accuracy == lines[-1]["held_out_masked_accuracy"]
    assert (report.step, report.images_seen, report.measured_on) == (4, 32, "1 held-out image")
    trainer = newest_checkpoint(tmp_path / "run").trainer
    assert (trainer["step"], trainer["images_seen"]) == (4, 32)


def test_measuring_and_saving_more_often_changes_no_weight(tmp_path, labelled_folder, tokenizer_run):
    for name, every in (("often", 1), ("once", 4)):
        options = {"save_every": every, "log_every": every, "drop_path": 0.2, "color_jitter": 0.4}
        pretrain(settings(labelled_folder, tokenizer_run, tmp_path / name, **options))
    assert same(weights(tmp_path / "often"), weights(tmp_path / "once"))
    once = metrics(tmp_path / "once")
    assert len(once) == 1
    mean = sum(line["loss"] for line in metrics(tmp_path / "often")) / 4
    assert once[0]["loss"] == pytest.approx(mean, abs=1e-6)


def test_another_seed_gives_other_weights_and_the_same_seed_the_same(tmp_path, labelled_folder, tokenizer_run):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        pretrain(settings(labelled_folder, tokenizer_run, tmp_path / name, seed=seed, steps=2))
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "c"))


def test_dry_run_makes_nothing(tmp_path, monkeypatch, labelled_folder, tokenizer_run):
    monkeypatch.chdir(tmp_path)
    plan = pretrain(settings(labelled_folder, tokenizer_run, dry_run=True))
    assert (plan["dry_run"], plan["steps"]) == (True, 4)
    assert list(tmp_path.iterdir()) == []


# Stops


def test_divergence_ends_with_exit_code_5_and_keeps_the_checkpoint_from_before(
    tmp_path, capsys, labelled_folder, tokenizer_run
):
    run = tmp_path / "run"
    arguments = ["pretrain", str(labelled_folder), "--recipe", "tiny", "--tokenizer", str(tokenizer_run),
                 "--image-size", "32", "--num-masked", "6", "--steps", "40", "--batch-size", "8", "--save-every", "1",
                 "--keep", "50", "--workers", "0", "--device", "cpu", "--out", str(run), "--lr", "1e30",
                 "--warmup-steps", "8"]  # fmt: skip
    assert main(arguments) == 5
    error = capsys.readouterr().err
    assert "diverged" in error
    assert "lower --lr" in error
    for folder in step_folders(run / "checkpoints"):
        assert damage(folder) == ""
        tensors = load_tensors(folder / "model.safetensors")
        assert all(torch.isfinite(tensor).all() for tensor in tensors.values()), folder.name
        assert math.isfinite(json.loads((folder / "trainer.json").read_text())["figures"]["loss"])
    assert not list((run / "checkpoints").glob(".step-*")) if (run / "checkpoints").exists() else True


def test_divergence_after_a_checkpoint_names_it_and_leaves_it_whole(tmp_path, labelled_folder, tokenizer_run):
    pretrain(settings(labelled_folder, tokenizer_run, tmp_path / "run", steps=3, save_every=3))
    folder = tmp_path / "run" / "checkpoints" / "step-0000003"
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    text = (tmp_path / "run" / "config.toml").read_text()
    (tmp_path / "run" / "config.toml").write_text(
        text.replace("steps = 3", "steps = 6").replace("\nlr = ", "\nlr = 1e38 # ")
    )
    resumed = resolve(PretrainConfig, {"out": str(tmp_path / "run"), "resume": True, "device": "cpu", "workers": 0})
    assert resumed.config.steps == 6
    with pytest.raises(DivergedError, match="The checkpoint of step 3 is from before"):
        pretrain(resumed.config)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert newest_checkpoint(tmp_path / "run").path == folder


def broken_copy(labelled_folder: Path, target: Path, names: list[str]) -> Path:
    shutil.copytree(labelled_folder, target)
    for name in names:
        (target / name).write_bytes(b"not an image")
    return target


def test_bad_images_are_listed_once_and_the_run_goes_on(tmp_path, labelled_folder, tokenizer_run):
    data = broken_copy(labelled_folder, tmp_path / "data", ["red/01.png"])
    pretrain(settings(data, tokenizer_run, tmp_path / "run", steps=8))
    listed = [json.loads(line) for line in (tmp_path / "run" / "bad-images.jsonl").read_text().splitlines()]
    assert [Path(record["path"]).name for record in listed] == ["01.png"]
    assert listed[0]["error"]


def test_too_many_bad_images_stop_the_run_with_exit_code_3(tmp_path, labelled_folder, tokenizer_run):
    names = [f"{colour}/0{number}.png" for colour in ("red", "green") for number in (1, 3, 5, 7)]
    data = broken_copy(labelled_folder, tmp_path / "data", names)
    with pytest.raises(DataError, match="cannot be read") as caught:
        pretrain(settings(data, tokenizer_run, tmp_path / "run", steps=8))
    assert caught.value.exit_code == 3
    assert len((tmp_path / "run" / "bad-images.jsonl").read_text().splitlines()) >= 2


# Going on


def resume(run: Path, **more: object):
    flags = {"out": str(run), "resume": True, "device": "cpu", "workers": 0} | more
    return pretrain(resolve(PretrainConfig, flags).config)


def test_other_data_is_refused_on_resume(tmp_path, labelled_folder, tokenizer_run):
    data = broken_copy(labelled_folder, tmp_path / "data", [])
    pretrain(settings(data, tokenizer_run, tmp_path / "run", steps=2))
    (data / "red" / "01.png").rename(data / "red" / "99.png")
    with pytest.raises(UsageError, match="not what run"):
        resume(tmp_path / "run")


def test_a_finished_run_is_only_measured_again(tmp_path, labelled_folder, tokenizer_run):
    first = pretrain(settings(labelled_folder, tokenizer_run, tmp_path / "run", steps=2))
    before = weights(tmp_path / "run")
    again = resume(tmp_path / "run")
    assert (again.step, again.loss, again.seconds) == (2, first.loss, first.seconds)
    assert same(weights(tmp_path / "run"), before)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."), "GPU has not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."), "Memory ran out"),
    ],
)
def test_a_resume_without_enough_memory_says_so(tmp_path, labelled_folder, tokenizer_run, monkeypatch, error, said):
    """As on a GPU that another process shares: the architecture is not at fault."""
    pretrain(settings(labelled_folder, tokenizer_run, tmp_path / "run", steps=2))

    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr("beitcli.engine.trainer.checkpointing.load_optimizer_tensors", fail)
    with pytest.raises(UsageError, match=said):
        resume(tmp_path / "run")


def test_resume_without_a_whole_checkpoint_is_a_storage_error(tmp_path, labelled_folder, tokenizer_run):
    pretrain(settings(labelled_folder, tokenizer_run, tmp_path / "run", steps=2))
    for folder in step_folders(tmp_path / "run" / "checkpoints"):
        (folder / "trainer.json").unlink()
    with pytest.raises(StorageError, match="is damaged"):
        resume(tmp_path / "run")


def test_resume_before_the_first_checkpoint_begins_the_metrics_anew(tmp_path, labelled_folder, tokenizer_run):
    pretrain(settings(labelled_folder, tokenizer_run, tmp_path / "run", steps=2))
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    resume(tmp_path / "run")
    assert [line["step"] for line in metrics(tmp_path / "run")] == [1, 2]


def test_plan_is_in_optimizer_steps(labelled_folder, tokenizer_run):
    source = open_data([str(labelled_folder)])
    build = partial(settings, labelled_folder, tokenizer_run)
    plan = make_plan(build(epochs=3, steps=None, warmup_steps=None, warmup_epochs=1), source)
    assert (plan.steps, plan.warmup_steps, plan.micro_batch) == (9, 3, 8)
    assert make_plan(build(steps=10, warmup_steps=40), source).warmup_steps == 2  # longer than the run: a fifth of it
    assert make_plan(build(steps=100, warmup_steps=15, micro_batch=64), source).micro_batch == 8
    plan = make_plan(build(steps=100, warmup_steps=15, log_every=None), source)
    assert (plan.warmup_steps, plan.save_every, plan.log_every) == (15, 10, 1)
    assert plan.epoch(3) == 1.0
