"""Finetuning, evaluation and prediction: the same number everywhere, classes by name, averages and mixed batches."""

from __future__ import annotations

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from beitcli.config.evaluate import EvalConfig
from beitcli.config.finetune import FinetuneConfig
from beitcli.config.predict import PredictConfig
from beitcli.config.resolve import resolve
from beitcli.data.loading.batch_datasets import StreamPart
from beitcli.data.loading.batches import training_batches
from beitcli.data.sources.open_data import open_data
from beitcli.data.transforms.base import evaluation_view, normalize
from beitcli.data.transforms.finetuning import FinetuningTransform
from beitcli.engine.classification.evaluate import class_columns, score
from beitcli.engine.classification.finetune import build_classifier
from beitcli.engine.classification.task import FinetuneTask
from beitcli.engine.evaluate import evaluate
from beitcli.engine.events import Event, Note, Progress, ignore
from beitcli.engine.finetune import finetune
from beitcli.engine.predict import predict
from beitcli.engine.trainer.distributed_eval import Batching
from beitcli.engine.trainer.setup import make_plan
from beitcli.errors import DataError, SignalStop, StorageError
from beitcli.models.checkpoints.build import open_classifier, preprocessing
from beitcli.models.checkpoints.open import open_pretrained
from beitcli.runtime.compute.device import Compute
from beitcli.runtime.storage.checkpoint import load_tensors, newest_checkpoint, step_folders
from tests.helpers.device_waits import DeviceWaits

CPU = Compute(torch.device("cpu"), "fp32")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def settings(data: Path, out: Path | str = "", **more: object) -> FinetuneConfig:
    flags = {
        "recipe": "tiny", "data": [str(data)], "init": "random", "size": 32, "device": "cpu", "workers": 0,
        "log_every": 1, "save_every": 3, "steps": 6, "batch_size": 8, "warmup_steps": 0, "out": str(out),
    }  # fmt: skip
    return resolve(FinetuneConfig, flags | more).config


def make_task(data: Path, **more: object) -> FinetuneTask:
    config = settings(data, **more)
    source = open_data(config.data, labelled=True)
    classes = source.classes or ()
    model = build_classifier(config, None, classes, ignore)
    return FinetuneTask(config, make_plan(config, source), model, classes, source, CPU)


def evaluated(model: Path | str, data: Path | str, **more: object):
    flags = {"model": str(model), "data": [str(data)], "device": "cpu", "workers": 0} | more
    return evaluate(resolve(EvalConfig, flags).config)


def predicted(model: Path, inputs: list[Path], **more: object):
    flags = {"model": str(model), "inputs": [str(path) for path in inputs], "device": "cpu", "workers": 0} | more
    return predict(resolve(PredictConfig, flags).config)


def metrics(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {
            name: value
            for name, value in line.items()
            if name not in ("images_per_second", "data_wait_share", "save_stall_seconds")
        }
        for line in lines
    ]


def files_of(run: Path) -> dict[str, bytes]:
    folder = step_folders(run / "checkpoints")[0]
    return {name: (folder / name).read_bytes() for name in ("model.safetensors", "trainer.safetensors")}


def stop_after(step: int, number: int = signal.SIGTERM):
    """A listener that sends this process a real signal when a step is done."""

    def listen(event: Event) -> None:
        if isinstance(event, Progress) and event.phase == "finetune" and event.done == step:
            os.kill(os.getpid(), number)

    return listen


# Finetuning


def test_finetuning_from_a_pretrained_run_says_what_is_new(labelled_folder, pretrained_run):
    notes: list[Event] = []
    checkpoint = open_pretrained(str(pretrained_run))
    model = build_classifier(
        settings(labelled_folder, init=str(pretrained_run)), checkpoint, ("a", "b", "c"), notes.append
    )
    said = next(event.message for event in notes if isinstance(event, Note))
    assert "the head of its pretraining is dropped (5 tensors)" in said
    assert "the classifier's head is new (4 tensors)" in said
    stored = newest_checkpoint(pretrained_run).model_tensors()
    assert torch.equal(model.blocks[2].attn.qkv.weight, stored["blocks.2.attn.qkv.weight"])
    assert torch.equal(model.pos_embed, stored["pos_embed"])


def test_finetuning_from_a_tokenizer_is_refused(labelled_folder, tokenizer_run):
    with pytest.raises(StorageError, match="is a tokenizer"):
        finetune(settings(labelled_folder, init=str(tokenizer_run)))


def test_a_classifier_learns_the_colours(tmp_path, labelled_folder):
    options = {"steps": 30, "lr": 2e-3, "layer_decay": 1.0, "val": str(labelled_folder), "save_every": 30}
    report = finetune(settings(labelled_folder, tmp_path / "run", **options))
    assert report.top1 >= 0.9
    assert report.images == 24
    assert report.classes == 3
    losses = [line["loss"] for line in metrics(tmp_path / "run")]
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_eval_repeats_finetunes_number(tmp_path, labelled_folder, ema):
    run = tmp_path / "run"
    options = {"val": str(labelled_folder), "ema": ema, "lr": 1e-3, "layer_decay": 1.0, "steps": 9}
    report = finetune(settings(labelled_folder, run, **options))
    again = evaluated(run, labelled_folder)
    assert (again.top1, again.top5, again.images, again.bad) == (report.top1, report.top5, 24, 0)
    assert again.top5 == 1.0  # of three classes
    assert evaluated(run, labelled_folder, batch_size=7).top1 == report.top1


def test_a_classifier_is_reported_beside_the_most_frequent_class(tmp_path, labelled_folder):
    val = tmp_path / "val"
    shutil.copytree(labelled_folder, val)
    classes = sorted(path.name for path in val.iterdir())
    for path in sorted((val / classes[0]).iterdir())[2:]:
        path.unlink()
    each = [len(list((val / name).iterdir())) for name in classes]
    told = settings(labelled_folder, tmp_path / "run", val=str(val), steps=1)
    for config in (told, replace(told, resume=True)):  # the second finds it finished, and measures nothing
        assert finetune(config).baseline_accuracy == max(each) / sum(each)


def test_finetuning_with_an_average_and_mixup_resumes_bit_for_bit(tmp_path, labelled_folder):
    options = {"ema": 0.9, "mixup": 0.8, "cutmix": 1.0, "rand_augment": "rand-m9-mstd0.5-inc1", "erasing": 0.25,
               "drop_path": 0.1, "layer_decay": 0.75, "steps": 7}  # fmt: skip
    finetune(settings(labelled_folder, tmp_path / "whole", **options))
    with pytest.raises(SignalStop, match="step 4"):
        finetune(settings(labelled_folder, tmp_path / "stopped", **options), stop_after(4))
    assert newest_checkpoint(tmp_path / "stopped").trainer["step"] == 4
    flags = {"out": str(tmp_path / "stopped"), "resume": True, "device": "cpu", "workers": 2}
    finetune(resolve(FinetuneConfig, flags).config)
    assert files_of(tmp_path / "stopped") == files_of(tmp_path / "whole")
    assert metrics(tmp_path / "stopped") == metrics(tmp_path / "whole")


def test_average_follows_the_weights_by_hand(labelled_folder):
    task = make_task(labelled_folder, ema=0.9)
    parameter = task.model.head.weight
    expected = parameter.detach().clone()
    for step in range(4):
        with torch.no_grad():
            parameter.add_(1.0)
        task.after_step(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * parameter.detach()
        torch.testing.assert_close(task.averaged.head.weight, expected)
    assert torch.equal(task.weights()["head.weight"], task.averaged.head.weight)
    assert torch.equal(task.extra_tensors()["raw/head.weight"], parameter)
    assert not any(p.requires_grad for p in task.averaged.parameters())


def batch_of(count: int = 8) -> dict[str, torch.Tensor]:
    images = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return {"images": images, "labels": torch.arange(count) % 3}


def copied(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in batch.items()}


def test_mixing_is_keyed_by_the_step(labelled_folder):
    task = make_task(labelled_folder, mixup=0.8, cutmix=1.0)
    first = task.before_step(3, copied(batch_of()))
    task.before_step(4, copied(batch_of()))
    again = task.before_step(3, copied(batch_of()))
    other = task.before_step(4, copied(batch_of()))
    assert torch.equal(first["images"], again["images"])
    assert torch.equal(first["labels"], again["labels"])
    assert not torch.equal(first["images"], other["images"])
    torch.testing.assert_close(first["labels"].sum(dim=1), torch.ones(8))
    assert first["labels"].min() > 0  # smoothed


def test_no_mixing_leaves_the_batch_alone(labelled_folder):
    even = batch_of(8)
    left = make_task(labelled_folder, mixup=0.0, cutmix=0.0).before_step(0, even)
    assert left["images"] is even["images"]
    assert left["labels"] is even["labels"]


def test_a_batch_of_the_loader_is_normalised_and_erased_on_the_device(labelled_folder):
    task, transform = (
        make_task(labelled_folder, mixup=0.0, cutmix=0.0),
        FinetuningTransform(seed=3, size=32, erasing=0.5),
    )
    source = open_data([str(labelled_folder)], labelled=True)
    part = StreamPart(seed=3, batch_size=8, images_seen=0, steps=1)
    batch = next(training_batches(source, transform, part, workers=0)).tensors
    assert {name: tensor.dtype for name, tensor in batch.items()} == {
        "images": torch.uint8, "erased": torch.int32, "noise": torch.float32, "labels": torch.int64,
    }  # fmt: skip
    made = task.before_step(0, copied(batch))
    assert set(made) == {"images", "labels"}
    start = 0
    for image, pixels, (left, upper, right, lower) in zip(
        made["images"], batch["images"], batch["erased"].tolist(), strict=True
    ):
        expected = normalize(pixels[None], MEAN, STD)[0]
        noise = batch["noise"][start : start + 3 * (lower - upper) * (right - left)]
        expected[:, upper:lower, left:right] = noise.view(3, lower - upper, right - left)
        assert torch.equal(image, expected)
        start += len(noise)
    assert 0 < start == len(batch["noise"])


def test_smoothed_loss_by_hand(labelled_folder):
    task = make_task(labelled_folder, smoothing=0.1)
    task.model.eval()
    batch = batch_of(3)
    loss, _ = task.loss(batch)
    with torch.no_grad():
        chances = task.model(batch["images"]).log_softmax(dim=1)
    by_hand = -sum(
        float(chances[row, column]) * (0.9 * (column == row) + 0.1 / 3) for row in range(3) for column in range(3)
    )
    assert float(loss.detach()) == pytest.approx(by_hand / 3, abs=1e-5)


def test_layer_decay_reaches_the_optimizer(labelled_folder):
    task = make_task(labelled_folder, layer_decay=0.5)
    scales = {round(group["lr_scale"], 6) for group in task.optimizer.param_groups}
    assert scales == {0.5**power for power in range(6)}  # the stem, four blocks, the head


# Evaluation


def test_val_with_other_classes_than_data_is_refused_with_the_names_of_both(tmp_path, labelled_folder, beit):
    for name in ("butterflies", "wolves", "red"):
        shutil.copytree(labelled_folder / "red", tmp_path / "wrong" / name)
    command = ["finetune", labelled_folder, "--recipe", "tiny", "--init", "random", "--size", 32, "--steps", 1]
    ended = beit(*command, "--val", tmp_path / "wrong", "--dry-run", "--workers", 0)
    assert ended.code == 3
    said = " ".join(ended.err.split())
    assert f"--val '{tmp_path / 'wrong'}' has 2 classes that DATA does not have, the first: 'butterflies'." in said
    assert "DATA has: blue, green, red." in said


def test_plan_says_where_the_weights_are_from(labelled_folder):
    task = make_task(labelled_folder)
    assert task.about()["model"].startswith("BEiT (absolute positions) with random weights, ")
    task.config = replace(task.config, init="runs/mine")
    assert task.about()["model"].startswith("BEiT (absolute positions) from runs/mine, ")


def test_model_says_which_classes_it_knows():
    source = SimpleNamespace(name="held-out", classes=("owl",))
    known = ["a", "b", "c", "d"]
    with pytest.raises(DataError) as raised:
        class_columns(source, known)
    assert raised.value.message == (
        "The model does not know 1 of the 1 classes of 'held-out', namely: 'owl'. It knows 4: a, b, c, ..."
    )


def test_classes_are_matched_by_name_where_the_data_has_some_of_them(tmp_path, labelled_folder):
    run = tmp_path / "run"
    finetune(settings(labelled_folder, run, steps=30, lr=2e-3, layer_decay=1.0, save_every=30))
    part = tmp_path / "part"
    for name in ("red", "blue"):
        shutil.copytree(labelled_folder / name, part / name)
    assert class_columns(open_data([str(part)], labelled=True), ["blue", "green", "red"]) == [0, 2]
    report = evaluated(run, part)
    documents = list(predicted(run, [part]))
    right = sum(document["label"] == Path(document["path"]).parent.name for document in documents)
    assert (report.images, len(documents)) == (16, 16)
    assert report.top1 == right / 16
    assert report.top1 >= 0.9


def test_a_class_that_the_model_does_not_know_is_refused(tmp_path, labelled_folder, finetuned_run):
    shutil.copytree(labelled_folder, tmp_path / "more")
    shutil.copytree(labelled_folder / "red", tmp_path / "more" / "purple")
    with pytest.raises(DataError, match="'purple'"):
        evaluated(finetuned_run, tmp_path / "more")


def test_unreadable_images_are_counted_and_past_the_limit_refused(tmp_path, labelled_folder, finetuned_run):
    shutil.copytree(labelled_folder, tmp_path / "data")
    (tmp_path / "data" / "red" / "01.png").write_bytes(b"broken")
    report = evaluated(finetuned_run, tmp_path / "data")
    assert (report.images, report.bad) == (23, 1)
    for number in (3, 5):
        (tmp_path / "data" / "red" / f"0{number}.png").write_bytes(b"broken")
    with pytest.raises(DataError, match="3 of 24"):
        evaluated(finetuned_run, tmp_path / "data")
    assert evaluated(finetuned_run, tmp_path / "data", max_bad=0.5).images == 21


def test_scores_are_those_by_hand_and_wait_for_no_single_number(labelled_folder, finetuned_run):
    model, checkpoint = open_classifier(str(finetuned_run))
    source, how = open_data([str(labelled_folder)], labelled=True), preprocessing(checkpoint, model)
    columns = [2, 0, 1]  # of a model with other names
    view = evaluation_view(32, how.crop, how.normalization)
    pixels = torch.stack([torch.from_numpy(view(source.image(i), 0, i)["images"]) for i in range(24)])
    with torch.no_grad():
        chances = model(normalize(pixels, *how.normalization)).softmax(dim=1)
    likely, best = chances.max(dim=1)
    truth = torch.tensor([columns[source.label(index)] for index in range(24)])
    waits = DeviceWaits(), DeviceWaits()
    for batch_size, those in zip((24, 7), waits, strict=True):
        with those:
            scored = score(model, source, columns, how, Batching(CPU, batch_size, 0))
    assert waits[0].names == waits[1].names  # four batches read what one does, which is torch's loader's own
    assert (scored.images, scored.top1, scored.top5) == (24, float((best == truth).double().mean()), 1.0)
    assert scored.records[:, :3].tolist() == torch.stack((torch.arange(24), truth, best), dim=1).tolist()
    assert scored.records[:, 3] == pytest.approx(likely.double().numpy(), abs=1e-6)


# Prediction


def test_predictions_are_the_models_probabilities_in_input_order(labelled_folder, finetuned_run):
    paths = [
        labelled_folder / "red" / "01.png",
        labelled_folder / "blue" / "03.png",
        labelled_folder / "red" / "00.jpg",
    ]
    documents = list(predicted(finetuned_run, paths, top=3, batch_size=2))
    assert [document["path"] for document in documents] == [str(path) for path in paths]
    model, checkpoint = open_classifier(str(finetuned_run))
    for path, document in zip(paths, documents, strict=True):
        transform = evaluation_view(32)(Image.open(path).convert("RGB"))["images"]
        with torch.no_grad():
            chances = model(normalize(torch.from_numpy(transform)[None], MEAN, STD)).softmax(dim=1)[0]
        by_hand = dict(zip(checkpoint.settings["classes"], chances.tolist(), strict=True))
        assert dict(document["top"]) == pytest.approx(by_hand, abs=1e-5)
        scores = [score for _, score in document["top"]]
        assert scores == sorted(scores, reverse=True)
        assert sum(scores) == pytest.approx(1, abs=1e-5)
        assert [document["label"], document["score"]] == document["top"][0]


def test_of_one_class_an_image_only_the_best_scores_become_python_numbers(monkeypatch, labelled_folder, finetuned_run):
    sizes, tolist = [], torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: sizes.append(tensor.numel()) or tolist(tensor))
    documents = list(predicted(finetuned_run, [labelled_folder], top=1, batch_size=24))
    assert [len(document["top"]) for document in documents] == [1] * 24
    assert sizes.count(24) >= 2  # scores and classes of the best
    assert 24 * 3 not in sizes


def test_prediction_names_an_unreadable_image_in_its_place_and_ends_with_an_error(
    tmp_path, labelled_folder, finetuned_run
):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no")
    good = labelled_folder / "red" / "01.png"
    stream = predicted(finetuned_run, [good, broken, good], top=1)
    documents = [next(stream) for _ in range(3)]
    with pytest.raises(DataError, match="1 of 3"):
        next(stream)
    assert [sorted(document) for document in documents] == [
        ["label", "path", "score", "top"], ["error", "path"], ["label", "path", "score", "top"],
    ]  # fmt: skip
    assert documents[1]["path"] == str(broken)
    assert documents[0]["top"] == documents[2]["top"]
    assert len(documents[0]["top"]) == 1


def test_weights_of_a_run_are_those_that_training_ended_with(tmp_path, labelled_folder):
    run = tmp_path / "run"
    finetune(settings(labelled_folder, run, steps=2))
    stored = load_tensors(step_folders(run / "checkpoints")[0] / "model.safetensors")
    model, _ = open_classifier(str(run))
    assert all(torch.equal(tensor, stored[name]) for name, tensor in model.state_dict().items())
