"""Bounds of settings: every number has them, and the command line refuses what lies outside."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from beitcli.cli.command_table import COMMANDS, Command
from beitcli.config.bounds import UNBOUNDED, Bounds
from beitcli.config.fields import Setting, Size, settings_of
from beitcli.config.finetune import FinetuneConfig
from beitcli.config.pretrain import PretrainConfig
from beitcli.config.resolve import resolve
from beitcli.errors import UsageError

NUMBERS = [
    (command, setting) for command in COMMANDS for setting in settings_of(command.config).values() if setting.is_number
]
# What bounds them is no number that is known beforehand
WITHOUT = {
    ("pretrain", "num_masked"): "the grid of patches",
    ("mask-preview", "num_masked"): "the grid of patches",
    ("attn-map", "layer"): "the model's depth, from either end",
    ("embed", "layer"): "the model's depth, from either end",
    ("mask-preview", "gpus"): "1, as it computes in one process",
    ("predict", "gpus"): "1, as it computes in one process",
    ("attn-map", "gpus"): "1, as it computes in one process",
}


def test_every_number_has_bounds_or_is_known_to_have_none() -> None:
    assert len(NUMBERS) > 100
    assert {(command.name, setting.name) for command, setting in NUMBERS if not setting.option.bounds} == set(WITHOUT)


def test_only_numbers_have_bounds() -> None:
    others = [s for each in COMMANDS for s in settings_of(each.config).values() if not s.is_number and s.option.bounds]
    assert others == []


def outside(setting: Setting) -> list[str]:
    """The nearest values that are refused."""
    bounds, step = setting.option.bounds, 0.001 if setting.kind is float else 1
    below = [] if bounds.ge is None else [bounds.ge - step]
    above = [] if bounds.le is None else [bounds.le + step]
    at = [limit for limit in (bounds.gt, bounds.lt) if limit is not None]
    return [str(value) for value in (*below, *above, *at)] + (["nan", "inf"] if setting.kind is float else [])


def words(command: Command, setting: Setting) -> list[str]:
    """A command line that ends with another code, or another complaint, where the setting is not looked at."""
    needed = [s for s in settings_of(command.config).values() if s.option.required]
    line = [command.name, *("nowhere" for s in needed if s.option.argument)]
    line += [word for s in needed if not s.option.argument for word in (s.flag, "random")]
    return line + (["--task", setting.option.tasks[0]] if setting.option.tasks else [])


@pytest.mark.parametrize(
    ("command", "setting"),
    [pytest.param(c, s, id=f"{c.name}-{s.name}") for c, s in NUMBERS if s.option.bounds],
)
def test_command_line_refuses_what_lies_outside_the_bounds(beit: Callable, command: Command, setting: Setting) -> None:
    assert outside(setting)
    for value in outside(setting):
        ended = beit(*words(command, setting), setting.flag, value)
        assert (ended.code, ended.out) == (2, "")
        first, second = ended.err.splitlines()
        assert first.startswith(f"error: {setting.flag} is ")
        assert ("whole numbers from 1" if setting.kind == Size else "it must ") in first
        assert setting.flag in second


@pytest.mark.parametrize(
    ("bounds", "value", "message"),
    [
        (Bounds(ge=1), 0, "--x is 0; it must be at least 1."),
        (Bounds(ge=1), math.inf, "--x is inf; it must be at least 1."),
        (Bounds(ge=0), -0.5, "--x is -0.5; it must be at least 0."),
        (Bounds(gt=0), 0.0, "--x is 0.0; it must be a number above 0."),
        (Bounds(gt=1), 1, "--x is 1; it must be a number above 1."),
        (Bounds(ge=0, le=1), 1.5, "--x is 1.5; it must lie between 0 and 1."),
        (Bounds(gt=0, le=1), 0, "--x is 0; it must be a number above 0 and at most 1."),
        (Bounds(ge=0, lt=1), 1, "--x is 1; it must be at least 0 and below 1."),
        (Bounds(le=3), 4, "--x is 4; it must be at most 3."),
        (UNBOUNDED, math.nan, "--x is nan; it must be a finite number."),
    ],
    ids=str,
)
def test_value_outside_is_told_what_it_must_be(bounds: Bounds, value: float, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        bounds.require("--x", value, "The default is 3.")
    assert (caught.value.message, caught.value.hint) == (message, "The default is 3.")


@pytest.mark.parametrize(
    ("bounds", "value"),
    [
        (Bounds(ge=1), 1),
        (Bounds(le=1), 1.0),
        (Bounds(gt=0, lt=1), 0.5),
        (Bounds(ge=0, le=2**63 - 1), 2**63 - 1),
        (UNBOUNDED, -(10**400)),
    ],
    ids=str,
)
def test_value_within_passes(bounds: Bounds, value: float) -> None:
    bounds.require("--x", value)  # raises nothing
    assert bounds.admit(value)


def test_no_bounds_are_false() -> None:
    assert [bool(each) for each in (UNBOUNDED, Bounds(ge=0), Bounds(lt=0))] == [False, True, True]


@pytest.mark.parametrize("size", [(0, 32), (32, 0), (-8, 32)])
def test_each_side_of_a_size_is_checked_and_none_passes(size: tuple[int, int]) -> None:
    flags: dict[str, Any] = {"data": ("photos",), "init": "random", "epochs": 1.0}
    assert FinetuneConfig(**flags, size=None, limit=None).size is None
    with pytest.raises(UsageError, match=f"--size is {min(size)}; it must be at least 1"):
        FinetuneConfig(**flags, size=size)


def test_bound_of_another_setting_is_checked_after_its_own() -> None:
    flags = {"data": ["photos"], "init": "random", "recipe": "tiny-detect"}
    for value, told in ((-1.0, "must be a number above 0"), (0.5, "must be at least 0.75")):
        with pytest.raises(UsageError, match=f"--max-resize is {value}; it {told}"):
            resolve(FinetuneConfig, flags | {"max_resize": value})


def test_resume_checks_the_bounds_of_what_a_run_has(tmp_path: Any) -> None:
    (tmp_path / "config.toml").write_text('command = "pretrain"\ndata = ["photos"]\nsteps = 0\n')
    with pytest.raises(UsageError, match="--steps is 0; it must be at least 1"):
        resolve(PretrainConfig, {"out": str(tmp_path), "resume": True})
