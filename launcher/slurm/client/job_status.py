"""The state of runs with what Slurm says of their jobs: asked once for many runs, and not too often."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from launcher.errors import RunError, SlurmError
from launcher.paths import RunPaths
from launcher.runs.attempts import read_attempts
from launcher.runs.events import read_events
from launcher.runs.jsonl import utc_text
from launcher.runs.run_dir import SWEEP_FILE
from launcher.runs.states import JobPhase, JobWord, RunState, is_on_slurm, run_state
from launcher.runs.status import FINAL_STATES, read_status
from launcher.runs.submission import Submission, read_submission
from launcher.slurm.client.parse import JobInfo
from launcher.slurm.client.query import Slurm
from launcher.slurm.client.sweep import read_sweep
from launcher.slurm.client.unacknowledged_jobs import lost_job

PATIENCE_S = 3.0
"""How long a person who looks waits for a controller that is away."""
FRESH_S = 5.0
"""Answers are this long good enough: a controller serves a whole cluster."""

_WAITING = frozenset({"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"})
_NEVER = "DependencyNeverSatisfied"
_NO_ANSWER = "sbatch has given no answer, and no job of it is in the queue"
_WHY_IT_WAITS = {
    "Priority": "other jobs come first",
    "Resources": "it is next, when enough nodes are free",
    "Dependency": "it waits for the job before it",
    _NEVER: "the job before it did not end well",
    "BeginTime": "Slurm lets it rest for a moment after the requeue, or it was given a start time",
    "JobArrayTaskLimit": "as many members of its sweep run as may at a time",
    "JobHeldUser": "it is held by its owner",
    "JobHeldAdmin": "it is held by an operator of the cluster",
    "JobLaunchFailure": "a node could not start it",
    "launch_failed_requeued_held": "a node could not start it, and Slurm holds it since",
    "ReqNodeNotAvail": "nodes it asks for are down, drained or reserved",
    "PartitionDown": "its partition is down",
    "PartitionInactive": "its partition starts no jobs",
    "PartitionNodeLimit": "it asks for more nodes than its partition gives",
    "PartitionTimeLimit": "it asks for more time than its partition gives",
    "Reservation": "its reservation has not begun",
    "Licenses": "it waits for a licence",
    "BadConstraints": "no node has what it asks for",
    "InvalidAccount": "its account is not known",
    "InvalidQOS": "its quality of service is not known",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StageState:
    """One job of a submission."""

    stage: str
    job_id: str
    state: str
    """Slurm's word, lower case; unknown when Slurm does not know the job (any more)."""
    reason: str = ""


class Jobs:
    """What Slurm says of jobs, one question for many; an answer is kept for a few seconds.

    Args:
        slurm: whom to ask. fresh_s: how long an answer is good enough.
    """

    def __init__(self, slurm: Slurm | None = None, *, fresh_s: float = FRESH_S) -> None:
        self.slurm = slurm or Slurm(retry_s=PATIENCE_S, timeout_s=2 * PATIENCE_S)
        self._fresh_s = fresh_s
        self._unheard = ""
        self._asked_at = float("-inf")
        self._wanted: frozenset[str] = frozenset()
        self._found: dict[str, JobInfo] = {}
        self._mine: list[JobInfo] = []
        self._mine_unheard = ""
        self._mine_at = float("-inf")

    @property
    def not_asked(self) -> str:
        """Why the last question found no answer."""
        return self._unheard or (self._mine_unheard if self._mine_is_fresh else "")

    def ask(self, job_ids: Sequence[str]) -> dict[str, JobInfo] | None:
        """The jobs Slurm knows, by id; None when it could not be asked (see `not_asked`)."""
        wanted = frozenset(job_ids)
        stale = time.monotonic() - self._asked_at > self._fresh_s
        if wanted and (stale or not wanted <= self._wanted):
            self._question(wanted)
        return None if self._unheard else self._found

    def lost(self, submission: Submission) -> str | None:
        """The job that trains a run for which sbatch gave no answer, found by its comment; empty where there is none.

        None: Slurm could not be asked (see `not_asked`).
        """
        if not self._mine_is_fresh:
            try:
                self._mine, self._mine_unheard = self.slurm.my_jobs(), ""
            except SlurmError as error:
                self._mine, self._mine_unheard = [], _first_line(error)
            self._mine_at = time.monotonic()
        return None if self._mine_unheard else lost_job(submission, "train", self._mine)

    @property
    def _mine_is_fresh(self) -> bool:
        return time.monotonic() - self._mine_at <= self._fresh_s

    def _question(self, wanted: frozenset[str]) -> None:
        try:
            jobs = self.slurm.listed(sorted(wanted))
            self._unheard = ""
        except SlurmError as error:
            jobs = []
            self._unheard = _first_line(error)
        # A member of an array has two names: ARRAY_TASK, and a number of its own once it began.
        self._found = {name: job for job in jobs for name in (job.job_id, job.name)}
        self._wanted, self._asked_at = wanted, time.monotonic()


def live_state(run_dir: Path, jobs: Jobs | None = None) -> RunState:
    """The state of one run; Slurm is asked also when the record says that it has ended, for its job may not have."""
    return _states([run_dir], jobs or Jobs(), ended_too=True)[0]


def live_states(run_dirs: Sequence[Path], jobs: Jobs | None = None) -> list[RunState]:
    """The states of many runs, with one question to Slurm; one more where the answer of sbatch was lost."""
    return _states(run_dirs, jobs or Jobs(), ended_too=False)


def _states(run_dirs: Sequence[Path], jobs: Jobs, *, ended_too: bool) -> list[RunState]:
    states = {run_dir: run_state(run_dir) for run_dir in run_dirs}
    ids: dict[Path, str] = {}
    forerunners: dict[Path, str] = {}
    for run_dir, state in states.items():
        if state.state in FINAL_STATES and not ended_too:
            continue
        submission = read_submission(run_dir)
        in_doubt = submission if submission and submission.unanswered else None
        lost = jobs.lost(in_doubt) if in_doubt else ""
        if job_id := lost or job_of(run_dir):
            ids[run_dir] = job_id
            train = submission.newest("train") if submission else None
            if train and train.job_id == job_id and train.dependency:
                forerunners[run_dir] = train.dependency
        elif lost is None:
            states[run_dir] = replace(state, not_asked=jobs.not_asked)
        elif in_doubt and state.state not in FINAL_STATES:
            states[run_dir] = replace(state, reason=_NO_ANSWER, hint=f"launcher resume {state.name}")
    if ids:
        found = jobs.ask([*ids.values(), *forerunners.values()])
        for run_dir, job_id in ids.items():
            # Read again: what a job wrote before it ended is then there when Slurm says that it ended.
            if found is None:
                states[run_dir] = replace(run_state(run_dir, not_asked=jobs.not_asked), job_id=job_id)
            else:
                before = found.get(forerunners.get(run_dir, ""))
                states[run_dir] = run_state(run_dir, job_word(job_id, found.get(job_id), before))
    return list(states.values())


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


def find_sweep(text: str, runs_dir: str = "runs") -> Path | None:
    """The folder of a sweep meant by a path or a name under `runs_dir`; None where it is none."""
    for candidate in (Path(text), Path(runs_dir) / text):
        if (candidate / SWEEP_FILE).is_file():
            return candidate
    return None


def members_of(sweep_dir: Path) -> list[Path]:
    """Run directories of a sweep, in the order of its job array.

    Raises:
        RunError: its list cannot be read.
    """
    sweep = read_sweep(sweep_dir)
    if sweep is None:
        raise RunError(f"{sweep_dir / SWEEP_FILE} cannot be read")
    folders = [sweep_dir / member.run for member in sweep.members]
    return [folder for folder in folders if RunPaths(folder).config.is_file()]


def is_submitted(run_dir: Path) -> bool:
    """Whether jobs run the run, or are to, those among them whose numbers are not known."""
    paths = RunPaths(run_dir)
    return is_on_slurm(run_dir, read_attempts(run_dir), read_status(paths.status), read_events(paths.events))


def job_of(run_dir: Path) -> str:
    """Id of the job that runs the run, is to run it, or ran it last; empty for a run of this machine."""
    if not is_submitted(run_dir):
        return ""
    attempts, status = read_attempts(run_dir), read_status(RunPaths(run_dir).status)
    submission = read_submission(run_dir)
    train = submission.newest("train") if submission else None
    if train and not (attempts and attempts[-1].started >= train.submitted):
        return train.job_id
    return attempts[-1].job_id if attempts else (status.job_id or "") if status else ""


def stages_of(run_dir: Path, jobs: Jobs) -> list[StageState]:
    """The jobs of its submission in order; empty when it is one job only, or was not submitted by launcher."""
    submission = read_submission(run_dir)
    newest = {job.stage: job for job in submission.stages}.values() if submission else []
    if len(newest) < 2:
        return []
    found = jobs.ask([job.job_id for job in newest])
    states = []
    for job in newest:
        word = job_word(job.job_id, (found or {}).get(job.job_id))
        name = "not asked" if found is None else word.slurm_state.lower() or "unknown"
        states.append(StageState(stage=job.stage, job_id=job.job_id, state=name, reason=word.why))
    return states


def job_word(job_id: str, info: JobInfo | None, before: JobInfo | None = None) -> JobWord:
    """What a job means for its run. Pure.

    Args:
        before: the job it had to wait for, where there was one that is known.
    """
    if info is None:
        return JobWord(job_id=job_id, phase=JobPhase.unknown)
    if _fell_with(info, before):
        info = replace(info, reason=_NEVER)
    phase = JobPhase.ended if info.finished else JobPhase.waiting if info.state in _WAITING else JobPhase.running
    waits = phase is JobPhase.waiting
    never = phase is JobPhase.ended and info.reason == _NEVER
    return JobWord(
        job_id=job_id,
        phase=phase,
        slurm_state=info.state,
        reason=info.reason if waits or never else "",
        why=why_it_waits(info.reason) if waits or never else "",
        hint=_help(job_id, info.reason) if waits else "",
        submitted=_text(info.submitted),
        start=_text(info.started) if waits else "",
        nodes=info.nodes if phase is JobPhase.running else [],
    )


def _fell_with(info: JobInfo, before: JobInfo | None) -> bool:
    """Whether Slurm cancelled a job because the one before it failed: accounting keeps no reason, as squeue does."""
    failed = before is not None and before.finished and before.state != "COMPLETED"
    return failed and info.state == "CANCELLED" and not info.nodes and not info.reason


def why_it_waits(reason: str) -> str:
    """Slurm's reason with what it means."""
    known = _WHY_IT_WAITS.get(_word_of(reason))
    if known is None and reason.startswith(("QOS", "Assoc", "MaxJobs")):
        known = "a limit of its account or quality of service is reached"
    return f"{known} ({reason})" if known else reason


def _word_of(reason: str) -> str:
    """squeue writes "launch failed requeued held", scontrol underscores; ReqNodeNotAvail has more behind a comma."""
    return reason.split(",")[0].strip().replace(" ", "_")


def _help(job_id: str, reason: str) -> str:
    if _word_of(reason) in ("JobHeldUser", "launch_failed_requeued_held", "JobLaunchFailure"):
        return f"scontrol release {job_id}"
    return ""


def _text(moment: datetime | None) -> str:
    return utc_text(moment.astimezone(UTC)) if moment is not None else ""
