"""The requests that `launcher submit --dry-run` shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from launcher.config.schema import RunConfig
from launcher.runs.submission import read_submission
from launcher.slurm.client.sbatch import JobRequest, job_variables
from launcher.slurm.submit.submit import stage_requests

NO_KEY = "KEY"
"""Stands for the key of a run that does not exist."""


def preview(config: RunConfig, run_dir: Path, stages: tuple[str, ...], environ: Mapping[str, str]) -> list[JobRequest]:
    """The requests for a run, whether it exists or not."""
    submission = read_submission(run_dir)
    key = submission.key if submission is not None else NO_KEY
    return chained(stage_requests(run_dir, stages, key, variables_of(config, environ)))


def preview_folder(config: RunConfig) -> Path:
    """Where the run directory would be."""
    return Path(config.runs_dir).absolute() / (config.name or f"{config.experiment_name}-TIME")


def variables_of(config: RunConfig, environ: Mapping[str, str]) -> list[str]:
    """Names of the job's variables."""
    return sorted(job_variables(config.cluster, environ))


def chained(requests: list[JobRequest]) -> list[JobRequest]:
    """The same requests, each after the one before; STAGE_JOB stands for the number of its job."""
    before = ["", *(f"{request.stage.upper()}_JOB" for request in requests[:-1])]
    return [replace(request, after=after) for request, after in zip(requests, before, strict=True)]
