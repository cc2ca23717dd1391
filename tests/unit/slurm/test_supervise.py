from __future__ import annotations

import pytest

from launcher.diagnose.evidence import JobEnd, end_of_job
from launcher.diagnose.srun_messages import parse_messages
from launcher.diagnose.verdict import Action, Verdict
from launcher.errors import ExitCode, VerdictClass
from launcher.slurm.job.supervise import _code_of

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
    ("kind", "rank_code", "code"),
    [
        (VerdictClass.bug, 1, ExitCode.GAVE_UP),
        (VerdictClass.hang, -9, ExitCode.GAVE_UP),
        (VerdictClass.non_finite, 5, ExitCode.NON_FINITE),
        (VerdictClass.configuration, 2, ExitCode.USER),
        (VerdictClass.configuration, -9, ExitCode.BUG),
        (VerdictClass.data, None, ExitCode.BUG),
    ],
)
def test_a_job_that_stops_before_it_begins_says_whether_a_limit_was_reached(
    kind: VerdictClass, rank_code: int | None, code: ExitCode
) -> None:
    earlier = Verdict(attempt=3, verdict_class=kind, action=Action.stop, summary="", exit_code=rank_code)
    assert _code_of(earlier) == code
