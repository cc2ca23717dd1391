"""The state of runs and of their Slurm jobs: one question for many runs, and not too often."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from launcher.errors import RunError, SlurmError
from launcher.paths import RunPaths
from launcher.runs.jsonl import utc_text
from launcher.runs.run_dir import SWEEP_FILE
from launcher.runs.states import SLURM_WAITING_STATES, JobPhase, JobState, RunState, job_of, run_state
from launcher.runs.status import FINAL_STATES
from launcher.runs.submission import Submission, read_submission
from launcher.slurm.client.parse import JobInfo
from launcher.slurm.client.query import Slurm
from launcher.slurm.client.sbatch import comment
from launcher.slurm.client.sweep import read_sweep

PATIENCE_S = 3.0
"""How long status waits for a controller that does not answer."""
FRESH_S = 5.0
"""How long an answer is reused: a controller serves a whole cluster."""

_NEVER = "DependencyNeverSatisfied"
_HELD = ("JobHeldUser", "launch_failed_requeued_held", "JobLaunchFailure")
_NO_ANSWER = "sbatch has given no answer, and no job of it is in the queue"
_WHY_IT_WAITS = {
    "Priority": "other jobs come first",
    "Resources": "it is next, when enough nodes are free",
    "Dependency": "it waits for the job before it",
    _NEVER: "the job before it did not end well",
    "BeginTime": "Slurm delays it briefly after a requeue, or it has a start time",
    "JobArrayTaskLimit": "as many members of its sweep are running as may run at a time",
    "JobHeldUser": "its owner holds it",
    "JobHeldAdmin": "an operator of the cluster holds it",
    "JobLaunchFailure": "a node could not start it",
    "launch_failed_requeued_held": "a node could not start it, so Slurm holds it",
    "ReqNodeNotAvail": "nodes it asks for are down, drained or reserved",
    "PartitionDown": "its partition is down",
    "PartitionInactive": "its partition starts no jobs",
    "PartitionNodeLimit": "it asks for more nodes than its partition allows",
    "PartitionTimeLimit": "it asks for more time than its partition allows",
    "Reservation": "its reservation has not begun",
    "Licenses": "it waits for a licence",
    "BadConstraints": "no node has what it asks for",
    "InvalidAccount": "its account is unknown",
    "InvalidQOS": "its quality of service is unknown",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StageState:
    """One job of a submission."""

    stage: str
    job_id: str
    state: str
    """As Slurm names it, in lower case; "unknown" if Slurm does not know the job (any more)."""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class _Answer:
    """Slurm's answer to one question, or the problem with it."""

    jobs: Sequence[JobInfo] = ()
    problem: str = ""
    at_s: float = float("-inf")


class Jobs:
    """Slurm's jobs, one question for many; an answer is kept for `fresh_s` seconds."""

    def __init__(self, slurm: Slurm | None = None, *, fresh_s: float = FRESH_S) -> None:
        self.slurm = slurm or Slurm(retry_s=PATIENCE_S, timeout_s=2 * PATIENCE_S)
        self._fresh_s = fresh_s
        self._wanted: frozenset[str] = frozenset()
        self._listed = _Answer()
        self._mine = _Answer()

    @property
    def not_asked(self) -> str:
        """Why Slurm could not be asked; empty after an answer."""
        return self._listed.problem or (self._mine.problem if self._is_fresh(self._mine) else "")

    def ask(self, job_ids: Sequence[str]) -> dict[str, JobInfo] | None:
        """The jobs Slurm knows, by id; None when it could not be asked (see `not_asked`)."""
        wanted = frozenset(job_ids)
        if wanted and not (wanted <= self._wanted and self._is_fresh(self._listed)):
            self._wanted = wanted
            self._listed = _asked(lambda: self.slurm.listed(sorted(wanted)))
        if self._listed.problem:
            return None
        # A member of an array has two names: ARRAY_TASK, and a number of its own once it has started.
        return {name: job for job in self._listed.jobs for name in (job.job_id, job.name)}

    def lost(self, submission: Submission) -> str | None:
        """The training job of a run for which sbatch gave no answer, found by its comment; empty if there is none.

        None: Slurm could not be asked (see `not_asked`).
        """
        if not self._is_fresh(self._mine):
            self._mine = _asked(self.slurm.my_jobs)
        return None if self._mine.problem else lost_job(submission, "train", self._mine.jobs)

    def _is_fresh(self, answer: _Answer) -> bool:
        return time.monotonic() - answer.at_s <= self._fresh_s


def _asked(question: Callable[[], list[JobInfo]]) -> _Answer:
    try:
        return _Answer(question(), at_s=time.monotonic())
    except SlurmError as error:
        return _Answer(problem=str(error).splitlines()[0], at_s=time.monotonic())


def lost_job(submission: Submission, stage: str, jobs: Iterable[JobInfo]) -> str:
    """Name of the job that a call of sbatch without an answer queued for a stage of the run; "" if there is none.

    Every job carries the key of its submission as its comment, and the key is recorded before sbatch is called.

    Args:
        jobs: this user's, members of arrays one by one (Slurm.my_jobs).
    """
    own = comment(submission.key, stage)
    # Members of a sweep train as tasks of one array; one job without tasks prepares the data of all of them.
    of_sweep = comment(submission.sweep_key, stage) if submission.sweep_key else None
    tasks = ("", submission.sweep_index)
    for job in jobs:
        if not job.finished and (job.comment == own or (job.comment == of_sweep and job.array_task_id in tasks)):
            return job.name
    return ""


def live_state(run_dir: Path, jobs: Jobs | None = None) -> RunState:
    """The state of one run; Slurm is asked even if the run's record has ended, because its job may not have."""
    return live_states([run_dir], jobs, ended_too=True)[0]


def live_states(run_dirs: Sequence[Path], jobs: Jobs | None = None, *, ended_too: bool = False) -> list[RunState]:
    """The states of many runs, with one question to Slurm, and a second one if an answer of sbatch was lost."""
    jobs = jobs or Jobs()
    states = {run_dir: run_state(run_dir) for run_dir in run_dirs}
    # Of each run its job, and the one that must end well before.
    asked: dict[Path, tuple[str, str]] = {}
    for run_dir, state in states.items():
        if state.state in FINAL_STATES and not ended_too:
            continue
        submission = read_submission(run_dir)
        in_doubt = submission if submission and submission.unanswered else None
        lost = jobs.lost(in_doubt) if in_doubt else ""
        if job_id := lost or job_of(run_dir):
            train = submission.newest("train") if submission else None
            asked[run_dir] = job_id, train.dependency if train and train.job_id == job_id else ""
        elif lost is None:
            states[run_dir] = replace(state, not_asked=jobs.not_asked)
        elif in_doubt and state.state not in FINAL_STATES:
            states[run_dir] = replace(state, reason=_NO_ANSWER, hint=f"launcher resume {state.name}")
    found = jobs.ask([job_id for pair in asked.values() for job_id in pair if job_id])
    for run_dir, (job_id, before) in asked.items():
        # Read again: what a job wrote before its end is there by the time Slurm says that it has ended.
        if found is None:
            states[run_dir] = replace(run_state(run_dir, not_asked=jobs.not_asked), job_id=job_id)
        else:
            states[run_dir] = run_state(run_dir, job_state_of(job_id, found.get(job_id), found.get(before)))
    return list(states.values())


def find_sweep(text: str, runs_dir: str = "runs") -> Path | None:
    """The folder of a sweep, from its name under `runs_dir` or its path; None if there is no such sweep."""
    candidates = (Path(runs_dir) / text, Path(text))
    return next((folder for folder in candidates if (folder / SWEEP_FILE).is_file()), None)


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


def stages_of(run_dir: Path, jobs: Jobs) -> list[StageState]:
    """The jobs of its submission in order; empty if it is one job, or launcher did not submit it."""
    submission = read_submission(run_dir)
    newest = {job.stage: job for job in submission.stages}.values() if submission else []
    if len(newest) < 2:
        return []
    found = jobs.ask([job.job_id for job in newest])
    states = []
    for job in newest:
        state = job_state_of(job.job_id, (found or {}).get(job.job_id))
        name = "not asked" if found is None else state.slurm_state.lower() or "unknown"
        states.append(StageState(stage=job.stage, job_id=job.job_id, state=name, reason=state.why))
    return states


def job_state_of(job_id: str, info: JobInfo | None, before: JobInfo | None = None) -> JobState:
    """A job's state as its run sees it. Pure.

    Args:
        before: the job it had to wait for, if known.
    """
    if info is None:
        return JobState(job_id=job_id, phase=JobPhase.unknown)
    if _fell_with(info, before):
        info = replace(info, reason=_NEVER)
    phase = JobPhase.waiting if info.state in SLURM_WAITING_STATES else JobPhase.running
    phase = JobPhase.ended if info.finished else phase
    waits = phase is JobPhase.waiting
    reason = info.reason if waits or (phase is JobPhase.ended and info.reason == _NEVER) else ""
    return JobState(
        job_id=job_id,
        phase=phase,
        slurm_state=info.state,
        reason=reason,
        why=why_it_waits(reason),
        hint=f"scontrol release {job_id}" if waits and _key(reason) in _HELD else "",
        submitted=_text(info.submitted),
        start=_text(info.started) if waits else "",
        nodes=info.nodes if phase is JobPhase.running else [],
    )


def _fell_with(info: JobInfo, before: JobInfo | None) -> bool:
    """Whether Slurm cancelled a job because the one before it failed: unlike squeue, accounting keeps no reason."""
    failed = before is not None and before.finished and before.state != "COMPLETED"
    return failed and info.state == "CANCELLED" and not info.nodes and not info.reason


def why_it_waits(reason: str) -> str:
    """Slurm's reason with its meaning."""
    known = _WHY_IT_WAITS.get(_key(reason))
    if known is None and reason.startswith(("QOS", "Assoc", "MaxJobs")):
        known = "a limit of its account or quality of service is reached"
    return f"{known} ({reason})" if known else reason


def _key(reason: str) -> str:
    """squeue writes "launch failed requeued held", scontrol underscores; details follow a comma."""
    return reason.split(",")[0].strip().replace(" ", "_")


def _text(moment: datetime | None) -> str:
    return utc_text(moment.astimezone(UTC)) if moment is not None else ""
