"""Settings and their values: coercion from text and TOML, and what a wrong value is told."""

from __future__ import annotations

import pytest

from beitcli.cli.command_table import COMMANDS
from beitcli.config.embed import EmbedConfig
from beitcli.config.evaluate import EvalConfig
from beitcli.config.fields import coerce, settings_of
from beitcli.config.mask_preview import MaskPreviewConfig
from beitcli.config.nearest import suggestion
from beitcli.config.pretrain import PretrainConfig
from beitcli.engine.probing.forms import form_of
from beitcli.errors import UsageError

PRETRAIN = settings_of(PretrainConfig)


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("steps", "12", 12),
        ("steps", 12.0, 12),
        ("lr", "1e-3", 1e-3),
        ("lr", 1, 1.0),
        ("mask", "off", False),
        ("mask", "YES", True),
        ("mask", True, True),
        ("data", "a b;c,d", ("a b", "c,d")),
        ("data", ["a", "b,c"], ("a", "b,c")),
        ("limit", None, None),
        ("positions", "shared", "shared"),
    ],
)
def test_coerce_gives_the_setting_its_type(name: str, given: object, expected: object) -> None:
    value = coerce(PRETRAIN[name], given, "here")
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize("config", [EmbedConfig, EvalConfig])
def test_both_words_of_the_class_token_are_taken_and_one_is_offered(config: type) -> None:
    pool = settings_of(config)["pool"]
    assert {"mean", "cls", "cls+mean"} <= set(pool.choices)
    assert not any("class" in choice for choice in pool.choices)
    assert [coerce(pool, word, "--pool") for word in ("class", "cls", "class+mean", "cls+mean", "mean")] == [
        *("cls", "cls", "cls+mean", "cls+mean", "mean")
    ]
    with pytest.raises(UsageError, match="'clss', which is no choice"):
        coerce(pool, "clss", "--pool")


@pytest.mark.parametrize("word", ["cls+mean", "class+mean"])
def test_a_probe_reads_the_class_token_by_either_word(word: str) -> None:
    pool = coerce(settings_of(EvalConfig)["pool"], word, "--pool")
    assert form_of(EvalConfig(model="m", data=("d",), protocol="linear", pool=pool)).pool == "class+mean"


@pytest.mark.parametrize(
    ("name", "given", "needed"),
    [
        ("steps", "many", "a whole number"),
        ("steps", 1.5, "a whole number"),
        ("steps", float("inf"), "a whole number"),
        ("steps", True, "a whole number"),
        ("steps", [1], "a whole number"),
        ("lr", "fast", "a number"),
        ("lr", False, "a number"),
        ("lr", None, "a number"),
        ("mask", "perhaps", "true or false"),
        ("out", 3, "text"),
        ("data", 3, "a list"),
    ],
)
def test_coerce_refuses_another_type_and_names_the_origin(name: str, given: object, needed: str) -> None:
    with pytest.raises(UsageError) as caught:
        coerce(PRETRAIN[name], given, "BEIT_HERE")
    assert "BEIT_HERE" in caught.value.message
    assert f"{caught.value.message} {caught.value.hint}".count(needed) == 1
    assert caught.value.hint


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("224", (224, 224)),
        ("192,256", (192, 256)),
        (" 192 x 256 ", (192, 256)),
        (224, (224, 224)),
        ([192, 256], (192, 256)),
        ((192, 256), (192, 256)),
    ],
    ids=str,
)
def test_coerce_gives_a_size_height_and_width(given: object, expected: tuple[int, int]) -> None:
    assert coerce(PRETRAIN["image_size"], given, "here") == expected


@pytest.mark.parametrize(
    "given", ["", "wide", "0", "32,0", "32,", "1,2,3", "-32", "2.5", "32;48", 0, 2.5, True, [], [32, 48, 3], ["32", 48]]
)
def test_coerce_of_a_wrong_size_says_the_value_and_shows_a_right_one(given: object) -> None:
    with pytest.raises(UsageError) as caught:
        coerce(PRETRAIN["image_size"], given, "BEIT_IMAGE_SIZE")
    assert f"BEIT_IMAGE_SIZE is {given!r}" in caught.value.message
    assert caught.value.hint == "Write it as in --image-size 192,256."
    with pytest.raises(UsageError) as caught:
        coerce(settings_of(MaskPreviewConfig)["grid"], given, "--grid")
    assert caught.value.hint == "Write it as in --grid 14,14."


def test_a_size_is_no_list_and_a_square_is_shown_by_its_side() -> None:
    size, data = PRETRAIN["image_size"], PRETRAIN["data"]
    assert (size.many, data.many) == (False, True)
    assert (size.plain((224, 224)), size.plain((192, 256)), size.plain(None)) == (224, (192, 256), None)
    assert data.plain(("a", "a")) == ("a", "a")


def test_coerce_suggests_the_nearest_choice() -> None:
    with pytest.raises(UsageError) as caught:
        coerce(PRETRAIN["positions"], "shard", "--positions")
    assert caught.value.hint == "Did you mean 'shared'?"


def test_coerce_lists_the_choices_where_none_is_near() -> None:
    with pytest.raises(UsageError) as caught:
        coerce(PRETRAIN["positions"], "xyz", "--positions")
    assert "absolute, shared" in caught.value.hint


def test_suggestion_is_silent_about_words_unlike_any() -> None:
    assert suggestion("qqqq", ["pretrain", "finetune"]) == ""


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_settings_each_have_help_and_flags_of_their_own(command: object) -> None:
    settings = settings_of(command.config)
    flags = [flag for setting in settings.values() for flag in (setting.option.flags or (setting.flag,))]
    assert len(flags) == len(set(flags))
    assert not set(flags) & {"--json", "-q", "--quiet", "--debug", "-h", "--help"}
    assert all(setting.help.strip() for setting in settings.values())


@pytest.mark.parametrize(
    "command",
    [
        each
        for each in COMMANDS
        if each.name not in ("inspect", "export", "recipes", "runs", "report", "env", "doctor", "pack", "cache")
    ],
    ids=lambda command: command.name,
)
def test_settings_of_every_command_that_computes_include_what_the_contract_promises(command: object) -> None:
    promised = {"device", "precision", "batch_size", "workers", "seed", "gpus", "limit"}
    looked_at_one_by_one = {"batch_size"} if command.name in ("mask-preview", "attn-map") else set()
    assert promised - looked_at_one_by_one <= set(settings_of(command.config))
