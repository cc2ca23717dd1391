"""Finds jobs queued by a call of sbatch whose answer was lost: Slurm has them, the run's record does not. Pure.

Every job carries the key of its submission as its comment, and the key is recorded before sbatch is called.
"""

from __future__ import annotations

from collections.abc import Iterable

from launcher.runs.submission import Submission
from launcher.slurm.client.parse import JobInfo
from launcher.slurm.client.sbatch import comment


def lost_job(submission: Submission, stage: str, jobs: Iterable[JobInfo]) -> str:
    """Name of the job that is a stage of the run, ARRAY_TASK for a member of a sweep; empty if there is none.

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
