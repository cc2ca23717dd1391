"""The state of a run: from its events, its status file, the processes there are, and what Slurm says of its job."""

from __future__ import annotations

import socket
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path

import psutil

from launcher.files import as_json, find_record
from launcher.paths import RunPaths
from launcher.runs.attempts import AttemptRecord, read_attempts
from launcher.runs.events import Event, read_events, valid_events
from launcher.runs.heartbeat import Beat, Phase
from launcher.runs.jsonl import parse_time
from launcher.runs.run_dir import is_locked, last_attempt, run_name
from launcher.runs.status import FINAL_STATES, Status, read_status
from launcher.runs.submission import read_submission

SLURM = "slurm"
"""AttemptRecord.starter of an attempt inside a job."""

SLURM_WAITING_STATES = frozenset(
    {"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
)


class JobPhase(Enum):
    """Where a job is, as far as a run is concerned."""

    waiting = "waiting"
    running = "running"
    """Or about to: configuring, completing, suspended."""
    ended = "ended"
    unknown = "unknown"
    """Slurm does not know it, or not any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobState:
    """The job of a run as Slurm describes it. Times are UTC, ISO 8601; empty where there is none."""

    job_id: str
    phase: JobPhase
    slurm_state: str = ""
    reason: str = ""
    """Why it waits, or why it never began, as Slurm names it."""
    why: str = ""
    """The meaning of that reason."""
    hint: str = ""
    """The command that helps a job that will not start by itself."""
    submitted: str = ""
    start: str = ""
    """When it is expected to start, while it waits."""
    nodes: list[str] = field(default_factory=list)


_NO_JOB = JobState(job_id="", phase=JobPhase.unknown)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """The state of a run as `launcher status` shows it."""

    name: str
    path: str
    state: str
    """validating, queued, running, succeeded, failed or cancelled."""
    alive: bool | None
    """Whether processes of it run now; None where that cannot be known, because they would be on another host."""
    preempted: bool
    """It was stopped, saved, and waits for somebody to start it again."""
    requeued: bool = False
    """It is in Slurm's queue again and continues by itself."""
    attempt: int
    step: int
    of: int
    epoch: float
    loss: float | None
    eval_loss: float | None
    tokens_per_s: float | None
    eta_s: float | None
    last_checkpoint_step: int | None
    last_checkpoint_time: str = ""
    exit_code: int | None
    """Of the last attempt that ended."""
    reason: str
    created: str
    updated: str
    hint: str = field(metadata={"json": "todo"})
    """The command that helps, empty where nothing needs help."""
    phase: str = ""
    """Of rank 0 (runs/heartbeat.py); empty when nothing runs, or it has not said."""
    job_id: str = ""
    """Slurm job of the newest attempt or submission; empty for a run of this host."""
    job_state: str = ""
    """The state of the job as Slurm names it; empty when it was not asked."""
    nodes: list[str] = field(default_factory=list)
    """That it runs on now."""
    queue_reason: str = ""
    """Why the job waits, as Slurm names it."""
    queue_why: str = ""
    """The meaning of that reason."""
    expected_start: str = ""
    """When Slurm expects to start it."""
    not_asked: str = ""
    """Why Slurm could not be asked; what is shown is then the run's own record alone."""

    def as_dict(self) -> dict[str, object]:
        """For --json."""
        return dict(as_json(self))

    @property
    def over(self) -> bool:
        """Nothing more happens to it unless somebody starts it again."""
        return self.alive is False and not self.requeued and self.state != "queued"


@dataclass(frozen=True, slots=True, kw_only=True)
class StarterProcess:
    """process.json: the local starter of an attempt, and its ranks."""

    pid: int
    created: float
    """When the process started, which tells it from a later one with the same number."""
    host: str
    started: str
    ranks: list[int]
    """Process ids."""


def run_state(run_dir: Path, job: JobState | None = None, *, not_asked: str = "") -> RunState:
    """The state of a run now. A run that says `running` but whose processes or job are gone has failed.

    Args:
        job: as Slurm describes it, asked before this call so that the record is never the older of the two; None
            where there is no job, or Slurm was not asked.
        not_asked: why Slurm could not be asked.
    """
    record = _Record.read(run_dir, job)
    events, status, found = record.events, record.status, record.find()
    saved_step, saved_at = _last_checkpoint(events, status)
    # What status.json says of speed belongs to the attempt that wrote it, not to one that is only starting.
    is_live = found.alive is not False and status.attempt in (0, record.attempt) and not record.is_starting
    waiting = job is not None and job.phase is JobPhase.waiting and found.state not in FINAL_STATES
    queue = job if job is not None and waiting else _NO_JOB
    name, known_job = run_name(run_dir), job or _NO_JOB
    return RunState(
        name=name,
        path=str(run_dir),
        state=found.state,
        alive=found.alive,
        preempted=found.preempted,
        requeued=waiting and found.state == "running",
        attempt=record.attempt,
        # An attempt that loads has not reported yet that it continues from the checkpoint.
        step=status.step or saved_step or 0,
        of=status.of,
        epoch=status.epoch,
        loss=status.loss,
        eval_loss=status.eval_loss,
        tokens_per_s=status.tokens_per_s if is_live else None,
        eta_s=status.eta_s if is_live else None,
        last_checkpoint_step=saved_step,
        last_checkpoint_time=saved_at,
        exit_code=_exit_code(valid_events(events, "attempt_end")),
        reason=found.reason,
        created=events[0].time if events else "",
        updated=max(status.updated, events[-1].time if events else ""),
        hint=queue.hint if waiting else _hint(name, found, slurm=record.on_slurm),
        phase=_phase(record) if found.alive and found.state == "running" else "",
        job_id=known_job.job_id or (record.job_id if record.on_slurm else ""),
        job_state=known_job.slurm_state,
        nodes=known_job.nodes or (record.attempts[-1].nodes if record.attempts and found.alive is not False else []),
        queue_reason=queue.reason,
        queue_why=queue.why,
        expected_start=queue.start,
        not_asked=not_asked if record.on_slurm else "",
    )


def is_alive(run_dir: Path, status: Status | None = None) -> bool | None:
    """Whether processes of the run are there, as far as this host can tell; None when they would be elsewhere."""
    if is_locked(run_dir):
        return True
    status = status or read_status(RunPaths(run_dir).status)
    if status is None or status.pid is None or status.state in FINAL_STATES:
        return False
    if status.host not in (None, socket.gethostname()):
        return None
    # A worker that torchrun or accelerate started holds no lock; its number may belong to another program by now.
    try:
        return any("launcher" in argument for argument in psutil.Process(status.pid).cmdline())
    except psutil.Error:
        return False


def is_submitted(run_dir: Path) -> bool:
    """Whether Slurm jobs run it or will, including jobs whose numbers are unknown."""
    return _Record.read(run_dir, None).on_slurm


def job_of(run_dir: Path) -> str:
    """Id of the job that runs it, will run it, or ran it last; empty for a local run."""
    record, submission = _Record.read(run_dir, None), read_submission(run_dir)
    if not record.on_slurm:
        return ""
    train = submission.newest("train") if submission else None
    is_newer = train is not None and not (record.attempts and record.attempts[-1].started >= train.submitted)
    return train.job_id if train is not None and is_newer else record.job_id


def run_process(run_dir: Path) -> StarterProcess | None:
    """The processes of the newest attempt on this host; None where there are none."""
    found = find_record(StarterProcess, RunPaths(run_dir).process(last_attempt(run_dir)))
    if found is None or found.host != socket.gethostname() or not is_locked(run_dir):
        return None
    with suppress(psutil.NoSuchProcess):
        if abs(psutil.Process(found.pid).create_time() - found.created) < 1.0:
            return found
    # The lock says that a rank at least is there, though its starter is gone.
    return replace(found, pid=found.ranks[0])


@dataclass(frozen=True, slots=True)
class _Condition:
    """The state of a run by its record and its processes."""

    state: str
    alive: bool | None
    preempted: bool = False
    reason: str = ""


@dataclass(frozen=True, slots=True)
class _Record:
    """The content of the run directory, and the job as Slurm describes it."""

    run_dir: Path
    attempt: int
    events: list[Event]
    status: Status
    attempts: list[AttemptRecord]
    job: JobState | None

    @classmethod
    def read(cls, run_dir: Path, job: JobState | None) -> _Record:
        paths = RunPaths(run_dir)
        events = read_events(paths.events)
        status = read_status(paths.status) or Status(name=run_dir.name, state="validating", updated="")
        return cls(run_dir, paths.newest_attempt(), events, status, read_attempts(run_dir), job)

    @property
    def on_slurm(self) -> bool:
        """Whether a job runs the run, or will: by its newest attempt, unless it was submitted after that."""
        newest = self.attempts[-1] if self.attempts else None
        submitted = max((event.time for event in self.events if event.event == "submitted"), default="")
        if self.job is not None:
            return True
        if newest is not None and submitted <= newest.started:
            return newest.starter == SLURM or (newest.starter != "local" and bool(newest.job_id))
        has_submission = bool(submitted) or RunPaths(self.run_dir).submission.exists()
        return has_submission or (newest is None and bool(self.status.job_id))

    @property
    def job_id(self) -> str:
        """By the record alone."""
        return self.attempts[-1].job_id if self.attempts else self.status.job_id or ""

    @property
    def began(self) -> bool:
        """The job has made an attempt of this run."""
        known = {record.job_id for record in self.attempts} or {self.status.job_id or ""}
        return self.job is not None and self.job.job_id in known

    @property
    def is_starting(self) -> bool:
        """The job runs, or will, and has not made its next attempt yet."""
        newest = self.attempts[-1] if self.attempts else None
        return self.job is not None and not (newest and newest.job_id == self.job.job_id and not newest.ended)

    @property
    def preempted(self) -> bool:
        """The newest attempt saved because it was asked to stop."""
        names = [event.event for event in self.events if event.event in ("attempt_start", "preempted")]
        return names[-1:] == ["preempted"]

    @property
    def cancelled(self) -> bool:
        return RunPaths(self.run_dir).cancel.exists()

    def find(self) -> _Condition:
        states = valid_events(self.events, "state")
        state = str(states[-1].fields.get("state")) if states else "validating"
        if state in FINAL_STATES and not self._was_submitted_after(states[-1]):
            ends = valid_events(self.events, "attempt_end")
            return _Condition(state, self._alive(over=True), reason=_reason(states[-1:] + ends[-1:]))
        if self.job is None:
            return self._by_processes(state)
        if self.job.phase is JobPhase.waiting:
            return _Condition("running" if self.began else "queued", alive=False)
        if self.job.phase is JobPhase.running:
            return _Condition("running", alive=True)
        return self._by_lost_job(self.job)

    def _by_processes(self, state: str) -> _Condition:
        alive = self._alive(over=False)
        if alive is False and self.preempted:
            return _Condition("cancelled", alive) if self.cancelled else _Condition(state, alive, preempted=True)
        if alive is False and state == "running":
            return _Condition("failed", alive, reason="its processes are gone (killed, or the host went down)")
        return _Condition(state, alive)

    def _by_lost_job(self, job: JobState) -> _Condition:
        """The job is over, and the end of the run is not on record."""
        if job.reason and not self.cancelled:
            return _Condition("failed", alive=False, reason=f"job {job.job_id} never began: {job.why}")
        if self.cancelled or job.slurm_state == "CANCELLED":
            when = "" if self.began else " before it began"
            return _Condition("cancelled", alive=False, reason=f"job {job.job_id} was cancelled{when}")
        if job.phase is JobPhase.unknown:
            end = f"Slurm does not know its job {job.job_id} (any more)"
        else:
            end = f"its job {job.job_id} is over (Slurm: {job.slurm_state})"
        if self.preempted:
            return _Condition("running", alive=False, preempted=True, reason=f"{end}; it had saved")
        return _Condition("failed", alive=False, reason=f"{end}, and nothing says why")

    def _alive(self, *, over: bool) -> bool | None:
        if self.job is not None:
            return self.job.phase is JobPhase.running
        here = is_alive(self.run_dir, self.status)
        if self.on_slurm and not here:
            return False if over else None
        return False if here is None and self._is_gone() else here

    def _is_gone(self) -> bool:
        """Whether the record says that the processes which status.json puts on another host are not there any more."""
        bounds = [event for event in self.events if event.event in ("attempt_start", "attempt_end")]
        # An older attempt may write its end after a newer one has begun.
        last = max((event.attempt for event in self.events), default=0)
        if bounds and bounds[-1].event == "attempt_end" and bounds[-1].attempt == last:
            return True
        newest = self.attempts[-1] if self.attempts else None
        # An attempt on this host followed; it holds no lock any more.
        return newest is not None and newest.attempt > self.status.attempt and newest.host == socket.gethostname()

    def _was_submitted_after(self, final: Event) -> bool:
        """Whether a final state belongs to an earlier job than the one there is now."""
        if self.job is None:
            return False
        if self.began:
            return self.attempts != [] and self.attempts[-1].attempt > final.attempt
        return bool(self.job.submitted) and parse_time(self.job.submitted) > parse_time(final.time)


def _last_checkpoint(events: list[Event], status: Status) -> tuple[int | None, str]:
    """Step and time of the newest one; events hold those of earlier attempts too."""
    saves = [event for event in events if event.event == "checkpoint" and isinstance(event.fields.get("step"), int)]
    step = saves[-1].fields["step"] if saves else None
    if not isinstance(step, int) or (status.last_checkpoint_step or 0) > step:
        return status.last_checkpoint_step, status.last_checkpoint_time or ""
    return step, saves[-1].time


def _phase(record: _Record) -> str:
    """By the heartbeat of rank 0."""
    beat = None if record.is_starting else find_record(Beat, RunPaths(record.run_dir).heartbeat(record.attempt, 0))
    return beat.phase if beat is not None else Phase.start if record.job is not None else ""


def _exit_code(ends: list[Event]) -> int | None:
    code = ends[-1].fields.get("exit_code") if ends else None
    return code if isinstance(code, int) else None


def _reason(events: list[Event]) -> str:
    texts = (event.fields.get(key) for event in events for key in ("message", "reason"))
    return next((text for text in texts if isinstance(text, str) and text not in ("", "done")), "")


def _hint(name: str, found: _Condition, *, slurm: bool) -> str:
    again = f"launcher resume {name}" if slurm else f"launcher train --run {name}"
    if found.preempted or found.state in ("failed", "cancelled"):
        return again
    return again if found.alive is False and found.state in ("validating", "queued") and not slurm else ""
