from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.config.cluster_schema import FaultConfig
from launcher.diagnose.restart_policy import decide, fruitless_in_a_row
from launcher.diagnose.verdict import ACTIONS, NOT_A_FAILURE, Action, Verdict
from launcher.errors import VerdictClass

CRASH = VerdictClass.bug
GOES_ON = (Action.requeue, Action.requeue_without_node)


def verdict(
    attempt: int, kind: VerdictClass = CRASH, *, gain: int = 0, before: int = 10, node: str = "", num_nodes: int = 1
) -> Verdict:
    return Verdict(
        attempt=attempt,
        verdict_class=kind,
        action=ACTIONS[kind],
        summary=kind.value,
        checkpoint_before=before,
        checkpoint_after=before + gain,
        node=node,
        num_nodes=num_nodes,
    )


def attempts_made(fault: FaultConfig, ends: list[tuple[VerdictClass, int]]) -> list[Verdict]:
    """A run that goes on for as long as the policy lets it."""
    made: list[Verdict] = []
    step = 10
    for attempt, (kind, gain) in enumerate(ends, start=1):
        made.append(verdict(attempt, kind, gain=gain, before=step))
        step += gain
        if decide(fault, made).action not in GOES_ON:
            break
    return made


def test_a_crash_loop_stops_at_exactly_the_limit() -> None:
    made = attempts_made(FaultConfig(), [(CRASH, 0)] * 20)
    assert len(made) == FaultConfig().max_fruitless_attempts == 3
    assert "3 attempts in a row ended without a new checkpoint" in decide(FaultConfig(), made).summary


def test_the_checkpoint_of_step_0_is_no_progress() -> None:
    first = verdict(1, before=-1, gain=1)
    assert first.checkpoint_after == 0 and not first.made_progress
    assert fruitless_in_a_row([first, verdict(2, before=0), verdict(3, before=0)]) == 3


def test_progress_resets_the_count() -> None:
    ends = [(CRASH, 0), (CRASH, 0), (CRASH, 5), (CRASH, 0), (CRASH, 0), (CRASH, 0), (CRASH, 0)]
    assert len(attempts_made(FaultConfig(), ends)) == 6


def test_preemptions_without_progress_do_not_count() -> None:
    assert len(attempts_made(FaultConfig(), [(VerdictClass.preempted, 0)] * 30)) == 30


def test_a_preemption_between_crashes_does_not_hide_them() -> None:
    ends = [(CRASH, 0), (VerdictClass.preempted, 0), (CRASH, 0), (VerdictClass.preempted, 0), (CRASH, 0), (CRASH, 0)]
    assert len(attempts_made(FaultConfig(), ends)) == 5


def test_time_limits_count_only_without_progress() -> None:
    assert len(attempts_made(FaultConfig(), [(VerdictClass.timeout, 4)] * 30)) == 30
    assert len(attempts_made(FaultConfig(), [(VerdictClass.timeout, 0)] * 30)) == 3


def test_the_budget_ends_a_run_that_always_progresses() -> None:
    made = attempts_made(FaultConfig(max_attempts=7), [(CRASH, 5)] * 30)
    assert len(made) == 7
    assert "fault.max_attempts=7" in decide(FaultConfig(max_attempts=7), made).summary


@pytest.mark.parametrize("kind", ["configuration", "data", "non_finite", "superseded", "cancelled", "checkpoint"])
def test_what_does_not_pass_by_itself_stops_at_once(kind: str) -> None:
    assert decide(FaultConfig(), [verdict(1, VerdictClass(kind), gain=5)]).action is Action.stop


def test_a_finished_run_asks_for_nothing() -> None:
    assert decide(FaultConfig(), [verdict(1, VerdictClass.done)]).action is Action.none


def test_limits_count_anew_after_somebody_started_the_run_again() -> None:
    made = attempts_made(FaultConfig(), [(CRASH, 0)] * 3)
    told = [*made[:-1], decide(FaultConfig(), made)]
    assert decide(FaultConfig(), [*told, verdict(4)]).action is Action.requeue
    assert decide(FaultConfig(), [*told, verdict(4, VerdictClass.preempted)]).action is Action.requeue
    assert decide(FaultConfig(), [*told, verdict(4), verdict(5), verdict(6)]).action is Action.stop
    assert decide(FaultConfig(max_attempts=3), [*told, verdict(4), verdict(5)]).action is Action.requeue


def test_a_node_is_left_out_only_where_one_is_blamed_and_there_are_others() -> None:
    lost = VerdictClass.node_failure
    assert decide(FaultConfig(), [verdict(1, lost, node="n2", num_nodes=2)]).action is Action.requeue_without_node
    assert decide(FaultConfig(), [verdict(1, lost, num_nodes=2)]).action is Action.requeue
    assert decide(FaultConfig(), [verdict(1, lost, node="box", num_nodes=1)]).action is Action.requeue


def test_a_node_that_two_hangs_blame_is_left_out() -> None:
    hang = VerdictClass.hang
    twice = [verdict(1, hang, gain=5, node="n2", num_nodes=2), verdict(2, hang, gain=5, node="n2", num_nodes=2)]
    assert decide(FaultConfig(), twice[:1]).action is Action.requeue
    assert decide(FaultConfig(), twice).action is Action.requeue_without_node
    other = [verdict(1, hang, gain=5, node="n1", num_nodes=2), twice[1]]
    assert decide(FaultConfig(), other).action is Action.requeue


@given(
    ends=st.lists(st.tuples(st.sampled_from(list(VerdictClass)), st.integers(0, 2)), min_size=1, max_size=40),
    budget=st.integers(1, 12),
    fruitless=st.integers(1, 4),
)
def test_no_history_exceeds_the_budget_or_the_fruitless_limit(
    ends: list[tuple[VerdictClass, int]], budget: int, fruitless: int
) -> None:
    fault = FaultConfig(max_attempts=budget, max_fruitless_attempts=fruitless)
    made = attempts_made(fault, ends)
    assert len(made) <= budget
    in_a_row = 0
    for place, (kind, gain) in enumerate(ends[: len(made)], start=1):
        if gain or kind is VerdictClass.done:
            in_a_row = 0
        elif kind not in NOT_A_FAILURE:
            in_a_row += 1
        # It stops at the very attempt that reaches the limit, neither before nor after.
        assert (in_a_row == fruitless and kind not in NOT_A_FAILURE and not gain) <= (place == len(made))
    last_kind, last_gain = ends[len(made) - 1]
    stopped = decide(fault, made).action not in GOES_ON
    expected = ACTIONS[last_kind] not in GOES_ON or len(made) == budget
    expected |= in_a_row >= fruitless and last_kind not in NOT_A_FAILURE and not last_gain
    assert stopped == expected
