"""What a job means for its run, and which job is meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.errors import SlurmUnavailable
from launcher.paths import RunPaths
from launcher.runs.attempts import AttemptRecord, write_attempt
from launcher.runs.states import JobPhase, job_of
from launcher.runs.status import Status, write_status
from launcher.runs.submission import StageJob, Submission, write_submission
from launcher.slurm.client.job_status import (
    Jobs,
    find_sweep,
    job_state_of,
    live_states,
    members_of,
    why_it_waits,
)
from launcher.slurm.client.parse import JobInfo, parse_sacct, parse_squeue
from launcher.slurm.client.query import Slurm
from launcher.slurm.client.sweep import Member, Sweep, write_sweep


def listed(state: str, reason: str = "None", *, start: str = "N/A", nodes: str = "") -> str:
    """A line of squeue as Slurm 22.05 prints it."""
    return f"7|7|N/A|{state}|main|10:00|2026-03-01T10:00:00|{start}|N/A|{nodes}|{reason}|(null)\n"


@pytest.mark.parametrize(
    ("state", "phase"),
    [
        ("PENDING", JobPhase.waiting),
        ("REQUEUE_HOLD", JobPhase.waiting),
        ("CONFIGURING", JobPhase.running),
        ("RUNNING", JobPhase.running),
        ("COMPLETING", JobPhase.running),
        ("SUSPENDED", JobPhase.running),
        ("COMPLETED", JobPhase.ended),
        ("NODE_FAIL", JobPhase.ended),
        ("CANCELLED", JobPhase.ended),
    ],
)
def test_every_state_of_a_job_is_one_of_three_phases(state: str, phase: JobPhase) -> None:
    (info,) = parse_squeue(listed(state))
    assert job_state_of("7", info).phase is phase


def test_a_job_that_slurm_does_not_list_is_unknown() -> None:
    assert job_state_of("7", None).phase is JobPhase.unknown


def test_a_waiting_job_has_a_reason_and_a_plan() -> None:
    (info,) = parse_squeue(listed("PENDING", "Resources", start="2026-03-01T12:00:00"))
    word = job_state_of("7", info)
    assert (word.reason, word.start) == ("Resources", "2026-03-01T12:00:00.000Z")
    assert word.why == "it is next, when enough nodes are free (Resources)"


def test_a_running_job_has_nodes_and_no_plan() -> None:
    (info,) = parse_squeue(listed("RUNNING", start="2026-03-01T12:00:00", nodes="n[1-2]"))
    word = job_state_of("7", info)
    assert (word.nodes, word.start, word.reason) == (["n1", "n2"], "", "")


@pytest.mark.parametrize(
    "reason", ["JobHeldUser", "launch failed requeued held", "launch_failed_requeued_held", "JobLaunchFailure"]
)
def test_a_held_job_says_how_it_is_released(reason: str) -> None:
    """squeue of Slurm 22.05 writes some reasons with blanks."""
    (info,) = parse_squeue(listed("PENDING", reason))
    word = job_state_of("7", info)
    assert word.hint == "scontrol release 7" and word.why.endswith(f" ({reason})")


def test_a_job_that_can_never_start_says_why() -> None:
    (info,) = parse_squeue(listed("CANCELLED", "DependencyNeverSatisfied"))
    word = job_state_of("7", info)
    assert word.phase is JobPhase.ended and "did not end well" in word.why


ACCOUNT = "7|{}|0:0|main|2026-03-01T10:00:00|2026-03-01T10:00:00|2026-03-01T10:05:00|2026-03-01T10:05:00|10:00|{}\n"
"""A line of sacct; a job that never began has the moment of its end as its start."""


@pytest.mark.parametrize(
    ("before", "state", "nodes", "reason"),
    [
        ("FAILED", "CANCELLED by 0", "None assigned", "DependencyNeverSatisfied"),
        ("COMPLETED", "CANCELLED by 1000", "None assigned", ""),
        ("FAILED", "CANCELLED by 1000", "n1", ""),
        (None, "CANCELLED by 1000", "None assigned", ""),
    ],
)
def test_accounting_keeps_no_reason_so_the_job_before_tells_it(
    before: str | None, state: str, nodes: str, reason: str
) -> None:
    (info,) = parse_sacct(ACCOUNT.format(state, nodes))
    word = job_state_of("7", info, JobInfo(job_id="6", state=before) if before else None)
    assert word.reason == reason


@pytest.mark.parametrize(
    "reason", ["QOSMaxJobsPerUserLimit", "AssocGrpGRES", "ReqNodeNotAvail, UnavailableNodes:n[1-3]"]
)
def test_reasons_with_details_are_explained_too(reason: str) -> None:
    assert why_it_waits(reason).endswith(f" ({reason})")


def test_a_reason_nobody_knows_is_passed_on() -> None:
    assert why_it_waits("SomethingNew") == "SomethingNew"


def submit(run: Path, job_id: str, *, at: str, stage: str = "train") -> None:
    job = StageJob(stage=stage, job_id=job_id, argv=["sbatch"], script="train.sbatch", submitted=at)
    write_submission(run, Submission(key="key", stages=[job]))


def attempt(run: Path, number: int, job_id: str, *, at: str, starter: str = "slurm") -> None:
    RunPaths(run).attempt(number).mkdir(parents=True)
    record = AttemptRecord(attempt=number, starter=starter, host="n1", world_size=1, started=at, job_id=job_id)
    write_attempt(run, record)


def test_a_submitted_run_belongs_to_the_job_that_trains(tmp_path: Path) -> None:
    jobs = [
        StageJob(stage=stage, job_id=str(number), argv=[], script="", submitted="2026-03-01T10:00:00.000Z")
        for number, stage in enumerate(["prepare", "train", "export"], start=5)
    ]
    write_submission(tmp_path, Submission(key="key", stages=jobs))
    assert job_of(tmp_path) == "6"


def test_a_run_submitted_again_belongs_to_the_new_job(tmp_path: Path) -> None:
    attempt(tmp_path, 1, "5", at="2026-03-01T10:00:00.000Z")
    submit(tmp_path, "9", at="2026-03-02T10:00:00.000Z")
    assert job_of(tmp_path) == "9"


def test_a_run_taken_up_by_hand_belongs_to_the_job_of_its_newest_attempt(tmp_path: Path) -> None:
    submit(tmp_path, "5", at="2026-03-01T10:00:00.000Z")
    attempt(tmp_path, 1, "5", at="2026-03-01T11:00:00.000Z")
    attempt(tmp_path, 2, "12", at="2026-03-03T10:00:00.000Z")
    assert job_of(tmp_path) == "12"


def test_a_run_whose_newest_attempt_was_here_has_no_job(tmp_path: Path) -> None:
    attempt(tmp_path, 1, "5", at="2026-03-01T10:00:00.000Z")
    attempt(tmp_path, 2, "", at="2026-03-03T10:00:00.000Z", starter="local")
    assert job_of(tmp_path) == ""


def test_a_run_started_by_srun_is_known_by_its_status(tmp_path: Path) -> None:
    write_status(RunPaths(tmp_path).status, Status(name="one", state="running", job_id="8"))
    assert job_of(tmp_path) == "8"


def test_a_run_of_this_machine_has_no_job(tmp_path: Path) -> None:
    write_status(RunPaths(tmp_path).status, Status(name="one", state="running"))
    assert job_of(tmp_path) == ""


def test_a_sweep_is_found_by_name_and_path_and_lists_its_runs(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "grid"
    for name in ("00", "01"):
        (folder / name).mkdir(parents=True)
        (folder / name / "config.yaml").touch()
    members = [Member(index=index, run=f"{index:02d}", overrides=[], differs={}) for index in range(2)]
    write_sweep(folder, Sweep(key="key", members=members))
    assert find_sweep("grid", str(tmp_path / "runs")) == folder
    assert find_sweep(str(folder)) == folder
    assert members_of(folder) == [folder / "00", folder / "01"]
    assert find_sweep("other", str(tmp_path / "runs")) is None


class Queue(Slurm):
    """A Slurm that lists what it is given, and may fail to list a user's own jobs."""

    def __init__(self, text: str, *, own_fails: bool = False) -> None:
        super().__init__()
        self.found, self.own_fails, self.questions = parse_squeue(text), own_fails, 0

    def my_jobs(self) -> list[JobInfo]:
        self.questions += 1
        if self.own_fails:
            raise SlurmUnavailable("squeue did not answer within 6 s\nand more")
        return self.found

    def listed(self, job_ids: list[str]) -> list[JobInfo]:
        self.questions += 1
        return [job for job in self.found if job.name in job_ids]


def in_doubt(run: Path, key: str, sweep: dict[str, object] | None = None) -> None:
    run.mkdir(parents=True)
    write_submission(run, Submission(key=key, sweep=sweep, unanswered=True))


def test_runs_whose_answer_was_lost_are_found_with_one_more_question(tmp_path: Path) -> None:
    runs = [tmp_path / "grid" / "00", tmp_path / "grid" / "01", tmp_path / "alone"]
    for index, run in enumerate(runs[:2]):
        in_doubt(run, f"s_{index}", {"dir": str(run.parent), "index": index, "key": "s"})
    in_doubt(runs[2], "a")
    member, other = listed("PENDING", "Priority").replace("7|7|N/A", "7|7|1"), listed("PENDING").replace("7", "9")
    slurm = Queue(member.replace("(null)", "launcher:s") + other.replace("(null)", "launcher:a"))
    states = live_states(runs, Jobs(slurm))
    assert [state.job_id for state in states] == ["", "7_1", "9"]
    assert (states[1].state, states[1].queue_reason) == ("queued", "Priority")
    assert "no job of it is in the queue" in states[0].reason
    assert slurm.questions == 2


def test_a_question_that_fails_leaves_other_runs_as_they_are(tmp_path: Path) -> None:
    in_doubt(tmp_path / "lost", "a")
    (tmp_path / "other").mkdir()
    submit(tmp_path / "other", "7", at="2026-03-01T10:00:00.000Z")
    jobs = Jobs(Queue(listed("PENDING"), own_fails=True))
    lost, other = live_states([tmp_path / "lost", tmp_path / "other"], jobs)
    assert lost.not_asked == jobs.not_asked == "squeue did not answer within 6 s"
    assert (lost.job_id, other.job_id, other.state, other.not_asked) == ("", "7", "queued", "")


def test_a_question_that_failed_once_is_not_said_to_fail_for_ever(tmp_path: Path) -> None:
    in_doubt(tmp_path / "lost", "a")
    (tmp_path / "other").mkdir()
    submit(tmp_path / "other", "7", at="2026-03-01T10:00:00.000Z")
    jobs = Jobs(Queue(listed("PENDING"), own_fails=True), fresh_s=0.0)
    live_states([tmp_path / "lost", tmp_path / "other"], jobs)
    live_states([tmp_path / "other"], jobs)
    assert jobs.not_asked == ""
