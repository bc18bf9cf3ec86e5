"""`train-tokenizer --kind vqkd`: a codebook learned from a teacher's features, its runs and its teacher."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from beitcli.cli.app import main
from beitcli.config.resolve import resolve
from beitcli.config.train_tokenizer import TrainTokenizerConfig
from beitcli.engine.events import ignore
from beitcli.engine.tokenizer_teacher import teacher_for
from beitcli.engine.train_tokenizer import tokenizer_job
from beitcli.engine.trainer.data import open_images
from beitcli.errors import UsageError
from beitcli.models.checkpoints.build import open_backbone
from beitcli.runtime.compute.device import choose_compute
from beitcli.runtime.compute.optimizer import parameter_groups
from beitcli.runtime.distributed.world import SINGLE_PROCESS
from beitcli.runtime.storage.checkpoint import newest_checkpoint
from beitcli.tokenizers.kind import architecture_of, kind_of, untrained
from beitcli.tokenizers.open import open_tokenizer
from beitcli.tokenizers.vqkd import VQKDArchitecture
from tests.helpers.processes import in_processes

TEACHER = "timm/vit_tiny_patch16_224@random,depth=1,embed_dim=24"
SETTINGS = ("width=32", "depth=1", "heads=2", "patch_size=4")


def training(out: Path, steps: int = 6, *more: object) -> list[str]:
    own = [word for each in SETTINGS for word in ("--set", each)]
    words = [
        "train-tokenizer", "sample", "--kind", "vqkd", "--teacher", TEACHER, *own, "--limit", 120, "--vocab-size", 48,
        "--size", 16, "--steps", steps, "--batch-size", 12, "--save-every", 3, "--log-every", 1, "--workers", 0,
        "--device", "cpu", "--quiet", "--out", out, *more,
    ]  # fmt: skip
    return list(map(str, words))


def config_of(**flags: object) -> TrainTokenizerConfig:
    given = {"data": ["sample"], "kind": "vqkd", "vocab_size": 48, "size": 16, "device": "cpu", "teacher": TEACHER}
    return resolve(TrainTokenizerConfig, given | {"kind_settings": list(SETTINGS)} | flags).config


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("vqkd") / "run"
    assert main(training(out)) == 0
    return out


def newest(run: Path) -> Path:
    found = newest_checkpoint(run)
    assert found is not None
    return found.path


def test_a_run_opens_and_encodes_and_its_codes_lie_on_the_sphere(run):
    tokenizer = open_tokenizer(str(run))
    assert (tokenizer.vocab_size, tokenizer.size, tokenizer.model.downsample) == (48, 16, 4)
    images = torch.rand(11, 3, 16, 16)
    tokens = tokenizer.encode(images)
    assert tokens.shape == (11, 16)
    assert torch.equal(tokenizer.encode_batch_invariant(images)[4:5], tokenizer.encode_batch_invariant(images[4:5]))
    assert tokenizer.encode(torch.rand(1, 3, 24, 20)).shape == (1, 30)
    torch.testing.assert_close(tokenizer.model.quantizer.codebook.norm(dim=1), torch.ones(48))
    section = json.loads((newest(run) / "config.json").read_text())["beit"]
    assert (section["tokenizer_kind"], section["architecture"]["target_width"]) == ("vqkd", 24)
    assert section["teacher"]["reference"] == TEACHER
    assert len(section["teacher"]["sha256"]) == 64


def test_what_is_measured_is_the_cosine_to_the_teacher(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert "held_out_psnr" not in lines[-1]
    assert lines[-1]["cosine"] > lines[0]["cosine"]
    assert -1 <= lines[-1]["held_out_cosine"] <= 1
    card = (run / "README.md").read_text()
    assert "# A visual tokenizer (VQ-KD)" in card
    assert "| cosine to the teacher's features | " in card
    assert "PSNR" not in card


def test_a_resumed_run_equals_one_that_was_never_stopped(run, tmp_path):
    copied = shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(copied / "checkpoints/step-0000006")
    assert main(["train-tokenizer", "--out", str(copied), "--resume", "--quiet"]) == 0
    resumed, whole = (load_file(newest(each) / "model.safetensors") for each in (copied, run))
    assert resumed.keys() == whole.keys()
    for name, tensor in whole.items():
        assert torch.equal(resumed[name], tensor), name


@pytest.mark.slow
def test_processes_and_micro_batches_learn_the_same_codes(run, tmp_path):
    for ended in in_processes(2, training(tmp_path / "run", 6, "--micro-batch", 2)):
        assert ended.code == 0, ended.err
    alone, shared = (load_file(newest(each) / "model.safetensors") for each in (run, tmp_path / "run"))
    for name, tensor in alone.items():
        torch.testing.assert_close(shared[name], tensor, rtol=2e-3, atol=2e-4, msg=name)


def test_the_loss_is_that_of_the_release_by_hand():
    torch.manual_seed(0)
    config = config_of()
    compute = choose_compute("cpu", "fp32")
    teacher = teacher_for(config, (4, 4), compute, ignore)
    assert teacher is not None
    model = untrained(config, teacher)
    objective = kind_of(config).objective(model, config, 10, SINGLE_PROCESS, teacher=teacher)
    images = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    objective.before_step(0, images, torch.arange(3))
    loss, parts = objective.loss(model, images, None)
    vectors = model.vectors(2 * images.float() / 255 - 1)
    vectors = vectors / vectors.norm(dim=-1, keepdim=True)
    codes = (vectors[..., None, :] - model.quantizer.codebook).square().sum(-1).argmin(-1)
    chosen = model.quantizer.codebook[codes]
    commitment = (vectors - chosen).square().mean()
    predicted, targets = model.features_of(chosen), teacher.features(images)
    cosine = ((predicted / predicted.norm(dim=-1, keepdim=True)) * (targets / targets.norm(dim=-1, keepdim=True))).sum(
        -1
    )
    torch.testing.assert_close(loss, 1 - cosine.mean() + commitment)
    torch.testing.assert_close(parts["commitment"], commitment.detach())
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in teacher.model.parameters())
    assert not targets.requires_grad
    assert not teacher.model.training
    measured = objective.held_out_metrics(images / 255, codes.flatten(1))
    torch.testing.assert_close(measured["cosine"], cosine.detach().mean(1))


def test_positions_and_class_tokens_are_not_decayed():
    model = untrained(config_of())
    decayed = {id(each) for group in parameter_groups(model, 0.1) if group["weight_decay"] for each in group["params"]}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in decayed}
    assert "encoder.patch_embed.proj.weight" in names
    assert not {name for name in names if name.endswith(("cls_token", "pos_embed", "bias"))}


def test_the_teacher_sees_the_view_in_its_own_size_and_normalisation():
    """Patches of 16 pixels on a grid of 4 x 4: 64 pixels, and positions resized from 14 x 14."""
    compute = choose_compute("cpu", "fp32")
    teacher = teacher_for(config_of(), (4, 4), compute, ignore)
    assert teacher is not None
    assert (teacher.size, teacher.width) == ((64, 64), 24)
    model, _ = open_backbone(TEACHER, (64, 64))
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    larger = F.interpolate(images / 255, (64, 64), mode="bicubic", antialias=True).clamp(0, 1)
    mean, std = torch.tensor([0.5] * 3), torch.tensor([0.5] * 3)  # timm's for this model
    expected = model.forward_features((larger - mean.view(3, 1, 1)) / std.view(3, 1, 1))[:, 1:]
    torch.testing.assert_close(teacher.features(images), expected.detach())


def test_a_finetuned_teacher_has_its_own_last_norm(beit: Callable, finetuned_run: Path):
    compute = choose_compute("cpu", "fp32")
    teacher = teacher_for(config_of(teacher=str(finetuned_run)), (4, 4), compute, ignore)
    assert teacher is not None
    stored = load_file(newest(finetuned_run) / "model.safetensors")
    assert torch.equal(teacher.model.fc_norm.weight, stored["fc_norm.weight"])
    assert teacher.features(torch.rand(2, 3, 16, 16)).shape == (2, 16, teacher.width)


def test_a_clip_s_features_are_projected_as_in_the_release(tmp_path):
    name, arguments = "vit_base_patch16_clip_224", {"embed_dim": 24, "depth": 1, "num_heads": 2}
    torch.manual_seed(0)
    original = timm.create_model(name, num_classes=20, img_size=64, **arguments).eval()
    save_file(original.state_dict(), tmp_path / "model.safetensors")
    about = {"architecture": name, "num_classes": 20, "model_args": arguments | {"img_size": 64}}
    about["pretrained_cfg"] = {"mean": [0.5] * 3, "std": [0.25] * 3, "num_classes": 20}
    (tmp_path / "config.json").write_text(json.dumps(about))
    compute = choose_compute("cpu", "fp32")
    teacher = teacher_for(config_of(teacher=str(tmp_path)), (4, 4), compute, ignore)
    assert teacher is not None
    assert teacher.width == 20
    images = torch.rand(2, 3, 64, 64)
    expected = original.head(original.forward_features((images - 0.5) / 0.25)[:, 1:])
    torch.testing.assert_close(teacher.features(images), expected.detach(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--kind", "vqkd"), "--kind vqkd learns from a teacher, and none is given"),
        (("--kind", "vq", "--teacher", TEACHER), "--kind vq has no use for --teacher"),
        (("--kind", "vqkd", "--teacher", TEACHER, "--set", "heads=5"), "is not divided by 5 heads"),
        (("--kind", "vqkd", "--teacher", TEACHER, "--size", 20), "--size 20 is not divided by 8"),
        (("--kind", "vqkd", "--teacher", "timm/resnet18@random"), "is no BEiT and no plain vision Transformer"),
    ],
)
def test_what_does_not_go_together_is_refused(beit: Callable, tmp_path: Path, flags, said):
    ended = beit("train-tokenizer", "sample", *flags, "--steps", 1, "--device", "cpu", "--out", tmp_path / "run")
    assert ended.code == 2
    assert said in ended.err, ended.err
    assert not (tmp_path / "run").exists()


def test_an_own_tokenizer_cannot_have_a_teacher(beit: Callable, tmp_path: Path):
    line = ("pretrain", "sample", "--recipe", "tiny", "--tokenizer-recipe", "vqkd-small", "--steps", 1)
    ended = beit(*line, "--device", "cpu", "--out", tmp_path / "run")
    assert (ended.code, "to `beit train-tokenizer`" in ended.err) == (2, True), ended.err


def test_a_teacher_may_be_moved_but_not_changed_on_resume(beit: Callable, finetuned_run: Path, tmp_path: Path):
    teacher, out = shutil.copytree(finetuned_run, tmp_path / "teacher"), tmp_path / "run"
    line = training(out, 2, "--teacher", teacher)
    line[line.index("--save-every") + 1] = "1"
    assert main(line) == 0
    shutil.rmtree(newest(out))
    moved = teacher.rename(tmp_path / "moved")
    resume = ("train-tokenizer", "--out", out, "--resume", "--quiet", "--teacher", moved)
    ended = beit(*resume)
    assert ended.code == 0, ended.err
    shutil.rmtree(newest(out))
    shutil.rmtree(newest(moved))  # leaves the checkpoint before
    refused = beit(*resume)
    assert (refused.code, "is not the one that run" in refused.err) == (4, True), refused.err


@pytest.mark.parametrize("wrong", [{"vocab_size": 0}, {"code_width": 0}, {"width": 32.0}, {"depth": True}], ids=str)
def test_an_architecture_that_cannot_be_is_refused(wrong):
    shape = architecture_of(config_of()) | {"target_width": 0}
    assert VQKDArchitecture(**shape).depth == 1
    with pytest.raises(UsageError, match=f"The tokenizer's {next(iter(wrong))} is"):
        VQKDArchitecture(**shape | wrong)


def test_crops_are_as_small_as_they_may_be():
    config = config_of(kind="vq", teacher=None, kind_settings=[], limit=20, min_crop=0.08)
    source = open_images(config, labelled=False, size=32, on_event=ignore, world=SINGLE_PROCESS)
    job = tokenizer_job(config, source, choose_compute("cpu", "fp32"), ignore)
    assert job.transform.min_crop == 0.08


def test_settings_of_a_recipe_stay_beside_those_that_are_given():
    flags = {"data": ["photos"], "recipe": "vqkd-base", "teacher": "timm/a", "kind_settings": ["decoder_depth=3"]}
    settings = resolve(TrainTokenizerConfig, flags).config.kind_settings
    assert "decoder_depth=3" in settings
    assert "width=768" in settings
    assert "decoder_depth=1" not in settings


def test_vqkd_has_a_recipe_of_its_own_where_none_is_named():
    assert config_of().recipe == "vqkd-small"
    assert config_of(kind="vq", teacher=None, kind_settings=[]).recipe == "small"


def test_a_trained_tokenizer_teaches_pretraining(beit: Callable, run: Path, labelled_folder: Path, tmp_path: Path):
    flags = ("--recipe", "tiny", "--image-size", 32, "--num-masked", 6, "--steps", 2, "--batch-size", 8)
    line = ("pretrain", labelled_folder, "--tokenizer", run, *flags, "--workers", 0, "--device", "cpu")
    ended = beit(*line, "--out", tmp_path / "pretrained")
    assert ended.code == 0, ended.err
    assert beit("inspect", run).lines[0]["grid"] == [4, 4]
    assert beit("tokenize", labelled_folder, "--tokenizer", run, "--stats").lines[0]["psnr"] is None
