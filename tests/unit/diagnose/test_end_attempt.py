from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

import pytest

from launcher.diagnose.end_attempt import end_attempt, stop_run
from launcher.diagnose.evidence import JobEnd, StarterReport, end_of_job
from launcher.diagnose.srun_messages import parse_messages
from launcher.diagnose.verdict import Action, Verdict
from launcher.errors import ExitCode, VerdictClass
from launcher.paths import RunPaths
from launcher.runs.attempts import AttemptRecord
from launcher.runs.events import last_state, read_events
from launcher.runs.run_dir import new_attempt
from launcher.runs.scheduler import Requeued
from tests.made import make_run

STEP = "slurmstepd-n1: error: *** STEP 7.0 ON n1 CANCELLED AT 2026-01-01T00:00:00"


@pytest.mark.parametrize(
    ("state", "said", "end"),
    [
        pytest.param("RUNNING", f"{STEP} ***", "", id="a rank failed"),
        pytest.param("COMPLETING", f"{STEP} ***", "CANCELLED", id="scancel"),
        pytest.param("COMPLETING", f"{STEP} DUE TO PREEMPTION ***", "", id="preempted, not queued again by Slurm"),
        pytest.param("COMPLETING", f"{STEP} DUE TO TIME LIMIT ***", "", id="time limit"),
        pytest.param("PENDING", f"{STEP} DUE TO PREEMPTION ***", "PENDING", id="preempted"),
        pytest.param("CANCELLED", f"{STEP} ***", "CANCELLED", id="scancel, told at once"),
    ],
)
def test_a_job_that_ends_without_a_reason_of_slurms_was_cancelled(state: str, said: str, end: str) -> None:
    assert end_of_job(JobEnd(state=state), parse_messages(said)) == end


def test_a_job_that_is_counted_as_restarted_was_not_cancelled() -> None:
    """Its node was cut off and is back: the ranks of another one were told to stop, and no log says why."""
    facts = parse_messages("srun: error: n2: task 1: Exited with exit code 75")
    assert end_of_job(JobEnd(state="COMPLETING", restarted=True), facts) == "REQUEUED"


def test_nothing_is_said_of_a_job_that_cannot_be_asked_about() -> None:
    assert end_of_job(None, []) == ""


@pytest.mark.parametrize(
    ("kind", "attempt_code", "code", "state"),
    [
        (VerdictClass.bug, 1, ExitCode.GAVE_UP, "failed"),
        (VerdictClass.hang, 137, ExitCode.GAVE_UP, "failed"),
        (VerdictClass.non_finite, 5, ExitCode.NON_FINITE, "failed"),
        (VerdictClass.configuration, 2, ExitCode.USER, "failed"),
        (VerdictClass.data, 0, ExitCode.BUG, "failed"),
        (VerdictClass.cancelled, 75, ExitCode.INTERRUPTED, "cancelled"),
    ],
)
def test_a_job_that_stops_says_whether_a_limit_was_reached(
    tmp_path: Path, kind: VerdictClass, attempt_code: int, code: ExitCode, state: str
) -> None:
    paths = RunPaths(make_run(tmp_path))
    verdict = Verdict(attempt=3, verdict_class=kind, action=Action.stop, summary="")
    assert stop_run(paths, verdict, attempt_code) == code
    assert last_state(paths.events) == state


NO_QUEUE = Requeued(done=False, problem="the controller is away")
ENDS = [
    pytest.param(0, "", None, 0, "succeeded", id="finished"),
    pytest.param(0, "", Requeued(done=True), 0, "succeeded", id="finished in a job"),
    pytest.param(75, "SIGTERM", None, 75, "validating", id="preempted: running, only not now"),
    pytest.param(75, "SIGTERM", Requeued(done=True), 75, "running", id="preempted and queued again"),
    pytest.param(75, "SIGTERM", NO_QUEUE, ExitCode.UNAVAILABLE, "failed", id="preempted and not queued again"),
    pytest.param(1, "", None, 1, "failed", id="failed"),
    pytest.param(1, "", Requeued(done=True), 75, "running", id="failed and queued again"),
    pytest.param(1, "", NO_QUEUE, 1, "failed", id="failed and not queued again"),
    pytest.param(130, "user", None, 130, "cancelled", id="killed by the user"),
    pytest.param(130, "user", Requeued(done=True), 130, "cancelled", id="cancelled in a job"),
]


@pytest.mark.parametrize(("attempt_code", "stopped_by", "requeued", "code", "state"), ENDS)
def test_state_and_exit_code_after_an_attempt(
    tmp_path: Path, attempt_code: int, stopped_by: str, requeued: Requeued | None, code: int, state: str
) -> None:
    paths = RunPaths(make_run(tmp_path))
    new_attempt(paths.root)
    record = AttemptRecord(attempt=1, starter="slurm", host="n1", world_size=1, started="", job_id="7", nodes=["n1"])
    queue = Mock(requeue=Mock(return_value=requeued)) if requeued is not None else None
    report = StarterReport(exit_code=attempt_code, stopped_by=stopped_by)
    verdict, ended_with = end_attempt(paths, record, report, queue=queue)
    assert (ended_with, last_state(paths.events)) == (code, state)
    asked = queue.requeue.call_count if queue is not None else 0
    assert asked == (requeued is not None and verdict.action is Action.requeue)
    events = {event.event for event in read_events(paths.events)}
    assert {"verdict", "attempt_end"} <= events
    assert ("requeue" in events, "requeue_failed" in events) == (code == 75 and bool(asked), requeued is NO_QUEUE)
