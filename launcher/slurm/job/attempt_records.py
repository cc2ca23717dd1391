"""The attempts of a job: the record of a new one, verdicts of lost ones, and the restart policy applied to them."""

from __future__ import annotations

import logging
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import overload

from launcher.config.frozen import load_config
from launcher.config.schema import Derived
from launcher.diagnose.conclude import conclude
from launcher.diagnose.evidence import JobEnd, StarterReport
from launcher.diagnose.restart_policy import decide
from launcher.diagnose.verdict import Verdict, read_verdict, read_verdicts
from launcher.errors import RunError, SlurmError
from launcher.paths import RunPaths
from launcher.runs.attempts import AttemptRecord, read_attempts, write_attempt
from launcher.runs.events import write_event
from launcher.slurm.client.parse import JobInfo
from launcher.slurm.client.query import Slurm
from launcher.slurm.job.allocation import Allocation

logger = logging.getLogger(__name__)


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
        job = JobEnd(state="", supervisor_lost=True) if record.job_id == allocation.name else None
        verdict = conclude(RunPaths(run_dir), record, StarterReport(exit_code=None, job=job)).verdict
        logger.warning("attempt %d had been left without a verdict: %s", record.attempt, verdict.summary)
        verdicts.append(verdict)
    return verdicts


def _open_attempts(run_dir: Path) -> list[AttemptRecord]:
    """Attempts of jobs that nobody has judged, oldest first."""
    found = [record for record in read_attempts(run_dir) if record.starter == "slurm" and not record.ended]
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
    write_event(
        RunPaths(run_dir).events,
        attempt,
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
