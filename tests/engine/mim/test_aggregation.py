"""Patch aggregation in a run: losses, metrics, settings, resuming, processes, and what opens the result."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.utils import counters

from beitcli.cli.app import main
from beitcli.config.pretrain import PretrainConfig
from beitcli.config.resolve import resolve
from beitcli.engine.mim.task import PretrainTask
from beitcli.engine.pretrain import pretrain
from beitcli.errors import StorageError, UsageError
from beitcli.models.checkpoints.build import open_masked_image_model
from beitcli.models.checkpoints.open import open_model, open_unverified
from beitcli.models.networks.patch_aggregation import PatchAggregationModel
from beitcli.runtime.storage.checkpoint import newest_checkpoint
from tests.engine.mim.test_objective import a_batch, assert_near, gradients, make_task, with_backend
from tests.engine.trainer.test_processes import assert_alike, pretraining, run_in
from tests.helpers.foreign_models import SHARED, ReleasedAggregating, save_released

ON = ("--aggregate-after", 2)


def aggregating(**flags: Any) -> PretrainTask:
    return make_task(aggregate_after=2, **flags)


def batch_for(task: PretrainTask, **kind: bool) -> dict[str, torch.Tensor]:
    batch = a_batch(6, **kind)
    return batch | {"uniforms": torch.rand(6, task.num_uniforms, generator=torch.Generator().manual_seed(9))}


def command(data: Path, tokenizer: Path, out: Path, *more: object) -> list[object]:
    return [
        "pretrain", data, "--recipe", "tiny", "--tokenizer", tokenizer, "--image-size", 32, "--num-masked", 6,
        "--steps", 4, "--batch-size", 8, "--micro-batch", 3, "--drop-path", 0.2, "--color-jitter", 0.4, "--save-every",
        2, "--log-every", 1, "--workers", 0, "--device", "cpu", "--quiet", *ON, "--out", out, *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def run(labelled_folder: Path, tokenizer_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four steps with patch aggregation after block 2 of 4, with a head of its own; checkpoints of steps 2 and 4."""
    out = tmp_path_factory.mktemp("aggregation") / "run"
    words = command(labelled_folder, tokenizer_run, out, "--aggregate-head", "own")
    assert main([str(word) for word in words]) == 0
    return out


# Settings


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"aggregate_after": 4}, "--aggregate-after 4 .* has 4"),
        ({"aggregate_after": -1}, "--aggregate-after"),
        ({"aggregate_after": 2, "aggregate_blocks": 0}, "--aggregate-blocks"),
        ({"aggregate_blocks": 3}, "is off"),
        ({"aggregate_head": "own"}, "is off"),
        ({"recipe": "beitv2-base"}, "Recipe 'beitv2-base' names no tokenizer"),
        ({"tokenizer": ""}, "names no tokenizer"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_met_are_refused_with_the_way_out(flags, said):
    with pytest.raises(UsageError, match=said) as caught:
        resolve(PretrainConfig, {"recipe": "tiny", "data": ["none"]} | flags)
    assert caught.value.hint


def test_a_recipe_of_version_2_takes_any_tokenizer_and_needs_none_for_pixels():
    given = resolve(PretrainConfig, {"recipe": "beitv2-base", "data": ["none"], "tokenizer": "runs/mine"}).config
    assert (given.tokenizer, given.aggregation.as_dict()) == ("runs/mine", {"after": 9, "blocks": 2, "head": "shared"})
    assert resolve(PretrainConfig, {"recipe": "beitv2-base", "data": ["none"], "target": "pixels"}).config.aggregation


# The step


@torch.no_grad()
def test_the_loss_is_the_sum_of_both_cross_entropies_and_tokens_are_counted_once():
    task = aggregating(aggregate_head="own")
    batch = batch_for(task)
    task.model.eval()
    loss, metrics = task.loss(batch)
    pixels = task.objective.normalizer(batch["images"], batch["color"])
    last, second = task.model(pixels, batch["mask"])
    tokens = batch["visual_tokens"][batch["mask"]]
    losses = [F.cross_entropy(each, tokens).item() for each in (last, second)]
    right = [float((each.argmax(1) == tokens).float().mean()) for each in (last, second)]
    assert loss.item() == pytest.approx(sum(losses), abs=1e-5)
    said = {name: float(value) for name, value in metrics.items()}
    assert said == pytest.approx(
        {"masked_loss": losses[0], "aggregated_loss": losses[1], "masked_accuracy": right[0],
         "aggregated_accuracy": right[1]}, abs=1e-5,
    )  # fmt: skip
    assert task.target.local_counts.sum() == 36


def test_padding_counts_for_neither_loss():
    task = aggregating()
    task.model.eval()
    batch = batch_for(task)
    loss, metrics = task.loss(batch)
    padded = {name: torch.cat((tensor, tensor[:1].roll(1, -1))) for name, tensor in batch.items()}
    valid = torch.tensor([True] * 6 + [False])
    same, its_metrics = task.loss(padded | {"valid": valid})
    assert same.item() == pytest.approx(loss.item(), abs=1e-6)
    for name, value in metrics.items():
        assert float(its_metrics[name]) == pytest.approx(float(value), abs=1e-6)


def test_the_last_blocks_part_is_what_the_run_without_aggregation_computes():
    plain, task = make_task(drop_path=0.0), aggregating(drop_path=0.0)
    batch = {name: tensor for name, tensor in a_batch(6).items() if name != "uniforms"}
    state = task.model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in plain.model.state_dict().items())
    loss, metrics = plain.loss(batch)
    both, its_metrics = task.loss(batch)
    assert set(metrics) == {"masked_accuracy"}
    assert float(its_metrics["masked_loss"]) == pytest.approx(float(loss.detach()), abs=1e-6)
    assert both > loss
    assert task.num_uniforms == plain.num_uniforms == 0


@pytest.mark.parametrize(
    "flags", [{"target": "pixels"}, {"predict": "all"}, {"mask": False, "predict": "all"}], ids=str
)
def test_the_ablations_go_with_aggregation(flags):
    task = aggregating(**flags)
    task.model.train()
    batch = batch_for(task, mask=flags.get("mask", True), tokens=flags.get("target") != "pixels")
    loss, metrics = task.loss(batch)
    parts = {"masked_loss", "aggregated_loss"}
    assert set(metrics) - parts == (set() if "target" in flags else {"masked_accuracy", "aggregated_accuracy"})
    assert loss.item() == pytest.approx(sum(float(metrics[name]) for name in parts), abs=1e-6)
    loss.backward()
    idle = {name for name, each in task.model.named_parameters() if each.grad is None}
    assert idle == (set() if flags.get("mask", True) else {"mask_token"})


@pytest.mark.slow
@pytest.mark.parametrize("flags", [{}, {"positions": "shared", "layer_scale": 0.1, "aggregate_head": "own"}], ids=str)
def test_the_compiled_step_is_one_graph_with_the_plain_loss_and_gradients(flags):
    torch._dynamo.reset()
    counters.clear()
    task = aggregating(**flags)
    batch = batch_for(task)
    task.model.train()
    plain_loss, plain = gradients(task, batch)
    loss, compiled = gradients(with_backend(task), batch)
    assert dict(counters["graph_break"]) == {}
    assert counters["stats"]["unique_graphs"] == 1
    assert loss == pytest.approx(plain_loss, abs=1e-5)
    assert_near(compiled, plain)
    torch._dynamo.reset()


# The run


def test_a_run_says_both_losses_and_accuracies_and_what_it_is(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        assert line["loss"] == pytest.approx(line["masked_loss"] + line["aggregated_loss"], rel=1e-5)
        assert 0 <= line["aggregated_accuracy"] <= 1
    last = lines[-1]
    held_out = {name: last[f"held_out_{name}"] for name in ("loss", "masked_loss", "aggregated_loss")}
    assert held_out["loss"] == pytest.approx(held_out["masked_loss"] + held_out["aggregated_loss"])
    assert {"held_out_aggregated_accuracy", "held_out_masked_accuracy", "held_out_unigram_entropy"} <= set(last)
    card = (run / "README.md").read_text()
    assert "patch aggregation: patches of block 2, 2 more blocks, a head of their own" in card
    assert "aggregated loss" in card


def test_the_held_out_figures_are_of_the_saved_weights(labelled_folder, tokenizer_run, tmp_path):
    words = {"recipe": "tiny", "data": [str(labelled_folder)], "tokenizer": str(tokenizer_run), "image_size": 32,
             "num_masked": 6, "steps": 1, "batch_size": 8, "device": "cpu", "workers": 0}  # fmt: skip
    report = pretrain(resolve(PretrainConfig, words | {"out": str(tmp_path / "a"), "aggregate_after": 2}).config)
    of_one_image = {"measured_patches", "measured_images"}  # whose accuracy has no standard error
    assert set(report.further) == of_one_image | {"masked_loss", "aggregated_loss", "aggregated_accuracy"}
    assert report.loss == pytest.approx(report.further["masked_loss"] + report.further["aggregated_loss"])


@pytest.mark.slow
def test_a_stopped_run_goes_on_bit_for_bit(beit, run, labelled_folder, tokenizer_run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints/step-0000004")
    assert beit("pretrain", "--out", tmp_path / "run", "--resume", "--device", "cpu", "--quiet").code == 0
    for name in ("model.safetensors", "trainer.safetensors"):
        place = f"checkpoints/step-0000004/{name}"
        assert (tmp_path / "run" / place).read_bytes() == (run / place).read_bytes()
    refused = beit("pretrain", "--out", tmp_path / "run", "--resume", "--aggregate-after", 3)
    assert refused.code == 2
    assert "--aggregate-after: the run has 2, given is 3" in refused.err


@pytest.mark.slow
def test_two_processes_and_a_spread_model_learn_the_same(labelled_folder, tokenizer_run, tmp_path):
    for size, more in ((1, ()), (2, ()), (2, ("--shard", "--micro-batch", 3))):
        out = tmp_path / f"{size}{len(more)}"
        run_in(size, pretraining(labelled_folder, tokenizer_run, out, *ON, *more))
    assert_alike(tmp_path / "10", tmp_path / "20")
    assert_alike(tmp_path / "10", tmp_path / "23")


def test_a_dry_run_counts_the_extra_blocks(beit, labelled_folder, tokenizer_run):
    plans = {}
    for name, more in {"on": ON, "off": ()}.items():
        ended = beit("pretrain", labelled_folder, "--recipe", "tiny", "--tokenizer", tokenizer_run, "--image-size", 32,
                     "--num-masked", 6, "--batch-size", 4, "--device", "cpu", "--workers", 0, "--dry-run", "--json",
                     *more)  # fmt: skip
        assert ended.code == 0, ended.err
        plans[name] = json.loads(ended.out)["plan"]
    assert plans["on"]["patch aggregation"] == "patches of block 2, 2 more blocks, the same head"
    assert "patch aggregation" not in plans["off"]
    count = {name: int(plan["model"].split()[2].replace(",", "")) for name, plan in plans.items()}
    assert count["on"] - count["off"] == 2 * (12 * 128**2 + 2 * 128 + 128 + 5 * 128 + 4 * 128)
    flops = {name: float(plan["compute"].split()[0]) for name, plan in plans.items()}
    assert flops["on"] / flops["off"] == pytest.approx(1.5, rel=0.05)


# What opens the result


def test_a_run_opens_as_any_other_and_keeps_its_extra_blocks_for_itself(beit, run, labelled_folder, tmp_path):
    said = json.loads(beit("inspect", run).out)
    assert said["architecture"]["aggregation"] == {"after": 2, "blocks": 2, "head": "own"}
    stored = newest_checkpoint(run).model_tensors()
    assert said["parameters"] == sum(tensor.numel() for tensor in stored.values())
    assert said["dropped"] == []
    model, _ = open_masked_image_model(str(run))
    assert not isinstance(model, PatchAggregationModel)
    assert all(torch.equal(tensor, stored[name]) for name, tensor in model.state_dict().items())
    tuned = beit("finetune", labelled_folder, "--init", run, "--recipe", "tiny", "--size", 32, "--steps", 1,
                 "--batch-size", 4, "--device", "cpu", "--workers", 0, "--out", tmp_path / "tuned")  # fmt: skip
    assert tuned.code == 0, tuned.err
    assert "the head of its pretraining is dropped (35 tensors)" in tuned.err  # with the extra blocks
    assert not any(name.startswith("cls_pt") for name in newest_checkpoint(tmp_path / "tuned").model_tensors())
    picture = next(labelled_folder.rglob("*.png"))
    assert beit("attn-map", picture, "--model", run, "-o", tmp_path / "a.png", "--device", "cpu").code == 0
    masked = beit("mask-preview", picture, "--model", run, "-o", tmp_path / "m.png", "--device", "cpu")
    assert masked.code == 0, masked.err
    knn = beit("eval", run, labelled_folder, "--protocol", "knn", "--train", labelled_folder, "--device", "cpu")
    assert knn.code == 0, knn.err


@pytest.mark.parametrize("to", ["official", "timm", "hf"])
def test_an_export_has_the_extra_blocks_where_the_layout_has_a_place(beit, run, tmp_path, to):
    ended = beit("export", run, "--to", to, "-o", tmp_path / "out", "--json")
    assert ended.code == 0, ended.err
    dropped = " ".join(json.loads(ended.out)["dropped"])
    before, after = open_model(str(run)), open_model(str(tmp_path / "out"))
    mine, theirs = before.tensors(), after.tensors()
    assert all(torch.equal(mine[name], tensor) for name, tensor in theirs.items())
    if to == "official":
        assert dropped == ""
        assert after.aggregation == before.aggregation
        assert set(theirs) == set(mine)
        stored = torch.load(tmp_path / "out/model.pth", weights_only=True)
        assert {"cls_pt_layers.0.attn.qkv.weight", "cls_pt_norm.weight", "cls_pt_lm_head.weight"} <= set(
            stored["model"]
        )
        assert (stored["args"]["early_layers"], stored["args"]["shared_lm_head"]) == (2, False)
    else:
        assert "cls_pt_layers.*.norm1.weight (2)" in dropped
        assert after.aggregation is None


@pytest.mark.parametrize("stated", [{}, {"early_layers": 2, "head_layers": 2}], ids=["bare", "with args"])
def test_the_releases_checkpoint_opens_with_its_extra_blocks(beit, tmp_path, stated, labelled_folder):
    path = save_released(ReleasedAggregating(64, **SHARED), tmp_path / "beitv2.pth", **stated)
    said = json.loads(beit("inspect", path).out)
    assert (said["kind"], said["format"], said["dropped"]) == ("masked-image-model", "official", [])
    assert said["architecture"]["aggregation"] == {"after": 2 if stated else 0, "blocks": 2, "head": "shared"}
    picture = next(labelled_folder.rglob("*.png"))
    seen = beit("attn-map", picture, "--model", path, "-o", tmp_path / "a.png", "--device", "cpu")
    assert seen.code == 0, seen.err
    assert beit("mask-preview", picture, "--model", path, "--json", "--device", "cpu").code == 0
    assert beit("export", path, "--to", "official", "-o", tmp_path / "again").code == 0
    again = open_model(str(tmp_path / "again")).tensors()
    assert all(torch.equal(tensor, again[name]) for name, tensor in open_model(str(path)).tensors().items())


@torch.no_grad()
def test_the_releases_first_prediction_is_ours(tmp_path):
    released = ReleasedAggregating(64, **SHARED)
    model, _ = open_masked_image_model(str(save_released(released, tmp_path / "beitv2.pth")))
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    mask = torch.rand(2, 16, generator=torch.Generator().manual_seed(2)) < 0.4
    torch.testing.assert_close(model(images, mask), released(images, mask)[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("wrong", [{"after": "two"}, {"after": 0}, {"after": True}, "nine"], ids=str)
def test_a_config_with_another_aggregation_is_refused(run, tmp_path, wrong):
    checkpoint = newest_checkpoint(run).path
    config = json.loads((checkpoint / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((checkpoint / "model.safetensors").read_bytes())
    assert open_unverified(str(tmp_path)).aggregation.as_dict() == {"after": 2, "blocks": 2, "head": "own"}
    config["beit"]["aggregation"] = wrong
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(StorageError):
        open_unverified(str(tmp_path))
