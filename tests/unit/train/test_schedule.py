"""The learning rate: it moves from the first step, reaches its peak, and ends where it should."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.config.schema import OptimConfig, Schedule
from launcher.train.schedule import lr_at

PEAK = 3e-4
SHAPES = st.sampled_from(list(Schedule))


def curve(optim: OptimConfig, *, warmup_steps: int, total_steps: int) -> list[float]:
    """The rate of every step, and last that of the step after the end."""
    return [
        lr_at(step, optim, PEAK, warmup_steps=warmup_steps, total_steps=total_steps) for step in range(total_steps + 1)
    ]


@given(SHAPES, st.integers(1, 50), st.integers(0, 50), st.floats(0, 1), st.floats(0.01, 1))
def test_every_step_moves_and_none_is_over_the_peak(
    schedule: Schedule, total_steps: int, warmup_steps: int, floor: float, decay: float
) -> None:
    optim = OptimConfig(schedule=schedule, min_lr_ratio=floor, decay_ratio=decay)
    rates = curve(optim, warmup_steps=warmup_steps, total_steps=total_steps)[:-1]
    assert all(0 < rate <= PEAK * (1 + 1e-12) for rate in rates)


@given(SHAPES, st.integers(1, 30), st.integers(1, 60), st.floats(0.01, 1))
def test_the_peak_is_reached_exactly_and_held_into_the_shape(
    schedule: Schedule, warmup_steps: int, more: int, decay: float
) -> None:
    optim = OptimConfig(schedule=schedule, decay_ratio=decay)
    rates = curve(optim, warmup_steps=warmup_steps, total_steps=warmup_steps + more)
    assert rates[warmup_steps - 1] == PEAK
    assert rates[warmup_steps] == pytest.approx(PEAK, rel=1e-12)
    assert rates[:warmup_steps] == sorted(rates[:warmup_steps])
    after = rates[warmup_steps:]
    assert after == sorted(after, reverse=True)


@given(st.sampled_from([Schedule.linear, Schedule.cosine, Schedule.wsd]), st.integers(0, 9), st.floats(0, 1))
def test_the_step_after_the_last_would_reach_the_floor(schedule: Schedule, warmup_steps: int, floor: float) -> None:
    optim = OptimConfig(schedule=schedule, min_lr_ratio=floor)
    rates = curve(optim, warmup_steps=warmup_steps, total_steps=20)
    assert rates[-1] == pytest.approx(PEAK * floor, abs=1e-18)


def test_warm_up_is_linear() -> None:
    rates = curve(OptimConfig(), warmup_steps=4, total_steps=10)
    assert [rate / PEAK for rate in rates[:4]] == pytest.approx([0.25, 0.5, 0.75, 1.0])


def test_constant_stays_at_the_peak_whatever_the_floor() -> None:
    assert curve(OptimConfig(schedule=Schedule.constant, min_lr_ratio=0.1), warmup_steps=0, total_steps=5) == [PEAK] * 6


def test_linear_is_half_way_in_the_middle() -> None:
    rates = curve(OptimConfig(schedule=Schedule.linear, min_lr_ratio=0.2), warmup_steps=2, total_steps=12)
    assert rates[7] / PEAK == pytest.approx(0.6)


def test_cosine_is_half_way_in_the_middle_and_slow_at_its_ends() -> None:
    rates = curve(OptimConfig(schedule=Schedule.cosine), warmup_steps=0, total_steps=100)
    assert rates[50] / PEAK == pytest.approx(0.5)
    assert PEAK - rates[5] < 0.01 * PEAK and rates[95] < 0.01 * PEAK


def test_wsd_is_stable_and_then_falls_in_a_line() -> None:
    rates = curve(OptimConfig(schedule=Schedule.wsd, decay_ratio=0.4), warmup_steps=1, total_steps=10)
    assert [rate / PEAK for rate in rates] == pytest.approx([1, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0])


def test_warm_up_longer_than_the_run_only_rises() -> None:
    rates = curve(OptimConfig(), warmup_steps=50, total_steps=5)
    assert rates == sorted(rates) and rates[0] == pytest.approx(PEAK / 50)
