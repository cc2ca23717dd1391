"""Ending the jobs of runs for good: those that train save first, those that wait go at once."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from launcher.errors import RunError, SlurmError, SlurmUnavailable
from launcher.paths import RunPaths
from launcher.runs.run_dir import last_attempt, run_name, write_state
from launcher.runs.states import JobPhase, job_of, run_state
from launcher.runs.status import FINAL_STATES
from launcher.runs.submission import read_submission
from launcher.slurm.client.job_status import job_state_of, lost_job
from launcher.slurm.client.parse import JobInfo
from launcher.slurm.client.query import Slurm
from launcher.slurm.client.sbatch import STAGES, comment
from launcher.slurm.client.sweep import read_sweep

SIGNAL = "TERM"
"""Makes ranks save and exit; the marker in the run directory keeps their supervisor from requeueing the job."""

_POLL_S = 1.0
# Ranks that were only being started may have missed the signal.
_SIGNAL_AGAIN_S = 10.0


def jobs_to_stop(run_dirs: Sequence[Path], slurm: Slurm) -> list[JobInfo]:
    """Jobs of these runs that wait or run, those of their other stages too; one question, two if one was lost.

    Raises:
        SlurmUnavailable: nobody answered.
    """
    submissions = [found for run_dir in run_dirs if (found := read_submission(run_dir))]
    in_doubt = [submission for submission in submissions if submission.unanswered]
    mine = slurm.my_jobs() if in_doubt else []
    ids = [job.job_id for submission in submissions for job in submission.stages]
    ids += [train for run_dir in run_dirs if (train := job_of(run_dir))]
    ids += [name for submission in in_doubt for stage in STAGES if (name := lost_job(submission, stage, mine))]
    others = _needed_by_others(run_dirs)
    jobs = slurm.listed(list(dict.fromkeys(ids)))
    return [job for job in jobs if not job.finished and job.comment not in others]


def _needed_by_others(run_dirs: Sequence[Path]) -> set[str]:
    """Comments of jobs that prepare the data of a whole sweep, where not all of its members are to stop."""
    stopped = Counter(run_dir.absolute().parent for run_dir in run_dirs)
    sweeps = [(read_sweep(folder), count) for folder, count in stopped.items()]
    return {comment(sweep.key, "prepare") for sweep, count in sweeps if sweep and count < len(sweep.members)}


def stop_runs(run_dirs: Sequence[Path], *, now: bool, wait_s: float, slurm: Slurm) -> None:
    """Cancels runs and waits until their jobs are gone; harmless for a run that has none any more.

    Args:
        now: end them at once; what was not saved is lost.
        wait_s: how long they may take.
    Raises:
        SlurmUnavailable: Slurm could not be asked, and nothing was done.
        RunError: a job is not this user's, or is still there after that time.
    """
    jobs = jobs_to_stop(run_dirs, slurm)
    for run_dir in run_dirs:
        if run_state(run_dir).state not in FINAL_STATES:
            try:
                RunPaths(run_dir).cancel.touch()
            except OSError as error:
                raise RunError(f"{run_dir} cannot be marked as cancelled: {error}. Nothing was done") from error
    train = {job_of(run_dir) for run_dir in run_dirs}
    signalled: dict[str, tuple[JobPhase, float]] = {}
    deadline = time.monotonic() + wait_s
    while jobs:
        for job in jobs:
            _signal(job, slurm, signalled, saves=not now and not train.isdisjoint((job.name, job.job_id)))
        if time.monotonic() > deadline:
            raise _too_long(run_dirs, jobs, wait_s)
        time.sleep(_POLL_S)
        jobs = jobs_to_stop(run_dirs, slurm)
    for run_dir in run_dirs:
        # A job that never began, or that was killed, could not write its end itself.
        if run_state(run_dir).state not in FINAL_STATES:
            write_state(run_dir, "cancelled", attempt=last_attempt(run_dir), reason="cancelled by the user")


def _signal(job: JobInfo, slurm: Slurm, signalled: dict[str, tuple[JobPhase, float]], *, saves: bool) -> None:
    """Does what this job needs now, unless that was done a moment ago.

    Args:
        signalled: what was done last for each job: in which phase it was then, and when.
        saves: it trains, and so has something to save while it runs.
    """
    phase = job_state_of(job.job_id, job).phase
    if job.state == "COMPLETING":
        return
    before, at_s = signalled.get(job.name, (None, 0.0))
    if phase is before and time.monotonic() - at_s <= _SIGNAL_AGAIN_S:
        return
    signalled[job.name] = (phase, time.monotonic())
    try:
        slurm.cancel(job.name, signal=SIGNAL if saves and phase is JobPhase.running else None)
    except SlurmUnavailable:
        raise
    except SlurmError as error:
        # The second time it may be that only the job's own last words are left to be written.
        if before is None:
            raise RunError(f"Slurm does not let you cancel job {job.name}: {error}") from error


def _too_long(run_dirs: Sequence[Path], jobs: list[JobInfo], wait_s: float) -> RunError:
    names = ", ".join(f"{job.name} ({job.state})" for job in jobs[:5]) + (", ..." if len(jobs) > 5 else "")
    name = run_name(run_dirs[0]) if len(run_dirs) == 1 else run_dirs[0].parent.name
    return RunError(
        f"{name}: still there {wait_s:.0f} s after it was cancelled: job {names}; it may be in a long step or save. "
        f"It will not continue in any case. Look again with launcher status {name}, or lose what is unsaved with "
        f"launcher cancel {name} --now"
    )
