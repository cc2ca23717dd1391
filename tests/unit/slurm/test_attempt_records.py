from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from launcher.config.cluster_schema import FaultConfig
from launcher.diagnose.restart_policy import decide
from launcher.diagnose.verdict import Action, Verdict, read_verdict, write_verdict
from launcher.errors import RunError, SlurmUnavailable, VerdictClass
from launcher.paths import RunPaths
from launcher.runs.attempts import AttemptRecord, read_attempt, write_attempt
from launcher.runs.events import last_state, read_events
from launcher.runs.run_dir import new_attempt
from launcher.runs.status import set_state
from launcher.slurm.client.parse import JobInfo
from launcher.slurm.client.query import Slurm
from launcher.slurm.job import attempt_records
from tests.made import make_allocation
from tests.unit.conftest import MakeRun, make_run

__all__ = ["make_run"]

HERE = make_allocation(2, restart=1)
LOG_LINE = "slurmstepd-n1: error: *** STEP 7.0 ON n1 CANCELLED AT 2026-01-01T00:00:00 DUE TO PREEMPTION ***\n"


class Controller(Slurm):
    """Knows one job."""

    def __init__(self, state: str | None) -> None:
        super().__init__()
        self.state = state

    def job(self, job_id: str) -> JobInfo | None:
        if self.state == "away":
            raise SlurmUnavailable("nobody answered")
        return None if self.state is None else JobInfo(job_id=job_id, state=self.state)


def started(run_dir: Path, *, job_id: str = "7") -> int:
    """An attempt that never ended."""
    attempt = new_attempt(run_dir)
    record = AttemptRecord(
        attempt=attempt,
        starter="slurm",
        host="n1",
        world_size=2,
        started="2026-01-01T00:00:00.000Z",
        job_id=job_id,
        nodes=["n1", "n2"],
    )
    write_attempt(run_dir, record)
    return attempt


@pytest.mark.parametrize("state", ["RUNNING", "COMPLETING", "SUSPENDED"])
def test_a_run_that_another_job_runs_is_refused(make_run: MakeRun, state: str) -> None:
    run_dir = make_run(world_size=2, nodes=2)
    started(run_dir, job_id="6")
    with pytest.raises(RunError, match=rf"is being run by job 6 \({state.lower()}, attempt 1\).*launcher cancel one"):
        attempt_records.refuse_beside_other_job(run_dir, HERE, Controller(state))


@pytest.mark.parametrize("state", ["FAILED", "PENDING", None, "away"])
def test_a_job_that_is_over_or_cannot_be_asked_about_is_no_hindrance(make_run: MakeRun, state: str | None) -> None:
    run_dir = make_run(world_size=2, nodes=2)
    started(run_dir, job_id="6")
    attempt_records.refuse_beside_other_job(run_dir, HERE, Controller(state))


def test_an_attempt_whose_node_died_with_its_supervisor_gets_its_verdict_from_the_next(make_run: MakeRun) -> None:
    run_dir = make_run(world_size=2, nodes=2)
    attempt = started(run_dir)
    attempt_records.judge_lost_attempts(run_dir, HERE)
    verdict = read_verdict(run_dir, attempt)
    assert verdict is not None and verdict.verdict_class is VerdictClass.node_failure
    record = read_attempt(run_dir, attempt)
    assert record is not None and record.ended
    attempt_records.judge_lost_attempts(run_dir, HERE)
    names = [event.event for event in read_events(RunPaths(run_dir).events)]
    assert (names.count("verdict"), names.count("attempt_end")) == (1, 1)


def test_a_supervisor_that_slurm_ended_for_a_reason_lost_no_node(make_run: MakeRun) -> None:
    run_dir = make_run(world_size=2, nodes=2)
    attempt = started(run_dir)
    RunPaths(run_dir).rank_log(attempt, 0).write_text(LOG_LINE)
    attempt_records.judge_lost_attempts(run_dir, HERE)
    verdict = read_verdict(run_dir, attempt)
    assert verdict is not None and verdict.verdict_class is VerdictClass.preempted


def crashed(attempt: int, job_id: str) -> Verdict:
    return Verdict(
        attempt=attempt, verdict_class=VerdictClass.bug, action=Action.requeue, summary="crashed", job_id=job_id
    )


def test_only_attempts_of_the_same_job_count_against_the_budget(make_run: MakeRun) -> None:
    run_dir = make_run(world_size=2, nodes=2)
    for job_id in ("5", "5", "5", "7"):
        write_verdict(run_dir, crashed(new_attempt(run_dir), job_id))
    found = {
        job_id: attempt_records.verdicts_of_job(run_dir, dataclasses.replace(HERE, job_id=job_id)) for job_id in "579"
    }
    assert [verdict.attempt for verdict in found["7"]] == [4] and found["9"] == []
    assert decide(FaultConfig(), found["7"]).action is Action.requeue
    assert decide(FaultConfig(), found["5"]).action is Action.stop


def test_a_state_is_written_once(make_run: MakeRun) -> None:
    run_dir = make_run()
    paths = RunPaths(run_dir)
    for _ in range(2):
        set_state(paths, 1, "running", "queued again")
    states = [event.fields["state"] for event in read_events(paths.events) if event.event == "state"]
    assert states[-1] == "running" and states.count("running") == 1


def test_an_old_attempt_has_no_say_in_the_state_of_the_run(make_run: MakeRun) -> None:
    run_dir = make_run()
    paths = RunPaths(run_dir)
    new_attempt(run_dir)
    new_attempt(run_dir)
    set_state(paths, 2, "succeeded", "")
    before = paths.events.read_text()
    set_state(paths, 1, "failed", "its node was cut off")
    assert paths.events.read_text() == before and last_state(paths.events) == "succeeded"
