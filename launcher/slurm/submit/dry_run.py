"""What `launcher submit --dry-run` shows: the requests of a submission that is not made."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from launcher.config.schema import RunConfig
from launcher.runs.submission import read_submission
from launcher.slurm.client.sbatch import JobRequest, job_variables
from launcher.slurm.submit.submit import Again, stage_requests, with_dependency

NO_KEY = "KEY"
"""Stands for the key of a run that is not there."""


def requests_again(again: Again, environ: Mapping[str, str]) -> list[JobRequest]:
    """What would be asked for, for a run that is there."""
    submission = read_submission(again.run_dir)
    key = submission.key if submission is not None else NO_KEY
    return _previewed(again.config, again.run_dir, again.stages, key, environ)


def preview(config: RunConfig, stages: tuple[str, ...], environ: Mapping[str, str]) -> list[JobRequest]:
    """What would be asked for, for a run that is not there: NO_KEY and the jobs' numbers stand for themselves."""
    return _previewed(config, preview_folder(config), stages, NO_KEY, environ)


def preview_folder(config: RunConfig) -> Path:
    """Where the run directory would be."""
    return Path(config.runs_dir).absolute() / (config.name or f"{config.experiment_name}-TIME")


def variables_of(config: RunConfig, environ: Mapping[str, str]) -> list[str]:
    """Names of what the job would get of the environment."""
    return sorted(job_variables(config.cluster, environ, python=sys.executable))


def _previewed(
    config: RunConfig, run_dir: Path, stages: tuple[str, ...], key: str, environ: Mapping[str, str]
) -> list[JobRequest]:
    return chained(stage_requests(config, run_dir, stages, key, variables_of(config, environ)))


def chained(requests: list[JobRequest]) -> list[JobRequest]:
    """The same requests, each after the one before; STAGE_JOB stands for the number that job would have."""
    befores = ["", *(f"{request.stage.upper()}_JOB" for request in requests[:-1])]
    return [with_dependency(request, before) for request, before in zip(requests, befores, strict=True)]
