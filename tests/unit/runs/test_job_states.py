"""The state of a run with what Slurm says of its job: every combination a user can meet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.paths import RunPaths
from launcher.runs.attempts import AttemptRecord, write_attempt
from launcher.runs.events import EventWriter
from launcher.runs.heartbeat import Heart
from launcher.runs.run_dir import new_attempt, write_state
from launcher.runs.states import JobPhase, JobState, RunState, run_state
from launcher.runs.status import Status, write_status

MakeRun = Callable[..., Path]

WAITING = JobState(
    job_id="7", phase=JobPhase.waiting, slurm_state="PENDING", reason="Priority", start="2030-01-01T00:00:00.000Z"
)
RUNNING = JobState(job_id="7", phase=JobPhase.running, slurm_state="RUNNING", nodes=["n1", "n2"])
UNKNOWN = JobState(job_id="7", phase=JobPhase.unknown)


def ended(slurm_state: str, *, reason: str = "", why: str = "") -> JobState:
    return JobState(job_id="7", phase=JobPhase.ended, slurm_state=slurm_state, reason=reason, why=why)


def begin(run: Path, *events: str, job_id: str = "7", ended_at: str = "") -> int:
    """An attempt of job 7, and what rank 0 wrote in it."""
    attempt = new_attempt(run)
    record = AttemptRecord(
        attempt=attempt,
        starter="slurm",
        host="n1",
        world_size=2,
        started="2026-01-01T00:00:00.000Z",
        ended=ended_at,
        job_id=job_id,
        nodes=["n1", "n2"],
    )
    write_attempt(run, record)
    writer = EventWriter(RunPaths(run).events, attempt, 0)
    for name in events or ("attempt_start", "state:running"):
        kind, _, state = name.partition(":")
        writer.write(kind, **({"state": state} if state else {}))
    writer.close()
    return attempt


def outcome(state: RunState) -> tuple[str, bool | None, bool]:
    return state.state, state.alive, state.requeued


def test_a_submitted_run_is_queued_with_slurms_reason_and_plan(make_run: MakeRun) -> None:
    run = make_run()
    write_state(run, "queued")
    state = run_state(run, WAITING)
    assert outcome(state) == ("queued", False, False)
    assert (state.queue_reason, state.expected_start, state.job_id) == ("Priority", WAITING.start, "7")
    assert not state.over


def test_a_job_that_runs_but_has_made_no_attempt_yet_starts(make_run: MakeRun) -> None:
    run = make_run()
    write_state(run, "queued")
    state = run_state(run, RUNNING)
    assert outcome(state) == ("running", True, False)
    assert (state.phase, state.nodes) == ("start", ["n1", "n2"])


def test_the_phase_is_that_of_rank_0(make_run: MakeRun) -> None:
    run = make_run()
    attempt = begin(run)
    Heart(RunPaths(run).heartbeat(attempt, 0), rank=0, host="n1").beat("evaluate", step=3, limit_s=10.0)
    assert run_state(run, RUNNING).phase == "evaluate"


def test_a_requeued_run_is_running_and_waits(make_run: MakeRun) -> None:
    run = make_run()
    begin(run, "attempt_start", "state:running", "preempted", ended_at="2026-01-01T01:00:00.000Z")
    state = run_state(run, WAITING)
    assert outcome(state) == ("running", False, True)
    assert not state.preempted and not state.over and state.hint == "" and state.nodes == []


def test_the_speed_of_an_earlier_attempt_is_not_shown_while_the_next_one_starts(make_run: MakeRun) -> None:
    run = make_run()
    begin(run, ended_at="2026-01-01T01:00:00.000Z")
    write_status(RunPaths(run).status, Status(name="one", state="running", attempt=1, tokens_per_s=5.0, eta_s=3.0))
    state = run_state(run, RUNNING)
    assert (state.tokens_per_s, state.eta_s, state.phase) == (None, None, "start")
    begin(run)
    write_status(RunPaths(run).status, Status(name="one", state="running", attempt=2, tokens_per_s=5.0, eta_s=3.0))
    assert run_state(run, RUNNING).tokens_per_s == 5.0


@pytest.mark.parametrize("slurm_state", ["NODE_FAIL", "TIMEOUT", "FAILED", "OUT_OF_MEMORY", "BOOT_FAIL", "COMPLETED"])
def test_a_job_that_ended_without_a_reason_has_failed(make_run: MakeRun, slurm_state: str) -> None:
    run = make_run()
    begin(run)
    state = run_state(run, ended(slurm_state))
    assert outcome(state) == ("failed", False, False)
    assert slurm_state in state.reason and "nothing says why" in state.reason
    assert state.hint == "launcher resume one"


def test_a_job_that_slurm_does_not_know_any_more_has_failed(make_run: MakeRun) -> None:
    run = make_run()
    begin(run)
    state = run_state(run, UNKNOWN)
    assert state.state == "failed" and "does not know its job 7" in state.reason


def test_a_job_that_saved_and_was_not_queued_again_is_stopped_not_failed(make_run: MakeRun) -> None:
    run = make_run()
    begin(run, "attempt_start", "state:running", "preempted")
    state = run_state(run, ended("TIMEOUT"))
    assert (state.state, state.preempted, state.hint) == ("running", True, "launcher resume one")


def test_a_job_cancelled_in_slurm_while_it_waited_is_cancelled(make_run: MakeRun) -> None:
    run = make_run()
    write_state(run, "queued")
    state = run_state(run, ended("CANCELLED"))
    assert (state.state, state.reason) == ("cancelled", "job 7 was cancelled before it began")


def test_a_job_whose_forerunner_failed_has_failed_with_it(make_run: MakeRun) -> None:
    run = make_run()
    write_state(run, "queued")
    state = run_state(
        run, ended("CANCELLED", reason="DependencyNeverSatisfied", why="the job before it did not end well")
    )
    assert (state.state, state.reason) == ("failed", "job 7 never began: the job before it did not end well")


@pytest.mark.parametrize("final", ["succeeded", "failed", "cancelled"])
@pytest.mark.parametrize("job", [ended("COMPLETED"), UNKNOWN])
def test_the_last_word_of_the_run_counts_more_than_slurms(make_run: MakeRun, final: str, job: JobState) -> None:
    run = make_run()
    begin(run, "attempt_start", "state:running", f"state:{final}")
    assert outcome(run_state(run, job)) == (final, False, False)


def test_a_run_that_has_said_its_last_word_is_not_over_before_its_job_is_gone(make_run: MakeRun) -> None:
    run = make_run()
    begin(run, "attempt_start", "state:running", "state:succeeded")
    assert not run_state(run, RUNNING).over
    assert run_state(run, ended("COMPLETED")).over


def test_a_failed_run_whose_job_makes_another_attempt_is_running(make_run: MakeRun) -> None:
    run = make_run()
    begin(run, "attempt_start", "state:running", "state:failed", ended_at="2026-01-01T01:00:00.000Z")
    begin(run, "attempt_start")
    assert run_state(run, RUNNING).state == "running"


def test_a_cancelled_run_that_was_submitted_again_is_queued(make_run: MakeRun) -> None:
    run = make_run()
    begin(run, "attempt_start", "state:running", "state:cancelled", job_id="3")
    later = JobState(job_id="7", phase=JobPhase.waiting, submitted="2099-01-01T00:00:00.000Z")
    assert run_state(run, later).state == "queued"


def test_where_slurm_is_not_asked_nothing_is_claimed_about_the_job(make_run: MakeRun) -> None:
    run = make_run()
    begin(run)
    state = run_state(run, not_asked="squeue is not installed here")
    assert outcome(state) == ("running", None, False)
    assert (state.job_id, state.not_asked) == ("7", "squeue is not installed here")


def test_a_run_taken_over_by_this_machine_is_not_slurms_any_more(make_run: MakeRun) -> None:
    run = make_run()
    begin(run)
    attempt = new_attempt(run)
    record = AttemptRecord(
        attempt=attempt, starter="local", host="here", world_size=1, started="2026-01-02T00:00:00.000Z"
    )
    write_attempt(run, record)
    state = run_state(run, not_asked="unused")
    assert (state.job_id, state.not_asked) == ("", "")


def test_the_newest_checkpoint_of_an_earlier_attempt_is_known_while_the_next_one_loads(make_run: MakeRun) -> None:
    run = make_run()
    attempt = begin(run)
    writer = EventWriter(RunPaths(run).events, attempt, 0)
    writer.write("checkpoint", step=40)
    writer.close()
    begin(run)
    write_status(RunPaths(run).status, Status(name="one", state="running", attempt=2, of=100))
    state = run_state(run, RUNNING)
    assert (state.last_checkpoint_step, state.step) == (40, 40)
    assert state.last_checkpoint_time
