"""Slurm as a scheduler of runs: sbatch queues them, squeue and sacct say where they are, scancel ends them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from launcher.errors import RunError, SlurmUnavailable
from launcher.runs.attempts import AttemptRecord
from launcher.runs.scheduler import Requeued, Submitted, refuse_ended
from launcher.runs.states import RunState
from launcher.runs.status import FINAL_STATES
from launcher.slurm.client.job_status import live_state, live_states
from launcher.slurm.client.parse import hostnames
from launcher.slurm.client.query import Slurm
from launcher.slurm.client.requeue import requeue_job
from launcher.slurm.submit.cancel import jobs_to_stop, stop_runs
from launcher.slurm.submit.submit import check_again, queue_run

_REQUEUE_S = 900.0
"""How long to try to get back into the queue while the controller is away."""


class SlurmScheduler:
    """A `Scheduler`; `stages` are the jobs of a submission."""

    def __init__(self, *, stages: tuple[str, ...] = ("train",)) -> None:
        self._stages = stages

    def context(self) -> list[str] | None:
        return hostnames(os.environ.get("SLURM_JOB_NODELIST", "")) if "SLURM_JOB_ID" in os.environ else None

    def submit(self, run_dir: Path) -> Submitted:
        slurm = Slurm()
        again = check_again(run_dir, slurm, self._stages, dry_run=False)
        return queue_run(run_dir, again.stages, slurm, warnings=again.warnings)

    def query(self, run_dirs: Sequence[Path]) -> list[RunState]:
        return live_states(run_dirs, ended_too=len(run_dirs) == 1)

    def cancel(self, run_dirs: Sequence[Path], *, now: bool, wait_s: float, dry_run: bool = False) -> None:
        if dry_run:
            return
        slurm = Slurm()
        before = self.query(run_dirs)
        try:
            if all(state.state in FINAL_STATES for state in before) and not jobs_to_stop(run_dirs, slurm):
                refuse_ended(before)
            stop_runs(run_dirs, now=now, wait_s=wait_s, slurm=slurm)
        except SlurmUnavailable as error:
            job = f" (job {before[0].job_id})" if before[0].job_id else ""
            raise type(error)(
                f"Slurm runs {before[0].name}{job} and does not answer here: {error}. "
                "Try again, or on a node of that cluster"
            ) from error

    def requeue(self, record: AttemptRecord, *, without: Sequence[str] = ()) -> Requeued:
        return requeue_job(Slurm(retry_s=_REQUEUE_S), record, without)


def refuse_beside_job(run_dir: Path) -> None:
    """Inside a job, such as an interactive one, the lock of the run says nothing of other nodes.

    Raises: RunError while a job of the run waits or runs; SlurmUnavailable when that cannot be asked.
    """
    state = live_state(run_dir)
    if state.not_asked:
        raise SlurmUnavailable(
            f"whether a job runs {state.name} is not known, so nothing is started: {state.not_asked}"
        )
    if state.job_id and (state.alive or state.requeued or state.state == "queued"):
        raise RunError(
            f"{state.name} belongs to job {state.job_id} ({state.job_state.lower()}); watch it with "
            f"launcher logs -f {state.name}, or end it first with launcher cancel {state.name}"
        )
