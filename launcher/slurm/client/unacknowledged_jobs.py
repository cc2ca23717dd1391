"""Jobs that were queued by a call whose answer was lost: Slurm has them, and the run's record does not. Pure.

Every job carries the key of its submission as its comment, and the key is written down before sbatch is called.
"""

from __future__ import annotations

from collections.abc import Iterable

from launcher.runs.submission import Submission
from launcher.slurm.client.parse import JobInfo
from launcher.slurm.client.sbatch import comment


def lost_job(submission: Submission, stage: str, jobs: Iterable[JobInfo]) -> str:
    """Name of the job that is a stage of the run, ARRAY_TASK for a member of a sweep; empty where there is none.

    Args:
        jobs: this user's, members of arrays one by one (Slurm.my_jobs).
    """
    for job in jobs:
        if not job.finished and _is_stage(job, submission, stage):
            return job.name
    return ""


def _is_stage(job: JobInfo, submission: Submission, stage: str) -> bool:
    if job.comment == comment(submission.key, stage):
        return True
    # Members of a sweep train as tasks of one array; one job without tasks prepares the data of all of them.
    of_sweep = submission.sweep_key and job.comment == comment(submission.sweep_key, stage)
    return bool(of_sweep) and job.array_task_id in ("", submission.sweep_index)
