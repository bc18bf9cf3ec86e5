"""Layers of settings: which one wins, what excludes what, what is refused, and config.toml there and back."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beitcli.config.attn_map import AttnMapConfig
from beitcli.config.common import Training
from beitcli.config.evaluate import EvalConfig
from beitcli.config.fields import Setting, coerce, settings_of
from beitcli.config.finetune import FinetuneConfig
from beitcli.config.inspect_export import ExportConfig
from beitcli.config.predict import PredictConfig
from beitcli.config.pretrain import PretrainConfig
from beitcli.config.recipe_files import read_recipe, recipe_names
from beitcli.config.resolve import resolve
from beitcli.config.toml_text import dump_toml, to_toml
from beitcli.config.train_tokenizer import TrainTokenizerConfig
from beitcli.errors import UsageError

TRAINING = (TrainTokenizerConfig, PretrainConfig, FinetuneConfig)
FLAGS: dict[str, dict[str, Any]] = {
    "train-tokenizer": {"data": ["photos"], "recipe": "tiny"},
    "pretrain": {"data": ["photos"], "recipe": "tiny"},
    "finetune": {"data": ["photos"], "recipe": "tiny", "init": "random"},
}


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


# Precedence


def test_resolve_takes_the_highest_layer_that_gives_a_value(tmp_path: Path) -> None:
    config = write(tmp_path / "run.toml", "lr = 3e-9\n")
    flags = {"data": ["photos"]}
    of_recipe = read_recipe("train-tokenizer", "tiny")["lr"]
    assert of_recipe not in (1.5e-3, 3e-9, 4e-9, 5e-9)
    steps = [
        ({"recipe": "tiny"}, {}, of_recipe, "recipe"),
        ({"recipe": "tiny", "config": config}, {}, 3e-9, "file"),
        ({"recipe": "tiny", "config": config}, {"BEIT_LR": "4e-9"}, 4e-9, "environment"),
        ({"recipe": "tiny", "config": config, "lr": 5e-9}, {"BEIT_LR": "4e-9"}, 5e-9, "flag"),
    ]
    for more, environ, lr, origin in steps:
        resolved = resolve(TrainTokenizerConfig, flags | more, environ=environ)
        assert (resolved.config.lr, resolved.origins["lr"]) == (lr, origin)
        assert (resolved.config.max_bad, resolved.origins["max_bad"]) == (0.05, "default")


@pytest.mark.parametrize("layer", ["flag", "environment", "file"])
def test_resolve_takes_the_recipe_from_any_layer(tmp_path: Path, layer: str) -> None:
    flags: dict[str, Any] = {"data": ["photos"]}
    environ = {}
    if layer == "flag":
        flags["recipe"] = "tiny"
    elif layer == "environment":
        environ["BEIT_RECIPE"] = "tiny"
    else:
        flags["config"] = write(tmp_path / "run.toml", 'recipe = "tiny"\n')
    config = resolve(PretrainConfig, flags, environ=environ).config
    assert (config.recipe, config.model, config.num_masked) == ("tiny", "tiny", 25)


def test_resolve_takes_the_config_file_from_the_environment(tmp_path: Path) -> None:
    path = write(tmp_path / "run.toml", 'recipe = "tiny"\nsteps = 7\n')
    assert resolve(PretrainConfig, {"data": ["photos"]}, environ={"BEIT_CONFIG": path}).config.steps == 7


def test_resolve_from_python_ignores_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEIT_SEED", "9")
    assert resolve(PretrainConfig, FLAGS["pretrain"]).config.seed == 0


# What excludes what

PAIRS = [("steps", 5, "epochs", 2.0), ("num_masked", 4, "ratio", 0.5), ("warmup_steps", 3, "warmup_epochs", 1.0)]


@pytest.mark.parametrize(("one", "first", "other", "second"), PAIRS)
@pytest.mark.parametrize("layer", ["flag", "environment", "file"])
def test_resolve_refuses_both_of_a_pair_in_one_layer(
    tmp_path: Path, layer: str, one: str, first: Any, other: str, second: Any
) -> None:
    flags, environ = dict(FLAGS["pretrain"]), {}
    if layer == "flag":
        flags |= {one: first, other: second}
    elif layer == "environment":
        environ = {f"BEIT_{one.upper()}": str(first), f"BEIT_{other.upper()}": str(second)}
    else:
        flags["config"] = write(tmp_path / "run.toml", f"{one} = {first}\n{other} = {second}\n")
    with pytest.raises(UsageError) as caught:
        resolve(PretrainConfig, flags, environ=environ)
    assert f"--{one.replace('_', '-')}" in caught.value.message
    assert f"--{other.replace('_', '-')}" in caught.value.message


@pytest.mark.parametrize(("one", "first", "other", "second"), PAIRS + [(c, d, a, b) for a, b, c, d in PAIRS])
def test_resolve_lets_a_higher_layer_clear_the_other_of_a_pair(
    tmp_path: Path, one: str, first: Any, other: str, second: Any
) -> None:
    path = write(tmp_path / "run.toml", f"{other} = {second}\n")
    below = FLAGS["pretrain"] | {"config": path}
    variable = {f"BEIT_{one.upper()}": str(first)}
    for flags, environ in ((below | {one: first}, {}), (below, variable)):
        config = resolve(PretrainConfig, flags, environ=environ).config
        assert (getattr(config, one), getattr(config, other)) == (first, None)


def test_resolve_lets_a_flag_clear_the_recipe_s_steps() -> None:
    config = resolve(PretrainConfig, FLAGS["pretrain"] | {"epochs": 2.0}).config
    assert (config.steps, config.epochs) == (None, 2.0)


# What is refused


def test_resolve_refuses_an_unknown_key_and_suggests_the_nearest(tmp_path: Path) -> None:
    path = write(tmp_path / "run.toml", "num_maskd = 3\n")
    with pytest.raises(UsageError) as caught:
        resolve(PretrainConfig, FLAGS["pretrain"] | {"config": path})
    assert "'num_maskd'" in caught.value.message
    assert path in caught.value.message
    assert caught.value.hint == "Did you mean 'num_masked'?"


def test_resolve_takes_keys_with_dashes(tmp_path: Path) -> None:
    path = write(tmp_path / "run.toml", "num-masked = 3\n")
    assert resolve(PretrainConfig, FLAGS["pretrain"] | {"config": path}).config.num_masked == 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('command = "finetune"\n', "beit finetune"),
        ("lr = \n", "not valid TOML"),
        ('lr = "fast"\n', "lr in"),
        ("steps = 2.5\n", "steps in"),
        ("[model]\nwidth = 3\n", "model in"),
    ],
)
def test_resolve_refuses_a_wrong_file(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve(PretrainConfig, FLAGS["pretrain"] | {"config": write(tmp_path / "run.toml", text)})
    assert said in caught.value.message
    assert "run.toml" in caught.value.message + caught.value.hint


def test_resolve_refuses_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes(b'out = "\xe9"\n')
    for path in (tmp_path / "absent.toml", tmp_path, tmp_path / "latin.toml"):
        with pytest.raises(UsageError, match=str(path)):
            resolve(PretrainConfig, FLAGS["pretrain"] | {"config": str(path)})


def test_resolve_refuses_an_unknown_variable_and_suggests_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        resolve(PretrainConfig, FLAGS["pretrain"], environ={"BEIT_STEPSS": "3"})
    assert "BEIT_STEPSS" in caught.value.message
    assert caught.value.hint == "Did you mean 'BEIT_STEPS'?"
    with pytest.raises(UsageError) as caught:
        resolve(PretrainConfig, FLAGS["pretrain"], environ={"BEIT_CACHE_DRI": "3"})
    assert caught.value.hint == "Did you mean 'BEIT_CACHE_DIR'?"
    with pytest.raises(UsageError) as caught:
        resolve(PretrainConfig, FLAGS["pretrain"], environ={"BEIT_XYZZY": "3"})
    assert caught.value.hint == "Unset it: unset BEIT_XYZZY"


def test_resolve_passes_over_variables_of_other_commands_and_programs() -> None:
    environ = {"BEIT_KL_WEIGHT": "1", "BEIT_CACHE_DIR": "/x", "HOME": "/root", "LR": "5"}
    passed = resolve(PretrainConfig, FLAGS["pretrain"], environ=environ, known_elsewhere=lambda: {"kl_weight"})
    assert passed == resolve(PretrainConfig, FLAGS["pretrain"])


def test_resolve_names_the_variable_of_a_wrong_value() -> None:
    with pytest.raises(UsageError, match="BEIT_STEPS is 'many'"):
        resolve(PretrainConfig, FLAGS["pretrain"], environ={"BEIT_STEPS": "many"})


@pytest.mark.parametrize("missing", ["data", "init"])
def test_resolve_refuses_to_do_without_what_is_required(missing: str) -> None:
    flags = {name: value for name, value in FLAGS["finetune"].items() if name != missing}
    with pytest.raises(UsageError, match="is missing"):
        resolve(FinetuneConfig, flags)


@pytest.mark.parametrize(
    ("kind", "given", "message", "usage"),
    [
        (PredictConfig, {"model": "a.jpg"}, "MODEL is taken as 'a.jpg', and INPUT is missing.", "MODEL INPUT..."),
        (EvalConfig, {"model": "a"}, "MODEL is taken as 'a', and DATA is missing.", "MODEL DATA..."),
        (
            ExportConfig,
            {"model": "a"},
            "MODEL is taken as 'a', and --output is missing.",
            "MODEL --to timm|hf|official|onnx --output DIR",
        ),
        (PredictConfig, {}, "MODEL is missing.", "MODEL INPUT..."),
        (AttnMapConfig, {}, "IMAGE is missing.", "IMAGE..."),
    ],
    ids=str,
)
def test_resolve_says_what_an_argument_was_taken_for(
    kind: type, given: dict[str, Any], message: str, usage: str
) -> None:
    with pytest.raises(UsageError) as caught:
        resolve(kind, given)
    assert caught.value.message == message
    assert caught.value.hint.startswith(f"Write `beit {kind.command} {usage}` (")


def test_what_is_missing_is_explained_in_one_sentence() -> None:
    with pytest.raises(UsageError) as caught:
        resolve(PretrainConfig, {})
    assert caught.value.hint.startswith("Write `beit pretrain DATA...` (DATA, images: a folder, ")


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"epochs": 0.0},
        {"epochs": float("inf")},
        {"epochs": float("nan")},
        {"lr": -1.0},
        {"lr": float("inf")},
        {"batch_size": 0},
        {"micro_batch": 0},
        {"keep": 0},
        {"save_every": 0},
        {"max_bad": 1.5},
        {"max_bad": float("nan")},
        {"seed": -1},
        {"limit": 0},
        {"workers": -2},
        {"gpus": 0},
        {"clip": 0.0},
        {"drop_path": 2.0},
        {"min_crop": -0.1},
        {"model": "tny"},
        {"image_size": 65},
        {"mask": False},
    ],
    ids=str,
)
def test_pretrain_config_refuses_values_that_cannot_be_met(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        resolve(PretrainConfig, FLAGS["pretrain"] | wrong)
    assert caught.value.hint


@pytest.mark.parametrize("command", ["train-tokenizer", "pretrain", "finetune"])
def test_recipes_are_all_valid(command: str) -> None:
    config_class = next(kind for kind in TRAINING if kind.command == command)
    for name in recipe_names(command):
        needed = {"tokenizer": "runs/vqkd"} if command == "pretrain" and name.startswith("beitv2") else {}
        config = resolve(config_class, FLAGS[command] | needed | {"recipe": name}).config
        assert config.recipe == name


@pytest.mark.parametrize("kind", TRAINING, ids=lambda kind: kind.command)
def test_recipe_of_the_default_is_there(kind: type[Training]) -> None:
    flags = {name: value for name, value in FLAGS[kind.command].items() if name != "recipe"}
    resolved = resolve(kind, flags)
    assert resolved.config.recipe in recipe_names(kind.command)
    assert resolved.origins["recipe"] == "default"


def test_recipe_that_is_misspelt_gets_a_suggestion() -> None:
    with pytest.raises(UsageError) as caught:
        resolve(PretrainConfig, FLAGS["pretrain"] | {"recipe": "tinny"})
    assert "Did you mean 'tiny'?" in caught.value.hint
    assert "small" in caught.value.hint


# config.toml there and back

OTHER = {
    "recipe": "small",
    "tokenizer_recipe": "small",
    "model": "small",
    "image_size": (96, 128),
    "patch_size": 16,
    "size": 96,
    "masking": "random",
    "epochs": 3.0,
    "steps": 17,
    "data": ("a b", 'c"d', "e,f"),
    "init": "runs/é",
    "ignore_index": 254,
    "max_resize": 2.5,
    "ema": 0.9,
    "kind_settings": ("a=b", "c=d e"),
    "temperature_end": 1e-7,
    "lr": 1e16,
    "predict": "all",
    "intensity_range": "0,4095",
}


def another(setting: Setting, value: Any) -> Any:
    """A valid value that is not the setting's own."""
    if setting.name in OTHER:
        return OTHER[setting.name]
    if setting.choices:
        return next(choice for choice in setting.choices if choice != value)
    if setting.kind is bool:
        return not value
    if setting.kind is str:
        return 'quoted "text" \\ and\nmore'
    return 0.123 if setting.kind is float else (value or 0) + 1


def changes() -> list[Any]:
    cases = []
    for kind in TRAINING:
        for name, setting in settings_of(kind).items():
            has_another = len(setting.choices) != 1 and (
                name != "recipe" or OTHER["recipe"] in recipe_names(kind.command)
            )
            if setting.option.saved and has_another:
                cases.append(pytest.param(kind, setting, id=f"{kind.command}-{name}"))
    return cases


@pytest.mark.parametrize(("kind", "setting"), changes())
def test_config_file_repeats_every_saved_setting(tmp_path: Path, kind: type[Training], setting: Setting) -> None:
    config = resolve(kind, FLAGS[kind.command]).config
    change = {setting.name: another(setting, getattr(config, setting.name))}
    if setting.option.tasks:
        change["task"] = setting.option.tasks[0]
    if setting.name == "mask":
        change["predict"] = "all"
    if setting.name in ("aggregate_blocks", "aggregate_head"):
        change["aggregate_after"] = 1
    value = resolve(kind, FLAGS[kind.command] | change).config
    assert getattr(value, setting.name) != getattr(config, setting.name)
    path = write(tmp_path / "config.toml", dump_toml(value, "Repeat: beit"))
    named = change if setting.option.is_cache else {}  # a file may not say where to write
    again = resolve(kind, {"config": path} | named).config
    assert replace(again, config=None) == value


def test_each_panel_of_a_config_file_stands_there_once() -> None:
    lines = dump_toml(resolve(PretrainConfig, FLAGS["pretrain"]).config).splitlines()
    titles = [line for before, line in pairwise(lines) if not before and line.startswith("# ")]
    assert len(titles) > 4
    assert len(titles) == len(set(titles))


@pytest.mark.parametrize(("size", "line"), [("64", "image_size = 64"), ("64x96", "image_size = [64, 96]")])
def test_sizes_are_the_same_from_every_layer(tmp_path: Path, size: str, line: str) -> None:
    config = resolve(PretrainConfig, FLAGS["pretrain"] | {"image_size": size}).config
    assert line in dump_toml(config).splitlines()
    path = write(tmp_path / "config.toml", line)
    for flags in ({"config": path}, {}):
        environ = {} if flags else {"BEIT_IMAGE_SIZE": size}
        assert (
            resolve(PretrainConfig, FLAGS["pretrain"] | flags, environ=environ).config.image_size == config.image_size
        )
    assert config.architecture.grid == (8, config.image_size[1] // 8)


@pytest.mark.parametrize("kind", TRAINING, ids=lambda kind: kind.command)
def test_config_file_of_a_run_repeats_it(request: pytest.FixtureRequest, kind: type[Training]) -> None:
    fixtures = {"train-tokenizer": "tokenizer_run", "pretrain": "pretrained_run", "finetune": "finetuned_run"}
    saved = request.getfixturevalue(fixtures[kind.command]) / "config.toml"
    values = tomllib.loads(saved.read_text())
    again = resolve(kind, {"config": str(saved)}).config
    unsaved = {name for name, setting in settings_of(kind).items() if not setting.option.saved}
    unset = {name for name in settings_of(kind) if getattr(again, name) is None}
    of_others = {name for name, each in settings_of(kind).items() if not each.belongs_to(getattr(again, "task", None))}
    assert values.pop("command") == kind.command
    assert set(values) == set(settings_of(kind)) - unsaved - unset - of_others
    for name, value in values.items():
        assert getattr(again, name) == coerce(settings_of(kind)[name], value, "config.toml")
    assert (again.steps, again.batch_size, again.epochs) == (4, 8, None)


@given(st.one_of(st.text(), st.integers(), st.booleans(), st.floats(allow_nan=False), st.lists(st.text())))
def test_to_toml_is_read_back_as_it_was(value: Any) -> None:
    read = tomllib.loads(f"key = {to_toml(value)}\n")["key"]
    assert read == value
    assert type(read) is type(value)


@given(header=st.text(), data=st.text(min_size=1))
def test_dump_toml_is_valid_whatever_stands_in_paths(header: str, data: str) -> None:
    config = resolve(PretrainConfig, FLAGS["pretrain"] | {"data": [data]}).config
    assert tomllib.loads(dump_toml(config, header))["data"] == [data]


# --resume


@pytest.fixture
def saved_run(tmp_path: Path) -> Path:
    run = tmp_path / "run"
    run.mkdir()
    config = resolve(PretrainConfig, FLAGS["pretrain"] | {"steps": 10, "lr": 0.01}).config
    write(run / "config.toml", dump_toml(config))
    return run


def test_resume_goes_on_with_the_run_s_own_settings(saved_run: Path) -> None:
    config = resolve(PretrainConfig, {"out": str(saved_run), "resume": True}).config
    assert (config.data, config.steps, config.lr, config.model) == (("photos",), 10, 0.01, "tiny")
    assert config.resume
    assert config.out == str(saved_run)


@pytest.mark.parametrize("harmless", ["device", "workers", "save_every", "keep", "log_every", "compile"])
def test_resume_takes_harmless_differences(saved_run: Path, harmless: str) -> None:
    value = {"device": "cpu", "compile": True}.get(harmless, 3)
    config = resolve(PretrainConfig, {"out": str(saved_run), "resume": True, harmless: value}).config
    assert getattr(config, harmless) == value


def test_resume_lists_every_difference_and_refuses(saved_run: Path, tmp_path: Path) -> None:
    flags = {"out": str(saved_run), "resume": True, "lr": 0.02, "data": ["others"]}
    flags["config"] = write(tmp_path / "more.toml", "min_block = 9\n")
    before = (saved_run / "config.toml").read_bytes()
    with pytest.raises(UsageError) as caught:
        resolve(PretrainConfig, flags, environ={"BEIT_SEED": "5"})
    for said in (
        "--lr: the run has 0.01, given is 0.02",
        '["photos"], given is ["others"]',
        "--seed: the run has 0, given is 5",
        "--min-block: the run has 4, given is 9",
    ):
        assert said in caught.value.message
    assert "--steps" not in caught.value.message
    assert (saved_run / "config.toml").read_bytes() == before


def test_resume_refuses_epochs_where_the_run_counts_steps(saved_run: Path) -> None:
    with pytest.raises(UsageError) as caught:
        resolve(PretrainConfig, {"out": str(saved_run), "resume": True, "epochs": 3.0})
    assert caught.value.message == (
        "These settings differ from the run's own: --epochs 3.0 is given, and the run began without it; the run began "
        "with --steps 10."
    )


def test_resume_needs_out() -> None:
    with pytest.raises(UsageError) as caught:
        resolve(PretrainConfig, FLAGS["pretrain"] | {"resume": True})
    assert "--out" in caught.value.hint


def test_resume_begins_where_there_is_no_run(tmp_path: Path) -> None:
    config = resolve(PretrainConfig, FLAGS["pretrain"] | {"resume": True, "out": str(tmp_path / "new")}).config
    assert config.model == "tiny"


def test_resume_refuses_a_run_of_another_command(saved_run: Path) -> None:
    with pytest.raises(UsageError, match="beit pretrain"):
        resolve(FinetuneConfig, {"out": str(saved_run), "resume": True})


# Settings of one task


def finetune(task: str, **more: Any) -> dict[str, Any]:
    return {"data": ["photos"], "init": "random", "recipe": "tiny", "task": task, **more}


OF_ONE_TASK = [
    (name, task)
    for name, setting in settings_of(FinetuneConfig).items()
    for task in ("classify", "segment", "detect")
    if not setting.belongs_to(task)
]


def test_every_task_has_settings_of_its_own() -> None:
    tasks = settings_of(FinetuneConfig)["task"].choices
    named = {each for setting in settings_of(FinetuneConfig).values() for each in setting.option.tasks}
    assert named == set(tasks)
    assert {task for _, task in OF_ONE_TASK} == set(tasks)
    assert not [setting for kind in TRAINING[:2] for setting in settings_of(kind).values() if setting.option.tasks]


@pytest.mark.parametrize("layer", ["flag", "file"])
@pytest.mark.parametrize(("name", "task"), OF_ONE_TASK)
def test_setting_of_another_task_is_refused_and_its_own_task_named(
    tmp_path: Path, name: str, task: str, layer: str
) -> None:
    setting = settings_of(FinetuneConfig)[name]
    value = another(setting, setting.default)
    flags = finetune(task)
    if layer == "flag":
        flags[name], given = value, setting.flag
    else:
        flags["config"] = write(tmp_path / "run.toml", f"{name} = {to_toml(value)}\n")
        given = f"{name} in {flags['config']}"
    with pytest.raises(UsageError) as caught:
        resolve(FinetuneConfig, flags)
    assert caught.value.message.startswith(f"{given} is a setting of --task {' or '.join(setting.option.tasks)};")
    assert caught.value.message.endswith(f"this is --task {task}.")
    own = setting.option.tasks[0]
    assert f"--task {own}" in caught.value.hint
    assert getattr(resolve(FinetuneConfig, flags | {"task": own}).config, name) == value


@pytest.mark.parametrize(("name", "task"), OF_ONE_TASK)
def test_a_variable_of_another_task_is_passed_by(name: str, task: str) -> None:
    """It may be there for another command: BEIT_MIN_CROP is `pretrain`'s too."""
    setting = settings_of(FinetuneConfig)[name]
    environ = {f"BEIT_{name.upper()}": str(another(setting, setting.default))}
    assert resolve(FinetuneConfig, finetune(task), environ=environ).config.task == task


def test_setting_of_another_task_given_as_its_default_is_refused_as_a_flag_but_not_in_a_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--regions is a setting of --task detect"):
        resolve(FinetuneConfig, finetune("classify", regions=512))
    path = write(tmp_path / "run.toml", "regions = 512\n")
    assert resolve(FinetuneConfig, finetune("classify", config=path)).config.regions == 512


def test_config_file_holds_the_settings_of_its_task_only() -> None:
    saved = tomllib.loads(dump_toml(resolve(FinetuneConfig, finetune("detect")).config))
    assert {"task", "regions", "min_resize", "repeats"} <= set(saved)
    assert not {"mixup", "rand_augment", "ignore_index", "photometric"} & set(saved)


# What a run of a version before wrote: every setting of every task, those of a recipe of another task too
BEFORE = """command = "finetune"
data = ["photos"]
recipe = "tiny"
init = "random"
task = "segment"
size = 64
model = "tiny"
epochs = 10.0
mixup = 0.0
cutmix = 0.0
smoothing = 0.1
rand_augment = ""
repeats = 1
erasing = 0.0
min_crop = 0.5
ignore_index = 254
reduce_zero_label = false
min_resize = 0.5
max_resize = 2.0
largest_share = 0.75
photometric = true
head_width = 256
regions = 512
"""


def test_run_of_a_version_before_goes_on_and_is_repeated(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    path = write(tmp_path / "run" / "config.toml", BEFORE)
    resumed = resolve(FinetuneConfig, {"out": str(tmp_path / "run"), "resume": True}).config
    repeated = resolve(FinetuneConfig, {"config": path}).config
    with_both = resolve(FinetuneConfig, {"out": str(tmp_path / "run"), "resume": True, "config": path}).config
    for config in (resumed, repeated, with_both):
        assert (config.task, config.ignore_index, config.mixup, config.min_crop) == ("segment", 254, 0.0, 0.5)
    write(tmp_path / "run" / "config.toml", BEFORE.replace("mixup = 0.0", "mixup = 0.3"))  # asked for, without effect
    assert resolve(FinetuneConfig, {"out": str(tmp_path / "run"), "resume": True}).config.task == "segment"
    with pytest.raises(UsageError, match=r"mixup in .*config\.toml is a setting of --task classify"):
        resolve(FinetuneConfig, {"config": path})
    with pytest.raises(UsageError, match="--mixup is a setting of --task classify"):
        resolve(FinetuneConfig, {"out": str(tmp_path / "run"), "resume": True, "mixup": 0.3})


def test_head_of_another_task_is_told_before_its_settings() -> None:
    with pytest.raises(UsageError, match="--head upernet is no head of --task classify"):
        resolve(FinetuneConfig, finetune("classify", head="upernet", ignore_index=3))


def test_a_run_goes_on_with_what_held_before_a_setting_existed(tmp_path):
    """A config.toml that lacks the key keeps the earlier value; one that has it keeps its own."""
    flags = {"data": ["photos"], "recipe": "tiny", "init": "random", "out": str(tmp_path)}
    begun = resolve(FinetuneConfig, flags).config
    assert (begun.decay_bias_tables, begun.mixup_group) == (True, 128)
    text = dump_toml(begun)
    (tmp_path / "config.toml").write_text(text)
    assert resolve(FinetuneConfig, {"out": str(tmp_path), "resume": True}).config.decay_bias_tables
    older = [line for line in text.splitlines() if not line.startswith(("decay_bias_tables", "mixup_group"))]
    (tmp_path / "config.toml").write_text("\n".join(older))
    resumed = resolve(FinetuneConfig, {"out": str(tmp_path), "resume": True}).config
    assert (resumed.decay_bias_tables, resumed.mixup_group) == (False, 0)


HEADER = "beit 0.1.0. Repeat: beit finetune --config runs/a/config.toml --out NEW"


def test_a_run_of_an_earlier_version_is_repeated_as_it_was(tmp_path):
    """Whatever its file is called by now; a file that somebody wrote means today's defaults."""
    flags = {"data": ["photos"], "recipe": "tiny", "init": "random", "out": str(tmp_path)}
    text = dump_toml(resolve(FinetuneConfig, flags).config, HEADER)
    assert resolve(FinetuneConfig, written(tmp_path, text)).notes == ()
    older = "\n".join(line for line in text.splitlines() if not line.startswith(("holdout", "mixup_group", "problem")))
    repeated = resolve(FinetuneConfig, written(tmp_path, older))
    assert (repeated.config.holdout, repeated.config.mixup_group, repeated.config.measure_share) == (0, 0, 0.1)
    (note,) = repeated.notes
    assert note.endswith("of an earlier version, where it was holdout = 0, mixup_group = 0; so it is here.")
    beside = resolve(FinetuneConfig, written(tmp_path, older) | {"holdout": 7})
    assert (beside.config.holdout, beside.config.mixup_group) == (7, 0)
    own = resolve(FinetuneConfig, written(tmp_path, older.partition("\n")[2]))
    assert (own.config.holdout, own.config.mixup_group, own.notes) == (50, 128, ())


def test_a_segmentation_of_an_earlier_version_is_repeated_without_the_settings_of_other_tasks(tmp_path):
    flags = {"data": ["photos"], "recipe": "tiny-segment", "task": "segment", "init": "random", "out": str(tmp_path)}
    lines = dump_toml(resolve(FinetuneConfig, flags).config, HEADER).splitlines()
    older = "\n".join(line for line in lines if not line.startswith("holdout"))
    assert resolve(FinetuneConfig, written(tmp_path, older)).config.holdout == 0


def written(folder, text):
    (folder / "copy.toml").write_text(text)
    return {"config": str(folder / "copy.toml")}
