"""The attempts of a job: the record of a new one, the verdicts of lost ones."""

from __future__ import annotations

import logging
import socket
from datetime import UTC, datetime
from pathlib import Path

from launcher.config.schema import Derived
from launcher.diagnose.conclude import conclude
from launcher.diagnose.evidence import JobEnd, StarterReport
from launcher.diagnose.verdict import Verdict, read_verdict, read_verdicts
from launcher.errors import RunError, SlurmError
from launcher.paths import RunPaths
from launcher.runs.attempts import AttemptRecord, read_attempts, write_attempt
from launcher.runs.events import write_event
from launcher.runs.jsonl import utc_text
from launcher.slurm.client.parse import JobInfo
from launcher.slurm.client.query import Slurm
from launcher.slurm.job.allocation import Allocation

logger = logging.getLogger(__name__)


def refuse_beside_other_job(run_dir: Path, allocation: Allocation, slurm: Slurm) -> None:
    """Prevents two jobs from running one directory at a time.

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


def judge_lost_attempts(run_dir: Path, allocation: Allocation) -> None:
    """Writes the verdicts of earlier attempts whose supervisor died with its node before it could."""
    for record in _open_attempts(run_dir):
        job = JobEnd(state="", supervisor_lost=True) if record.job_id == allocation.name else None
        verdict, _ = conclude(RunPaths(run_dir), record, StarterReport(exit_code=None, job=job))
        logger.warning("attempt %d had been left without a verdict: %s", record.attempt, verdict.summary)


def _open_attempts(run_dir: Path) -> list[AttemptRecord]:
    """Attempts of jobs without a verdict, oldest first."""
    found = [record for record in read_attempts(run_dir) if record.starter == "slurm" and not record.ended]
    return [record for record in found if read_verdict(run_dir, record.attempt) is None]


def record_start(
    run_dir: Path, attempt: int, derived: Derived, allocation: Allocation, info: JobInfo | None
) -> AttemptRecord:
    """Records an attempt that starts now, with Slurm's times if it could be asked."""
    started = (info.started if info is not None else None) or datetime.now(UTC)
    queued = (info.eligible or info.submitted) if info is not None else None
    record = AttemptRecord(
        attempt=attempt,
        starter="slurm",
        host=socket.gethostname(),
        world_size=derived.world_size,
        started=utc_text(started),
        job_id=allocation.name,
        restart=allocation.restart,
        queued=utc_text(queued) if queued is not None else "",
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


def verdicts_of_job(run_dir: Path, allocation: Allocation) -> list[Verdict]:
    """Verdicts of this job's attempts. Those of earlier jobs do not count: submitting a run again is a new try."""
    return [verdict for verdict in read_verdicts(run_dir) if verdict.job_id == allocation.name]
