"""Settings as people give them: those without effect are refused, and files of other systems are read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from beitcli.cli.multi_process import goes_on
from beitcli.config.attn_map import AttnMapConfig
from beitcli.config.cache import CacheConfig
from beitcli.config.embed import EmbedConfig
from beitcli.config.evaluate import EvalConfig
from beitcli.config.fields import refuse_unused_by, settings_of
from beitcli.config.finetune import FinetuneConfig
from beitcli.config.mask_preview import MaskPreviewConfig
from beitcli.config.predict import PredictConfig
from beitcli.config.resolve import resolve
from beitcli.config.tokenize import TokenizeConfig
from beitcli.config.toml_text import dump_toml
from beitcli.config.train_tokenizer import TrainTokenizerConfig
from beitcli.errors import UsageError
from beitcli.tokenizers.kinds.vqkd import VQKDSettings

VQKD = {"data": ("photos",), "kind": "vqkd", "teacher": "timm/vit"}
LABELS = {"data": ("labels.csv",), "init": "random", "problem": "multi-label"}


@pytest.mark.parametrize("kind", ["vq", "fsq", "vqkd"])
@pytest.mark.parametrize(
    ("name", "value", "needs_stages"),
    [
        ("width", 64, True),
        ("groups", 2, True),
        ("blocks_per_group", 2, True),
        ("reconstruction", "logit-laplace", True),
        ("kl_weight", 1e-4, False),
        ("usage_weight", 1e-2, False),
        ("temperature_end", 0.5, False),
    ],
)
def test_a_setting_that_a_tokenizer_kind_does_not_use_is_refused(
    kind: str, name: str, value: object, needs_stages: bool
) -> None:
    given = {"data": ("photos",), name: value}
    flag = "--" + name.replace("_", "-")
    if needs_stages and kind != "vqkd":
        assert getattr(resolve(TrainTokenizerConfig, given | {"kind": kind}).config, name) == value
    else:
        with pytest.raises(UsageError, match=f"{flag} has no effect with --kind {kind}"):
            resolve(TrainTokenizerConfig, given | {"kind": kind})
    for other in ("dvae", "strided-dvae"):
        assert getattr(resolve(TrainTokenizerConfig, given | {"kind": other}).config, name) == value


@pytest.mark.parametrize(("name", "own"), [("width", "width"), ("groups", "patch_size"), ("blocks_per_group", "depth")])
def test_a_refused_setting_of_stages_names_that_of_the_kind(name: str, own: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve(TrainTokenizerConfig, VQKD | {name: 2})
    assert caught.value.hint.startswith(f"Give --set {own}=N, ")
    assert own in settings_of(VQKDSettings)


def test_recipes_variables_and_earlier_files_may_hold_unused_settings(tmp_path: Path) -> None:
    assert resolve(TrainTokenizerConfig, VQKD, environ={"BEIT_WIDTH": "7"}).config.width == 7
    path = tmp_path / "run.toml"
    path.write_text("width = 32\n", encoding="utf-8")
    assert resolve(TrainTokenizerConfig, VQKD | {"config": str(path)}).config.width == 32
    path.write_text("width = 33\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"width in .*run\.toml has no effect with --kind vqkd"):
        resolve(TrainTokenizerConfig, VQKD | {"config": str(path)})


def test_a_file_with_a_byte_order_mark_and_crlf_is_read(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(b'\xef\xbb\xbfdata = ["caf\xc3\xa9"]\r\nwidth = 48\r\n')
    config = resolve(TrainTokenizerConfig, {"config": str(path)}).config
    assert (config.data, config.width) == (("caf\u00e9",), 48)


@pytest.mark.parametrize(("name", "value"), [("mixup", 0.4), ("cutmix", 1.0), ("smoothing", 0.1), ("mixup_group", 64)])
def test_mixing_of_classes_is_refused_where_an_image_has_several_labels(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=f"--{name.replace('_', '-')} has no effect with --problem multi-label"):
        resolve(FinetuneConfig, LABELS | {name: value})
    assert getattr(resolve(FinetuneConfig, LABELS | {name: 0}).config, name) == 0  # none is what there is
    assert getattr(resolve(FinetuneConfig, LABELS | {"problem": "single-label", name: value}).config, name) == value


@pytest.mark.parametrize(
    ("name", "value"), [("model", "tiny"), ("patch_size", 16), ("positions", "per-block"), ("layer_scale", 0.1)]
)
def test_a_flag_of_a_model_from_random_weights_is_refused_beside_weights(
    name: str, value: object, tmp_path: Path
) -> None:
    given = {"data": ("photos",), "recipe": "small"}
    for init in ("runs/mine", "runs/mine@random", "timm/vit_tiny_patch16_224@random,depth=4"):
        with pytest.raises(UsageError, match=f"--{name.replace('_', '-')} has no effect with --init {init}"):
            resolve(FinetuneConfig, given | {"init": init, name: value})
    assert getattr(resolve(FinetuneConfig, given | {"init": "random", name: value}).config, name) == value
    path = tmp_path / "run.toml"
    path.write_text(f"{name} = {value!r}\n", encoding="utf-8")
    assert getattr(resolve(FinetuneConfig, given | {"init": "runs/mine", "config": str(path)}).config, name) == value


def test_a_run_that_was_started_with_such_a_flag_goes_on_with_it(tmp_path: Path) -> None:
    started = resolve(FinetuneConfig, {"data": ("photos",), "init": "random", "recipe": "small"}).config
    text = dump_toml(replace(started, init="runs/mine", model="tiny"))
    (tmp_path / "config.toml").write_text(text, encoding="utf-8")
    given = {"data": ("photos",), "init": "runs/mine", "model": "tiny", "out": str(tmp_path), "resume": True}
    assert resolve(FinetuneConfig, given).config.model == "tiny"


def test_help_of_each_layer_says_where_it_counts_from_and_where_the_others_do() -> None:
    own, others = {AttnMapConfig: "from 0", EmbedConfig: "from 1", EvalConfig: "from 1"}, ("`attn-map`", "`e")
    for config, start in own.items():
        text = settings_of(config)["layer"].help
        assert start in text.split("(")[0]
        assert others[config is AttnMapConfig] in text
        assert {"from 0", "from 1"} == {word for word in ("from 0", "from 1") if word in text}


@pytest.mark.parametrize(
    ("protocol", "name", "value"),
    [
        *[("head", name, value) for name, value in (("k", 5), ("pool", "class"), ("standardize", True))],
        *[("head", "feature_norm", False), ("head", "probe_lr", 1e-3), ("head", "feature_cache", "cache")],
        *[("knn", "probe_epochs", 5), ("knn", "flip", True), ("knn", "ignore_index", 0)],
        *[("linear", "k", 5), ("linear", "temperature", 0.1), ("linear", "window", 32)],
        *[("elbo", "k", 5), ("elbo", "feature_norm", True), ("elbo", "multi_scale", True)],
    ],
)
def test_a_setting_that_a_protocol_does_not_use_is_refused(protocol: str, name: str, value: object) -> None:
    given = {"model": "runs/a", "data": ("photos",), "protocol": protocol, name: value}
    with pytest.raises(UsageError, match=f"--{name.replace('_', '-')} has no effect with --protocol {protocol}"):
        resolve(EvalConfig, given)


def test_settings_of_a_protocol_are_taken() -> None:
    given = {"model": "runs/a", "data": ("photos",)}
    assert resolve(EvalConfig, given | {"protocol": "knn", "k": 5, "feature_norm": False}).config.k == 5
    assert resolve(EvalConfig, given | {"protocol": "linear", "probe_epochs": 3}).config.probe_epochs == 3
    assert resolve(EvalConfig, given | {"window": 32, "flip": True, "ignore_index": 0}).config.window == 32
    assert resolve(EvalConfig, given, environ={"BEIT_K": "7"}).config.k == 7  # of another call
    assert resolve(PredictConfig, {"model": "runs/a", "inputs": ("a.png",), "flip": True}).config.flip
    for kind, role in ((EvalConfig, "data"), (PredictConfig, "inputs")):
        with pytest.raises(UsageError, match="--size is given beside it"):
            resolve(kind, {"model": "runs/a", role: ("photos",), "window": 16, "size": 32})


@pytest.mark.parametrize(
    ("kind", "given", "said"),
    [
        (MaskPreviewConfig, {"stats": 3, "inputs": ("sample",)}, "INPUT has no effect with --stats"),
        (MaskPreviewConfig, {"stats": 3, "limit": 4}, "--limit has no effect with --stats"),
        (MaskPreviewConfig, {"stats": 3, "preview": True}, "--preview has no effect with --stats"),
        (MaskPreviewConfig, {"animate": "runs/a", "epoch": 3}, "--epoch has no effect with --animate"),
        (MaskPreviewConfig, {"animate": "runs/a", "stats": 3}, "--stats has no effect with --animate"),
        (MaskPreviewConfig, {"inputs": ("a.png",), "tokenizer": "dall-e"}, "no effect without --model"),
        (TokenizeConfig, {"resume": True}, "--resume has no file"),
        (TokenizeConfig, {"resume": True, "stats": True, "output": "a.png"}, "--resume has no file"),
        (TokenizeConfig, {"resume": True, "output": "a.npz", "codebook": "b.png"}, "all images"),
        (TokenizeConfig, {"codes": 9}, "--codes has no effect without --codebook"),
        (TokenizeConfig, {"decode": True, "limit": 3}, "--limit has no effect with --decode"),
        (TokenizeConfig, {"decode": True, "stats": True}, "--stats has no effect with --decode"),
        (TokenizeConfig, {"decode": True, "reconstruct": "a"}, "--reconstruct has no effect with --decode"),
        (TokenizeConfig, {"decode": True, "resume": True}, "--resume has no effect with --decode"),
        (CacheConfig, {"action": "list", "all": True}, "--all has no effect with beit cache list"),
        (CacheConfig, {"dry_run": True}, "--dry-run has no effect with beit cache list"),
        (CacheConfig, {"action": "dir", "kind": ("features",)}, "--kind has no effect with beit cache dir"),
    ],
    ids=str,
)
def test_a_setting_without_effect_beside_another_is_refused(kind: type, given: dict[str, object], said: str) -> None:
    needed = {"tokenizer": "dall-e"} if kind is TokenizeConfig else {}
    with pytest.raises(UsageError, match=said):
        resolve(kind, needed | given)
    resolve(kind, needed, environ={"BEIT_LIMIT": "3", "BEIT_CODES": "9"}, known_elsewhere=lambda: {"limit", "codes"})


def test_a_variable_without_effect_is_that_of_another_command() -> None:
    assert resolve(MaskPreviewConfig, {"stats": 3}, environ={"BEIT_LIMIT": "4"}).config.limit == 4


def test_a_variable_that_the_model_does_not_use_is_that_of_another_command(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"model": "runs/a", "inputs": ("a.png",)}
    typed = resolve(PredictConfig, given | {"score_threshold": 0.3}).config
    with pytest.raises(UsageError, match="--score-threshold has no effect on 'runs/a', a segmenter"):
        refuse_unused_by(typed, ("segment",), "a segmenter")
    variable = {"BEIT_SCORE_THRESHOLD": "0.3"}
    refuse_unused_by(resolve(PredictConfig, given, environ=variable).config, ("segment",), "a segmenter")
    both = resolve(PredictConfig, given | {"score_threshold": 0.4}, environ=variable).config
    with pytest.raises(UsageError, match="--score-threshold has no effect"):
        refuse_unused_by(both, ("segment",), "a segmenter")  # what was typed wins over the variable
    monkeypatch.setenv("BEIT_SCORE_THRESHOLD", "0.3")
    with pytest.raises(UsageError, match="--score-threshold has no effect"):
        refuse_unused_by(typed, ("segment",), "a segmenter")  # as of Python, which reads no variables
    later = replace(resolve(PredictConfig, given, environ=variable).config, top=3)
    assert later.origins["score_threshold"] == "environment"


@pytest.mark.parametrize(
    ("given", "resumes"),
    [
        ({"output": "t.npz"}, True),
        ({"output": "t.npz", "map": "maps"}, True),
        ({"output": "t.npz", "map": "maps.v2"}, True),
        ({"output": "t.npz", "map": "maps.png/"}, True),
        ({"output": "t.npz", "overwrite": True}, False),
        ({"output": "t.npz", "map": "sheet.png"}, False),
        ({"output": "t.npz", "codebook": "codes.png"}, False),
        ({"stats": True}, False),
        ({}, False),
    ],
)
def test_a_restarted_job_resumes_only_what_can_be(given: dict[str, object], resumes: bool) -> None:
    config = resolve(TokenizeConfig, {"inputs": ("photos",), "tokenizer": "dall-e"} | given).config
    assert goes_on(config) == resumes
    assert bool(config.starts_over) == (not resumes and "overwrite" not in given)
    resolve(TokenizeConfig, {"inputs": ("photos",), "tokenizer": "dall-e", "resume": resumes} | given)


@pytest.mark.parametrize(
    ("kind", "given", "why"),
    [
        (TokenizeConfig, {"stats": True, "tokenizer": "dall-e"}, "--stats is about all images together"),
        (TokenizeConfig, {"tokenizer": "dall-e"}, "what is on stdout is out already"),
        (EmbedConfig, {"model": "runs/a", "query": "a.png", "output": "b.png"}, "--query is about all images together"),
    ],
    ids=str,
)
def test_why_a_job_is_not_started_again_is_told(kind: type, given: dict[str, object], why: str) -> None:
    config = resolve(kind, {"inputs": ("photos",)} | given).config
    assert config.starts_over.startswith(why)
