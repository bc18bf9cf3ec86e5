"""Schedules at points computed by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beitcli.runtime.compute.lr_schedules import cosine, warmup_cosine, warmup_polynomial


@pytest.mark.parametrize(
    ("step", "value"),
    [(0, 2.0), (25, 1.0 + 0.5 * (1 + math.sqrt(0.5))), (50, 1.5), (75, 1.5 - math.sqrt(0.5) / 2), (100, 1.0),
     (101, 1.0), (10**9, 1.0), (-5, 2.0)],
)  # fmt: skip
def test_cosine_at_hand_computed_steps(step, value):
    assert cosine(2.0, 1.0, step, 100) == pytest.approx(value, abs=1e-12)


def test_cosine_of_no_steps_is_at_its_end():
    assert cosine(2.0, 1.0, 0, 0) == 1.0


@pytest.mark.parametrize(
    ("step", "value"),
    [(0, 0.1), (4, 0.5), (9, 1.0), (10, 1.0), (10 + 22, 0.5 * (1 + math.cos(math.pi * 22 / 89))), (99, 0.0)],
)
def test_warmup_cosine_at_hand_computed_steps(step, value):
    assert warmup_cosine(1.0, 0.0, step, 100, 10) == pytest.approx(value, abs=1e-12)


def test_warmup_cosine_ends_at_its_minimum_in_the_last_step():
    assert warmup_cosine(1.5e-3, 1e-5, 799, 800, 50) == pytest.approx(1e-5, abs=1e-15)
    assert warmup_cosine(1.5e-3, 1e-5, 50, 800, 50) == 1.5e-3


@given(steps=st.integers(1, 500), share=st.floats(0, 1))
def test_warmup_cosine_rises_then_falls_and_stays_in_its_range(steps, share):
    warmup = int(steps * share / 5)
    values = [warmup_cosine(1.0, 0.01, step, steps, warmup) for step in range(steps)]
    assert all(0 < value <= 1.0 for value in values)
    top = max(warmup, 1) - 1
    assert values[: top + 1] == sorted(values[: top + 1])
    assert values[top + 1 :] == sorted(values[top + 1 :], reverse=True)


@pytest.mark.parametrize(
    ("step", "value"),
    [(0, 1e-6 * 2.0), (5, 1.9 * (1e-6 + (1 - 1e-6) * 0.5)), (10, 1.8), (50, 1.0), (99, 0.02), (100, 0.0), (101, 0.0)],
)
def test_linear_schedule_with_warm_up_at_hand_computed_steps(step, value):
    assert warmup_polynomial(2.0, 0.0, step, 100, 10) == pytest.approx(value, abs=1e-12)


def test_polynomial_schedule_falls_by_its_power_to_its_end():
    assert warmup_polynomial(1.0, 0.2, 50, 100, 0, power=2.0) == pytest.approx(0.2 + 0.8 * 0.25)
    assert warmup_polynomial(1.0, 0.2, 100, 100, 0, power=2.0) == 0.2
