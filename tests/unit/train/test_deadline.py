"""The time limit is met with a save, not with a kill: the lead follows from what steps and saves take."""

from __future__ import annotations

import pytest

from launcher.runs.rank_environment import job_end_time
from launcher.train.deadline import Deadline

END_S = 10_000.0


class Clock:
    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def deadline(left_s: float, *, margin_s: float = 5.0, saves_s: tuple[float, ...] = (20.0,)) -> Deadline:
    found = Deadline(END_S, margin_s=margin_s, saves_s=saves_s, clock=Clock(END_S - left_s))
    for seconds in (2.0, 10.0, 3.0):
        found.steps_s.append(seconds)
    found.evaluations_s.append(100.0)
    return found


@pytest.mark.parametrize(
    ("left_s", "evaluates", "saves", "stops"),
    [
        (36.0, False, False, False),  # a step of 10, a save of 20, a margin of 5
        (34.0, False, False, True),
        (56.0, False, True, False),  # one save now, one after the next step
        (54.0, False, True, True),
        (136.0, True, False, False),
        (134.0, True, False, True),
    ],
)
def test_a_step_begins_only_when_it_and_its_save_fit(left_s: float, evaluates: bool, saves: bool, stops: bool) -> None:
    assert deadline(left_s).leaves_no_step(step_s=1.0, evaluates=evaluates, saves=saves) is stops


def test_a_first_step_is_judged_by_itself() -> None:
    clock = Clock(END_S - 100.0)
    found = Deadline(END_S, margin_s=5.0, clock=clock)
    assert not found.leaves_no_step(step_s=40.0, evaluates=False, saves=False)
    assert found.leaves_no_step(step_s=50.0, evaluates=False, saves=False)  # nothing saved yet: taken for a step


def test_an_evaluation_makes_way_for_the_save_only_when_it_must() -> None:
    assert not deadline(26.0).leaves_only_a_save()
    assert deadline(24.0).leaves_only_a_save()


def test_what_was_slow_long_ago_is_forgotten() -> None:
    found = deadline(36.0)
    for _ in range(20):
        found.steps_s.append(1.0)
    found.steps_s.append(1.0)
    assert not found.leaves_no_step(step_s=1.0, evaluates=False, saves=False)
    for _ in range(20):
        found.saves_s.append(1.0)
    assert not Deadline(END_S, margin_s=5.0, clock=Clock(0.0)).leaves_only_a_save()
    assert not deadline(8.0, saves_s=(1.0,)).leaves_only_a_save()


def test_without_a_limit_nothing_is_ever_near() -> None:
    found = Deadline(None, margin_s=1e9)
    assert not found.leaves_no_step(step_s=1e9, evaluates=True, saves=True)
    assert not found.leaves_only_a_save()


@pytest.mark.parametrize(
    ("environment", "end_s"),
    [
        ({}, None),
        ({"LAUNCHER_END_TIME_S": "33000000000"}, 33e9),
        ({"SLURM_JOB_END_TIME": "34000000000"}, 34e9),
        ({"LAUNCHER_END_TIME_S": "33000000000", "SLURM_JOB_END_TIME": "34000000000"}, 33e9),
        ({"LAUNCHER_END_TIME_S": "Unknown"}, None),
        ({"LAUNCHER_END_TIME_S": "0"}, None),
    ],
)
def test_the_end_is_read_from_the_environment(environment: dict[str, str], end_s: float | None) -> None:
    assert job_end_time(environment) == end_s
