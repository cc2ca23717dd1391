"""What a job writes into the run directory about its attempts: records, verdicts, events, state."""

from __future__ import annotations

import dataclasses
import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import overload

from launcher.config.frozen import load_config
from launcher.config.schema import Derived
from launcher.diagnose.evidence import Evidence, collect
from launcher.diagnose.restart_policy import decide
from launcher.diagnose.srun_messages import Word
from launcher.diagnose.verdict import Verdict, judge, read_verdict, read_verdicts, write_verdict
from launcher.errors import RunError, SlurmError
from launcher.paths import RunPaths
from launcher.runs.attempts import AttemptRecord, read_attempt, write_attempt
from launcher.runs.events import EventWriter, read_events, words_of
from launcher.runs.jsonl import utc_now
from launcher.runs.run_dir import last_attempt
from launcher.runs.status import read_status, write_status
from launcher.slurm.client.parse import JobInfo
from launcher.slurm.client.query import Slurm
from launcher.slurm.job.allocation import Allocation

logger = logging.getLogger(__name__)


def last_state(paths: RunPaths) -> str:
    """State of the run as its events tell; empty before the first."""
    states = words_of(read_events(paths.events), "state")
    return str(states[-1].fields.get("state")) if states else ""


@contextmanager
def events_of(paths: RunPaths, attempt: int) -> Iterator[EventWriter]:
    writer = EventWriter(paths.events, attempt, -1)
    try:
        yield writer
    finally:
        writer.close()


def write_state(paths: RunPaths, attempt: int, state: str, reason: str) -> None:
    """Makes `state` the state of the run, in its events and its status file, unless it is so already.

    Nothing happens once a newer attempt exists: the run is then what that one says.
    """
    if last_attempt(paths.root) > attempt:
        return
    if last_state(paths) != state:
        with events_of(paths, attempt) as events:
            events.write("state", state=state, reason=reason)
    status = read_status(paths.status)
    if status is not None and status.state != state:
        now = dataclasses.replace(status, state=state, reason=reason, eta_s=None, updated=utc_now())
        write_status(paths.status, now)


def refuse_beside_other_job(run_dir: Path, allocation: Allocation, slurm: Slurm) -> None:
    """Two jobs never run one directory at a time.

    Raises:
        RunError: another job still runs an attempt.
    """
    for record in _open_attempts(run_dir):
        if record.job_id in ("", allocation.name):
            continue
        try:
            info = slurm.job(record.job_id)
        except SlurmError as error:
            # The fence in checkpoint/commit.py keeps the run whole all the same.
            logger.warning("cannot ask whether job %s still runs this run: %s", record.job_id, error)
            continue
        if info is not None and not info.finished and info.state != "PENDING":
            raise RunError(
                f"{run_dir} is being run by job {record.job_id} ({info.state.lower()}, attempt {record.attempt}); "
                f"watch it with: launcher logs -f {run_dir.name}, stop it with: launcher cancel {run_dir.name}"
            )


def judge_lost_attempts(run_dir: Path, allocation: Allocation) -> list[Verdict]:
    """Verdicts of earlier attempts under Slurm whose supervisor died with its node before it could write one."""
    verdicts = []
    for record in _open_attempts(run_dir):
        evidence = collect(run_dir, record.attempt, exit_code=None)
        if record.job_id == allocation.name and not slurm_said_why(evidence):
            # What else ends a supervisor without a word and has the job started again? Its node was lost.
            evidence = dataclasses.replace(evidence, slurm_state="NODE_FAIL")
        verdict = judge(evidence)
        write_verdict(run_dir, verdict)
        write_attempt(run_dir, dataclasses.replace(record, ended=verdict.ended or utc_now()))
        write_end_events(RunPaths(run_dir), verdict, None)
        logger.warning("attempt %d had been left without a verdict: %s", record.attempt, verdict.summary)
        verdicts.append(verdict)
    return verdicts


_SLURM_ENDS_JOBS = frozenset({Word.preempted, Word.time_limit, Word.node_failure, Word.requeued})


def slurm_said_why(evidence: Evidence) -> bool:
    """Whether Slurm named a reason of its own for ending the job; it does so in the log of the first rank."""
    return any(fact.word in _SLURM_ENDS_JOBS for fact in evidence.words)


def _open_attempts(run_dir: Path) -> list[AttemptRecord]:
    """Attempts of jobs that nobody has judged, oldest first."""
    names = sorted(path.parent.name for path in RunPaths(run_dir).attempts.glob("[0-9]*/attempt.json"))
    records = (read_attempt(run_dir, int(name)) for name in names if name.isdigit())
    found = [record for record in records if record is not None and record.starter == "slurm" and not record.ended]
    return [record for record in found if read_verdict(run_dir, record.attempt) is None]


def begin_attempt(
    run_dir: Path, attempt: int, derived: Derived, allocation: Allocation, info: JobInfo | None
) -> AttemptRecord:
    """The record of an attempt that starts now. Slurm's times, where it could be asked."""
    started = info.started if info is not None and info.started is not None else datetime.now(UTC)
    record = AttemptRecord(
        attempt=attempt,
        starter="slurm",
        host=socket.gethostname(),
        world_size=derived.world_size,
        started=_iso(started),
        job_id=allocation.name,
        restart=allocation.restart,
        queued=_iso(info.eligible or info.submitted) if info is not None else "",
        nodes=list(allocation.nodes),
        ranks_per_node=derived.devices_per_node,
    )
    write_attempt(run_dir, record)
    with events_of(RunPaths(run_dir), attempt) as events:
        events.write(
            "job_start",
            job_id=record.job_id,
            restart=record.restart,
            nodes=record.nodes,
            queued=record.queued,
            started=record.started,
        )
    return record


def _iso(moment: datetime | None) -> str:
    return "" if moment is None else moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


@overload
def decide_for_job(run_dir: Path, allocation: Allocation, newest: Verdict) -> Verdict: ...


@overload
def decide_for_job(run_dir: Path, allocation: Allocation) -> Verdict | None: ...


def decide_for_job(run_dir: Path, allocation: Allocation, newest: Verdict | None = None) -> Verdict | None:
    """What follows from the attempts this job has made; None before the first.

    Those of earlier jobs do not count: whoever submits a run again wants it to be tried again.

    Args:
        newest: of the attempt that just ended; need not be on disk yet.
    """
    mine = [verdict for verdict in read_verdicts(run_dir) if verdict.job_id == allocation.name]
    if newest is not None:
        mine = [*(verdict for verdict in mine if verdict.attempt < newest.attempt), newest]
    if not mine:
        return None
    return decide(load_config(RunPaths(run_dir).config).config.fault, mine)


def write_end_events(paths: RunPaths, verdict: Verdict, exit_code: int | None) -> None:
    """The verdict, and what rank 0 could not say itself."""
    mine = {event.event for event in read_events(paths.events) if event.attempt == verdict.attempt}
    kind = verdict.verdict_class.value
    with events_of(paths, verdict.attempt) as events:
        if kind in ("preempted", "timeout") and "preempted" not in mine:
            events.write("preempted", reason=verdict.summary)
        if "attempt_end" not in mine:
            events.write("attempt_end", exit_code=exit_code, reason=verdict.summary)
        events.write(
            "verdict",
            verdict_class=kind,
            action=verdict.action.value,
            summary=verdict.summary,
            rank_failed=verdict.rank,
            node=verdict.node,
        )
        if kind == "hang":
            events.write("hang", rank_failed=verdict.rank, node=verdict.node, place=verdict.place)
