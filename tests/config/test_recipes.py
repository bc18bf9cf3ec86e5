"""Recipes: every file is valid and says where it comes from; the paper's hold the paper's numbers."""

from __future__ import annotations

import re
from dataclasses import asdict
from itertools import takewhile
from typing import Any

import pytest

from beitcli.config.common import Training
from beitcli.config.finetune import FinetuneConfig
from beitcli.config.pretrain import PretrainConfig
from beitcli.config.recipe_files import RECIPES, read_recipe, recipe_names
from beitcli.config.resolve import resolve
from beitcli.config.train_tokenizer import TrainTokenizerConfig
from beitcli.engine.train_tokenizer import token_pixels
from beitcli.tokenizers.kind import own_settings

KINDS: dict[str, type[Training]] = {
    kind.command: kind for kind in (TrainTokenizerConfig, PretrainConfig, FinetuneConfig)
}
FILES = sorted(RECIPES.rglob("*.toml"))
OURS = {"tiny", "small", "tiny-segment", "small-segment", "tiny-detect", "vqkd-small"}

# Tables 4, 5 and 12, appendix B, README: model, positions, LayerScale, epochs, warm-up in epochs and in steps, clip
PRETRAIN: dict[str, tuple[Any, ...]] = {
    "base": ("base", "absolute", 0.0, 800, 10, None, 3.0),
    "large": ("large", "absolute", 0.0, 800, 10, None, 1.0),
    "base-1k-300": ("base", "absolute", 0.0, 300, 10, None, 3.0),
    "base-1k-plus": ("base", "shared", 0.1, 300, 10, None, 3.0),
    "base-22k": ("base", "shared", 0.1, 150, None, 10_000, 3.0),
    "large-22k": ("large", "shared", 1e-5, 150, None, 10_000, 1.0),
    "giant": ("giant", "shared", 0.0, 150, None, 10_000, 1.0),
}
# BEiT v2, PRETRAINING.md of its release: model, LayerScale, drop path, block of the patches, epochs, beta2
VERSION_2: dict[str, tuple[Any, ...]] = {
    "beitv2-base": ("base", 0.1, 0.1, 9, 1600, 0.999),
    "beitv2-base-300": ("base", 0.1, 0.0, 9, 300, 0.98),
    "beitv2-large": ("large", 1e-5, 0.1, 21, 1600, 0.999),
    "beitv2-large-300": ("large", 1e-5, 0.0, 21, 300, 0.98),
}
# Table 4: masking, patches predicted, whether any is hidden; ImageNet-1k top-1, ADE20K mIoU
ABLATIONS: dict[str, tuple[Any, ...]] = {
    "base-1k-300": ("blockwise", "masked", True, "82.86", "44.65"),
    "ablation-random-masking": ("random", "masked", True, "82.77", "42.93"),
    "ablation-pixels": ("blockwise", "masked", True, "81.04", "41.38"),
    "ablation-pixels-random": ("random", "masked", True, "80.50", "37.09"),
    "ablation-predict-all": ("blockwise", "all", True, "82.59", "40.93"),
    "ablation-no-mask": ("blockwise", "all", False, "81.67", "36.73"),
}
ABLATED = {
    "ablation-random-masking": {"masking"},
    "ablation-pixels": {"target", "tokenizer"},
    "ablation-pixels-random": {"target", "tokenizer", "masking"},
    "ablation-predict-all": {"predict"},
    "ablation-no-mask": {"mask", "predict", "num_masked"},
}
# Table 13, DeiT, release: model, size, lr, batch, epochs, warm-up, layer decay, drop path, wd, mixup, cutmix, clip
FINETUNE: dict[str, tuple[Any, ...]] = {
    "base": ("base", None, 4e-3, 1024, 100, 20, 0.65, 0.1, 0.05, 0.8, 1.0, None),
    "large": ("large", None, 2e-3, 1024, 50, 5, 0.75, 0.1, 0.05, 0.8, 1.0, None),
    "base-384": ("base", 384, 5e-6, 512, 10, 2, 0.85, 0.1, 1e-8, 0.8, 1.0, None),
    "large-384": ("large", 384, 5e-6, 512, 10, 2, 0.9, 0.1, 1e-8, 0.8, 1.0, None),
    "deit": ("base", None, 1e-3, 1024, 300, 5, 1.0, 0.1, 0.05, 0.8, 1.0, None),
    "base-22k": ("base", None, 4e-3, 1024, 100, 20, 0.65, 0.1, 0.05, 0.8, 1.0, None),
    "large-22k": ("large", None, 1e-3, 1024, 50, 5, 0.75, 0.2, 0.05, 0.8, 1.0, None),
    "base-ft22k": ("base", None, 2e-5, 512, 30, 5, 0.85, 0.1, 1e-8, 0.0, 0.0, None),
    "large-ft22k": ("large", None, 2e-5, 512, 30, 5, 0.9, 0.4, 1e-8, 0.0, 0.0, None),
    "base-intermediate-22k": ("base", None, 3e-3, 4096, 90, 5, 0.65, 0.2, 0.05, 0.0, 0.0, 3.0),
    "large-intermediate-22k": ("large", None, 2e-3, 2048, 90, 5, 0.75, 0.2, 0.05, 0.0, 0.0, 1.0),
    "cifar-100": ("base", 224, 2e-3, 512, 150, 20, 0.65, 0.1, 0.3, 0.8, 1.0, None),
    "beitv2-base": ("base", None, 5e-4, 1024, 100, 20, 0.6, 0.2, 0.05, 0.8, 1.0, None),
    "beitv2-base-300": ("base", None, 5e-4, 1024, 100, 20, 0.65, 0.1, 0.05, 0.8, 1.0, None),
    "beitv2-large": ("large", None, 2e-4, 1024, 50, 5, 0.8, 0.2, 0.05, 0.8, 1.0, None),
    "beitv2-large-300": ("large", None, 5e-4, 1024, 50, 5, 0.8, 0.2, 0.05, 0.8, 1.0, None),
}
# Table 14 and the release: model, head, size, lr, layer decay, drop path, positions, LayerScale
SEGMENT: dict[str, tuple[Any, ...]] = {
    "base-ade20k": ("base", "upernet", 512, 7e-4, 0.65, 0.1, "per-block", 0.1),
    "base-ade20k-setr": ("base", "setr-pup", 512, 1e-3, 0.65, 0.1, "absolute", 0.0),
    "large-ade20k": ("large", "upernet", 640, 2e-5, 0.95, 0.2, "per-block", 1e-6),
}
# ViTDet (arXiv 2203.16527, appendix): model, size, lr, batch, epochs, warm-up in steps, layer decay, drop path, wd
DETECT: dict[str, tuple[Any, ...]] = {"base-coco": ("base", 1024, 1e-4, 64, 100, 250, 0.7, 0.1, 0.1)}
# Repeated augmentation: views of an image in a row; the least learning rate where it is not 1e-6
REPEATS = {"base": 3, "cifar-100": 3, "deit": 3}
LEAST_LR = {"base-384": 5e-6, "large-384": 5e-6, "deit": 1e-5}
# What a header promises, all of it: Tables 1, 3, 4, 5 and 11 of the paper, the release's README, ViTDet's table of MAE
EXPECTED = {
    ("pretrain", "base"): {"83.2%"},
    ("pretrain", "large"): {"85.2%"},
    ("pretrain", "base-1k-300"): {"82.86%", "44.65 mIoU"},
    ("pretrain", "base-1k-plus"): {"83.22%", "45.70 mIoU"},
    ("pretrain", "base-22k"): {"83.7%"},
    ("pretrain", "large-22k"): {"86.0%"},
    ("pretrain", "giant"): set(),
    ("finetune", "base"): {"83.2%"},
    ("finetune", "large"): {"85.2%"},
    ("finetune", "deit"): {"81.8%"},
    ("finetune", "base-384"): {"84.6%"},
    ("finetune", "large-384"): {"86.3%"},
    ("finetune", "cifar-100"): {"90.1%", "91.8%"},
    ("finetune", "base-22k"): {"83.7%"},
    ("finetune", "large-22k"): {"86.0%"},
    ("finetune", "base-ft22k"): {"85.2%"},
    ("finetune", "large-ft22k"): {"87.4%"},
    ("finetune", "base-intermediate-22k"): {"85.2%"},
    ("finetune", "large-intermediate-22k"): {"87.4%"},
    ("finetune", "base-ade20k"): {"45.70 mIoU", "53.6 mIoU", "54.2"},
    ("finetune", "base-ade20k-setr"): {"45.6 mIoU", "47.7 mIoU"},
    ("finetune", "large-ade20k"): {"56.7 mIoU", "57.0"},
    ("finetune", "base-coco"): {"51.2 box AP"},
    ("train-tokenizer", "imagenet-8k"): set(),
    **{(command, "beitv2-base"): {"85.5%"} for command in ("pretrain", "finetune")},
    **{(command, "beitv2-base-300"): {"85.0%"} for command in ("pretrain", "finetune")},
    **{(command, "beitv2-large"): {"87.3%"} for command in ("pretrain", "finetune")},
    **{(command, "beitv2-large-300"): {"86.6%"} for command in ("pretrain", "finetune")},
    ("train-tokenizer", "vqkd-base"): set(),
} | {("pretrain", name): {f"{row[3]}%", f"{row[4]} mIoU"} for name, row in ABLATIONS.items()}
_RESULT = re.compile(r"(?<![0-9.])[0-9]{2}\.[0-9]{1,2}(?:%| mIoU| box AP|(?= with --))")


def config_of(command: str, name: str) -> Any:
    flags: dict[str, Any] = {"data": ["photos"], "recipe": name}
    if command == "finetune":
        flags["init"] = "runs/pretrained"
    if command == "pretrain" and name in VERSION_2:
        flags["tokenizer"] = "runs/vqkd"  # they name none
    return resolve(KINDS[command], flags).config


def header_of(command: str, name: str) -> list[str]:
    lines = (RECIPES / command / f"{name}.toml").read_text().splitlines()
    return list(takewhile(lambda line: line.startswith("#"), lines))


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_recipe_resolves_and_its_header_says_where_it_comes_from(path):
    command, name = path.parent.name, path.stem
    assert name in recipe_names(command)
    assert config_of(command, name).recipe == name
    header = header_of(command, name)
    assert 1 <= len(header) <= 4
    assert all(line.startswith("# ") and len(line) <= 120 for line in header)
    said = " ".join(line.removeprefix("# ") for line in header)
    if name in OURS:
        assert ("docs/detection.md" if name == "tiny-detect" else "docs/results.md") in said
    else:
        version_2 = name in VERSION_2 or name == "vqkd-base"
        source = "2203.16527" if name in DETECT else "2208.06366" if version_2 else "2106.08254"
        assert f"arXiv {source}" in said
        assert "not run here" in said


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_recipe_has_one_block_of_keys_and_no_run_of_its_own(path):
    values = read_recipe(path.parent.name, path.stem)
    assert not {"data", "out", "resume", "recipe", "config", "command", "init", "seed", "device", "gpus"} & set(values)
    assert not any(isinstance(value, dict) for value in values.values())


def test_recipes_of_the_paper_are_all_in_the_tables():
    assert set(recipe_names("pretrain")) - OURS == set(PRETRAIN) | set(ABLATIONS) | set(VERSION_2)
    assert set(recipe_names("finetune")) - OURS == set(FINETUNE) | set(SEGMENT) | set(DETECT)
    assert set(recipe_names("train-tokenizer")) - OURS == {"imagenet-8k", "vqkd-base"}
    assert set(ABLATED) | {"base-1k-300"} == set(ABLATIONS)


@pytest.mark.parametrize("name", sorted(set(PRETRAIN) | set(ABLATIONS)))
def test_pretraining_recipe_has_what_all_of_the_paper_s_share(name):
    config = config_of("pretrain", name)
    assert (config.batch_size, config.lr, config.min_lr, config.weight_decay) == (2048, 1.5e-3, 1e-5, 0.05)
    assert (config.beta2, config.drop_path, config.color_jitter, config.min_crop) == (0.999, 0.1, 0.4, 0.08)
    assert (config.architecture.grid, config.patch_size, config.steps) == ((14, 14), 16, None)
    if config.mask:
        assert (config.num_masked, config.ratio, config.min_block) == (75, None, 16)


@pytest.mark.parametrize("name", PRETRAIN)
def test_pretraining_recipe_has_the_paper_s_numbers(name):
    config = config_of("pretrain", name)
    schedule = (config.epochs, config.warmup_epochs, config.warmup_steps, config.clip)
    assert (config.model, config.positions, config.layer_scale, *schedule) == PRETRAIN[name]
    assert (config.masking, config.predict, config.tokenizer) == ("blockwise", "masked", "dall-e")


@pytest.mark.parametrize("name", VERSION_2)
def test_pretraining_recipe_of_version_2_has_its_releases_numbers(name):
    config = config_of("pretrain", name)
    own = (config.model, config.layer_scale, config.drop_path, config.aggregate_after, config.epochs, config.beta2)
    assert own == VERSION_2[name]
    assert (config.batch_size, config.lr, config.min_lr, config.weight_decay) == (2048, 1.5e-3, 1e-5, 0.05)
    assert (config.warmup_epochs, config.warmup_steps, config.clip) == (10, None, 3.0)
    assert (config.color_jitter, config.min_crop, config.token_filter) == (0.4, 0.2, "bicubic")
    assert (config.normalization, config.positions, config.architecture.grid) == ("imagenet", "shared", (14, 14))
    assert (config.masking, config.num_masked, config.min_block, config.predict) == ("blockwise", 75, 16, "masked")
    assert (config.aggregate_blocks, config.aggregate_head) == (2, "shared")
    assert read_recipe("pretrain", name)["tokenizer"] == ""


@pytest.mark.parametrize("name", ABLATIONS)
def test_ablation_recipe_is_its_row_of_table_4(name):
    masking, predict, mask, top, miou = ABLATIONS[name]
    config = config_of("pretrain", name)
    assert (config.epochs, config.masking, config.predict, config.mask) == (300, masking, predict, mask)
    assert config.target == ("pixels" if "pixels" in name else "tokens")
    said = " ".join(header_of("pretrain", name))
    assert "Table 4" in said
    assert f"{top}% ImageNet-1k top-1" in said
    assert f"{miou} mIoU" in said


@pytest.mark.parametrize("name", ABLATED)
def test_ablation_recipe_differs_from_its_baseline_in_what_is_ablated_only(name):
    baseline, ablated = (asdict(config_of("pretrain", each)) for each in ("base-1k-300", name))
    assert {key for key in baseline if baseline[key] != ablated[key]} - {"recipe", "origins"} == ABLATED[name]


@pytest.mark.parametrize("name", FINETUNE)
def test_finetuning_recipe_has_the_paper_s_numbers(name):
    config = config_of("finetune", name)
    schedule = (config.lr, config.batch_size, config.epochs, config.warmup_epochs, config.layer_decay)
    regularised = (config.drop_path, config.weight_decay, config.mixup, config.cutmix, config.clip)
    size = read_recipe("finetune", name).get("size")
    assert (config.model, size, *schedule, *regularised) == FINETUNE[name]
    assert (config.smoothing, config.rand_augment) == (0.1, "rand-m9-mstd0.5-inc1")
    assert (config.min_lr, config.repeats) == (LEAST_LR.get(name, 1e-6), REPEATS.get(name, 1))
    assert (config.beta2, config.ema, config.min_crop, config.patch_size) == (0.999, 0.0, 0.08, 16)
    assert config.erasing == (0.0 if name == "cifar-100" else 0.25)
    released = {"base": ("per-block", 0.1), "large": ("per-block", 1e-5)}[config.model]
    is_released = name.endswith("22k") or name in VERSION_2
    assert (config.positions, config.layer_scale) == (released if is_released else ("absolute", 0.0))


def test_the_recipe_of_vq_kd_has_the_numbers_of_the_release():
    config = config_of("train-tokenizer", "vqkd-base")
    schedule = (config.epochs, config.warmup_epochs, config.beta2, config.weight_decay, config.min_lr, config.clip)
    assert schedule == (100, 10, 0.99, 1e-4, 1e-5, None)
    assert config.lr == pytest.approx(5e-5 * config.batch_size / 128)
    assert (config.kind, config.vocab_size, config.size, config.min_crop) == ("vqkd", 8192, 224, 0.08)
    own = own_settings(config)
    assert (own.patch_size, own.width, own.depth, own.heads, own.decoder_depth) == (16, 768, 12, 12, 1)
    assert (own.code_width, own.commitment, own.decay, own.replace_after) == (32, 1.0, 0.99, 0)


@pytest.mark.parametrize("name", SEGMENT)
def test_segmentation_recipe_has_the_numbers_of_table_14_and_the_release(name):
    config = config_of("finetune", name)
    assert (config.model, config.head, (size := config.size[0]), config.lr, config.layer_decay, config.drop_path,
            config.positions, config.layer_scale) == SEGMENT[name]  # fmt: skip
    schedule = (config.task, config.steps, config.batch_size, config.warmup_steps, config.min_lr, config.weight_decay)
    assert schedule == ("segment", 160_000, 16, 1500, 0.0, 0.05)
    assert (config.reduce_zero_label, config.ignore_index, config.short_side) == (True, 255, size)
    assert config.normalization == "imagenet"
    assert config.resize_positions == ("bilinear" if name == "base-ade20k-setr" else "release")
    views = (config.min_resize, config.max_resize, config.largest_share, config.photometric)
    assert views == (0.5, 2.0, 0.75, True)


@pytest.mark.parametrize("name", DETECT)
def test_detection_recipe_has_the_numbers_of_vitdet(name):
    config = config_of("finetune", name)
    schedule = (config.lr, config.batch_size, config.epochs, config.warmup_steps, config.layer_decay)
    assert (config.model, config.size[0], *schedule, config.drop_path, config.weight_decay) == DETECT[name]
    assert (config.min_resize, config.max_resize, config.beta2, config.clip) == (0.1, 2.0, 0.999, None)
    assert (config.task, config.head, config.head_width, config.regions) == ("detect", "faster-rcnn", 256, 512)


def test_tokenizer_recipe_has_the_numbers_of_the_paper_and_the_release():
    """Paper: 8,192 codes, 14 x 14 tokens of 112 pixels, Table 8's error. Release: codes of 512, width 256, 3 stages."""
    config = config_of("train-tokenizer", "imagenet-8k")
    assert (config.kind, config.vocab_size, config.size) == ("strided-dvae", 8192, 112)
    assert own_settings(config).code_width == 512
    assert (config.width, config.groups, config.blocks_per_group, config.reconstruction) == (256, 3, 1, "mse")
    assert config.temperature_end == 1 / 16  # DALL-E's, as the paper gives none
    assert token_pixels(config) == 8
    said = " ".join(header_of("train-tokenizer", "imagenet-8k"))
    assert "Table 8" in said
    assert "0.0880" in said


@pytest.mark.parametrize(("command", "name"), EXPECTED, ids="/".join)
def test_recipe_header_promises_the_published_results_and_no_others(command, name):
    assert set(_RESULT.findall(" ".join(header_of(command, name)))) == EXPECTED[command, name]


def test_every_recipe_of_a_paper_has_its_results_in_the_table():
    assert {(path.parent.name, path.stem) for path in FILES if path.stem not in OURS} == set(EXPECTED)


@pytest.mark.parametrize("name", ["large-ft22k", "base-22k", "base-intermediate-22k"])
def test_recipes_of_the_release_take_the_normalisation_that_pretraining_set(name):
    assert config_of("finetune", name).normalization is None
    assert config_of("pretrain", "base-22k").normalization == "inception"
    assert "0.5 / 0.5" in " ".join(header_of("finetune", name))


def test_random_weights_are_trained_without_layer_decay_whatever_the_recipe_says():
    flags = {"data": ["photos"], "init": "random", "recipe": "base-ade20k-setr"}
    assert resolve(FinetuneConfig, flags).config.layer_decay == 1.0
    assert resolve(FinetuneConfig, flags | {"init": "runs/a"}).config.layer_decay == 0.65
    assert resolve(FinetuneConfig, flags | {"layer_decay": 0.8}).config.layer_decay == 0.8
    for untrained in ("timm/vit_tiny_patch16_224@random", "timm/vit_tiny_patch16_224@random,depth=4"):
        assert resolve(FinetuneConfig, flags | {"init": untrained}).config.layer_decay == 1.0


def test_random_weights_are_trained_by_deit_where_no_recipe_is_named():
    assert resolve(FinetuneConfig, {"data": ["photos"], "init": "random"}).config.recipe == "deit"
    assert resolve(FinetuneConfig, {"data": ["photos"], "init": "runs/a"}).config.recipe == "base"
    segmenter = resolve(FinetuneConfig, {"data": ["photos"], "init": "random", "task": "segment"}).config
    assert (segmenter.recipe, segmenter.layer_decay) == ("base-ade20k", 1.0)
