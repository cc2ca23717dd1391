"""submission.json: the jobs of a submitted run. Written at submission, read by status, cancel and resume."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from launcher.files import find_record, write_json
from launcher.paths import RunPaths


@dataclass(frozen=True, slots=True, kw_only=True)
class StageJob:
    """One job that was queued for the run."""

    stage: str
    """prepare, train, export or eval."""
    job_id: str
    """Slurm's number; ARRAY_TASK for a member of a sweep."""
    argv: list[str]
    """The sbatch command, word by word."""
    script: str
    submitted: str
    """UTC, ISO 8601."""
    dependency: str = ""
    """Job that must end well first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """Everything queued for one run, oldest first; a run that was submitted again has several train jobs."""

    key: str
    """In the comment of every job of the run (`launcher:KEY`): tells whether a call that got no answer was heard."""
    stages: list[StageJob] = field(default_factory=list)
    sweep: dict[str, object] | None = None
    """For a member of a sweep: dir, index, and key, which the job array carries as its comment."""
    unanswered: bool = False
    """sbatch was called and its answer is not in yet, or was lost: Slurm may have jobs that are not in `stages`."""
    cluster_name: str = ""
    estimate_start: str = ""
    """When Slurm expected the first job to start, UTC; empty: it did not say."""

    @property
    def sweep_key(self) -> str:
        """Key of the job array of the sweep; empty for a run of its own."""
        return str((self.sweep or {}).get("key", ""))

    @property
    def sweep_index(self) -> str:
        """Its task in the job array of the sweep; empty for a run of its own."""
        return str((self.sweep or {}).get("index", ""))

    def newest(self, stage: str) -> StageJob | None:
        """The job that was queued last for a stage."""
        return next((job for job in reversed(self.stages) if job.stage == stage), None)

    def with_jobs(self, jobs: list[StageJob], *, estimate_start: str = "") -> Submission:
        """This submission and further jobs, whose numbers are known."""
        start = estimate_start or self.estimate_start
        return replace(self, stages=[*self.stages, *jobs], unanswered=False, estimate_start=start)


def write_submission(run_dir: Path, submission: Submission) -> None:
    """Writes or replaces submission.json, whole."""
    write_json(RunPaths(run_dir).submission, submission, mode=0o600)


def read_submission(run_dir: Path) -> Submission | None:
    """None for a run that was not submitted."""
    return find_record(Submission, RunPaths(run_dir).submission)
