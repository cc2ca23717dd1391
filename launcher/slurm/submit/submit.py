"""From what the user typed to jobs in Slurm's queue: check, plan, run directory, sbatch. Returns at once; no torch.

In the order of a submission: plan_submission, create, queue_run. sweep_submit.py does the same for many runs at once.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from launcher.config.cluster_schema import PrepareAt
from launcher.config.compose import compose_with_problems
from launcher.config.frozen import load_config
from launcher.config.package_floors import package_problems
from launcher.config.schema import RunConfig
from launcher.config.shipped_files import share_dir
from launcher.errors import (
    ConfigErrors,
    NothingQueued,
    Problem,
    RunError,
    SlurmError,
    SlurmMissing,
    SlurmUnavailable,
    UserError,
)
from launcher.files import try_lock
from launcher.paths import RunPaths
from launcher.plan.run_plan import PlannedRun, allow_problems, plan_cheaply, plan_run, prepares_quickly
from launcher.runs.events import write_event
from launcher.runs.jsonl import utc_now, utc_text
from launcher.runs.run_dir import create_run, is_locked, refuse_taken_name, run_name, write_state
from launcher.runs.scheduler import Submitted
from launcher.runs.states import run_state
from launcher.runs.submission import StageJob, Submission, read_submission, write_submission
from launcher.slurm.client.job_status import lost_job
from launcher.slurm.client.query import Slurm
from launcher.slurm.client.sbatch import (
    STAGES,
    JobRequest,
    comment,
    job_variables,
    sbatch_argv,
    sbatch_environment,
    sbatch_problems,
)
from launcher.slurm.submit.site import site_problems, site_warnings

NO_KEY = "KEY"
"""Stands for the key of a run that does not exist."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmitPlan:
    """A run that may be submitted."""

    planned: PlannedRun
    stages: tuple[str, ...]
    in_job: bool
    """The data is prepared by the first job; the plan is an estimate until then."""
    warnings: list[str] = field(default_factory=list)


def plan_submission(
    overrides: list[str], slurm: Slurm, *, conf_dir: Path | None, stages: tuple[str, ...], dry_run: bool
) -> SubmitPlan:
    """Everything that can be known before a job waits. Model and data are fetched and prepared, unless `dry_run`.

    Raises:
        ConfigErrors: all problems of the configuration, of what sbatch takes and the cluster has; or those of the plan.
        RunError: the name is taken. ModelError, DataError: model or data cannot be used.
    """
    config, problems = compose_with_problems(overrides, extra_dir=conf_dir)
    if not problems or config.cluster.is_slurm:
        problems = problems + kind_problems(config) + sbatch_problems(config)
        problems = problems + package_problems(config) + allow_problems(config)
    warnings: list[str] = []
    if config.cluster.is_slurm:
        found, warnings = ask_site(config, slurm, stages, must_be_there=not dry_run)
        problems = problems + found
    if problems:
        raise ConfigErrors(problems)
    refuse_taken_name(config)
    return plan_checked(config, stages=stages, warnings=warnings, dry_run=dry_run)


def kind_problems(config: RunConfig) -> list[Problem]:
    """A run that is not for Slurm cannot be submitted."""
    if config.cluster.is_slurm:
        return []
    hint = "Add cluster=slurm, or the file of your site (docs/slurm.md); launcher train runs it on this machine"
    return [Problem("cluster.kind", config.cluster.kind.value, "only runs of kind slurm are submitted", hint)]


def ask_site(
    config: RunConfig, slurm: Slurm, stages: tuple[str, ...], *, must_be_there: bool
) -> tuple[list[Problem], list[str]]:
    """Problems and warnings of the cluster; a warning alone when it does not answer.

    Raises:
        UserError: this machine belongs to no cluster, and `must_be_there`.
    """
    try:
        partitions = slurm.partitions()
    except SlurmMissing as error:
        if must_be_there:
            raise UserError(f"{error}. Submit on a login node; --dry-run shows the job anywhere") from error
        return [], [f"not compared with a cluster: {error}"]
    except SlurmError as error:
        return [], [f"the cluster could not be asked what it has: {error}"]
    return site_problems(config, partitions, stages=stages), site_warnings(config, partitions)


def plan_checked(config: RunConfig, *, stages: tuple[str, ...], warnings: list[str], dry_run: bool) -> SubmitPlan:
    """The plan of a configuration in which nothing is wrong.

    Raises:
        ConfigErrors: the plan has problems. ModelError, DataError: as plan_run.
    """
    at = config.cluster.prepare
    in_job = "prepare" in stages or at is PrepareAt.job
    in_job = in_job or (at is PrepareAt.auto and not prepares_quickly(config, look_only=dry_run))
    planned = plan_cheaply(config) if in_job or dry_run else plan_run(config)
    if planned.plan.problems:
        raise ConfigErrors(planned.plan.problems)
    if in_job and "prepare" not in stages:
        stages = ("prepare", *stages)
    return SubmitPlan(planned=planned, stages=stages, in_job=in_job, warnings=[*warnings, *planned.plan.warnings])


def check_stages(stages: tuple[str, ...]) -> None:
    """Raises UserError for stages that do not exist, are given twice, or are out of order."""
    _refuse_unknown(stages)
    if list(stages) != [stage for stage in STAGES if stage in stages]:
        raise UserError(f"--stages {','.join(stages)}: give each once, in the order {','.join(STAGES)}")
    if "train" not in stages and stages != ("prepare",):
        raise UserError(
            f"--stages {','.join(stages)}: a new run must be trained first; for a run that is there add --run"
        )


def _refuse_unknown(stages: tuple[str, ...]) -> None:
    if not set(stages) <= set(STAGES):
        raise UserError(f"--stages {','.join(stages)}: choose from {','.join(STAGES)}")


def create(plan: SubmitPlan) -> Path:
    """The run directory of a planned submission; no job yet."""
    planned = plan.planned
    run_dir = create_run(planned.config, None if plan.in_job else planned.derived, planned.plan)
    key = secrets.token_hex(8) if plan.in_job else planned.derived.run_id
    write_submission(run_dir, Submission(key=key))
    return run_dir.absolute()


def submit_new(plan: SubmitPlan, slurm: Slurm) -> Submitted:
    """Creates the run directory and queues its jobs. If Slurm refuses the first one, nothing is left behind.

    Raises:
        UserError: sbatch refused. SlurmUnavailable: no answer; the run directory stays, for the job may be queued.
    """
    run_dir = create(plan)
    try:
        return queue_run(run_dir, plan.stages, slurm, is_new=True, warnings=plan.warnings)
    except NothingQueued as error:
        shutil.rmtree(run_dir, ignore_errors=True)
        raise UserError(f"{error}\nNothing was queued, and no run directory was kept") from error


def queue_run(
    run_dir: Path, stages: tuple[str, ...], slurm: Slurm, *, warnings: list[str], is_new: bool = False
) -> Submitted:
    """Queues jobs for a run that is there, each after the one before.

    Args:
        is_new: it was created just now, so no job of it can be there.
    Raises:
        RunError: a job of the run waits or runs already, or somebody runs it here. UserError: sbatch refused; jobs
        queued by this call are taken back. SlurmUnavailable: no answer, or no Slurm on this machine.
    """
    run_dir = run_dir.absolute()
    with submitting(run_dir):
        config = load_config(RunPaths(run_dir).config).config
        submission = read_submission(run_dir) or Submission(key=secrets.token_hex(8))
        full = sbatch_environment(os.environ, job_variables(config.cluster, os.environ))
        requests = stage_requests(config, run_dir, stages, submission.key)
        if not is_new:
            submission = _with_lost_jobs(run_dir, submission, slurm)
            _refuse_second(run_dir, submission, stages, slurm)
        estimate = slurm.estimate_start(sbatch_argv(config, requests[0]), full)
        before = run_state(run_dir).state
        # Before the job is there, for it writes its own states as soon as it starts, and stops at once at this mark.
        write_state(run_dir, "queued")
        RunPaths(run_dir).cancel.unlink(missing_ok=True)
        write_submission(run_dir, replace(submission, unanswered=True))
        try:
            jobs = queue_all(config, requests, slurm, full)
        except UserError as error:
            write_submission(run_dir, submission)
            write_state(run_dir, before, reason=f"was not queued: {error}")
            raise
        except SlurmUnavailable as error:
            name = run_name(run_dir)
            raise SlurmUnavailable(
                f"{error}\nWhether a job was queued is not known, so {run_dir} stays. launcher status {name} looks for "
                f"the job; launcher submit --run {name} looks, too, and queues one where there is none"
            ) from error
        submission = submission.with_jobs(jobs, estimate_start=utc_text(estimate) if estimate is not None else "")
        write_submission(run_dir, submission)
        record_submitted(run_dir, jobs)
    return Submitted(run_dir=run_dir, jobs=jobs, estimate_start=estimate, warnings=list(warnings))


@contextmanager
def submitting(run_dir: Path) -> Iterator[None]:
    """One submission of a run at a time. Not the lock of those who run it: the job may start before this ends.

    Raises:
        RunError: somebody submits it at this moment, or runs it on this machine.
    """
    if is_locked(run_dir):
        raise RunError(f"{run_dir.name} is running on this machine; stop it first with launcher cancel {run_dir.name}")
    descriptor = try_lock(run_dir / ".submit.lock")
    if descriptor is None:
        raise RunError(f"{run_dir.name} is being submitted by somebody else at this moment")
    try:
        yield
    finally:
        os.close(descriptor)


def preview(config: RunConfig, run_dir: Path, stages: tuple[str, ...]) -> list[JobRequest]:
    """The requests that a dry run shows for a run, whether it exists or not."""
    submission = read_submission(run_dir)
    return stage_requests(config, run_dir, stages, submission.key if submission is not None else NO_KEY)


def preview_folder(config: RunConfig) -> Path:
    """Where the run directory would be."""
    return Path(config.runs_dir).absolute() / (config.name or f"{config.experiment_name}-TIME")


def stage_requests(config: RunConfig, folder: Path, stages: tuple[str, ...], key: str) -> list[JobRequest]:
    """The job of each stage of a run, after the one before; STAGE_JOB stands for its number until it has one."""
    variables = sorted(job_variables(config.cluster, os.environ))
    before = ["", *(f"{stage.upper()}_JOB" for stage in stages[:-1])]
    return [
        JobRequest(
            stage=stage,
            job_name=folder.name if stage == "train" else f"{folder.name}-{stage}",
            key=key,
            script=script_of(stage),
            script_args=["--run", str(folder)],
            log_dir=folder,
            variables=variables,
            after=after,
        )
        for stage, after in zip(stages, before, strict=True)
    ]


def script_of(stage: str) -> Path:
    """The constant script of a stage."""
    return share_dir("slurm") / f"{stage}.sbatch"


def record_submitted(run_dir: Path, jobs: list[StageJob]) -> None:
    """One `submitted` event for each job."""
    for job in jobs:
        write_event(RunPaths(run_dir).events, 0, "submitted", job_id=job.job_id, stage=job.stage)


def queue_all(
    config: RunConfig, requests: list[JobRequest], slurm: Slurm, environ: Mapping[str, str]
) -> list[StageJob]:
    """Jobs in the queue, each after the one before.

    Raises:
        UserError: sbatch refused one, in its own words; those before it are taken back. SlurmUnavailable: no answer.
    """
    jobs: list[StageJob] = []
    for request in requests:
        stage, script, after = request.stage, str(request.script), jobs[-1].job_id if jobs else ""
        argv = sbatch_argv(config, replace(request, after=after))
        try:
            job_id = slurm.submit(argv, environ, comment=comment(request.key, stage))
        except SlurmUnavailable:
            raise
        except SlurmError as error:
            why = f"Slurm did not take the {stage} job: {error}"
            if not jobs:
                raise NothingQueued(why) from error
            for job in jobs:
                slurm.cancel(job.job_id)
            taken_back = ", ".join(f"{job.stage} job {job.job_id}" for job in jobs)
            raise UserError(f"{why}\nTaken back: {taken_back}") from error
        jobs.append(
            StageJob(stage=stage, job_id=job_id, argv=argv, script=script, submitted=utc_now(), dependency=after)
        )
    return jobs


def _with_lost_jobs(run_dir: Path, submission: Submission, slurm: Slurm) -> Submission:
    """The submission with the jobs that a call without an answer queued, which are entered now."""
    mine = slurm.my_jobs()
    names = {stage: lost_job(submission, stage, mine) for stage in STAGES}
    known = {"", *(job.job_id for job in submission.stages)}
    lost = [
        StageJob(stage=stage, job_id=name, argv=[], script=str(script_of(stage)), submitted=utc_now())
        for stage, name in names.items()
        if name not in known
    ]
    if lost:
        # One that prepares says nothing of the one that was to train.
        submission = replace(submission.with_jobs(lost), unanswered=not names["train"])
        write_submission(run_dir, submission)
        record_submitted(run_dir, lost)
    return submission


def _refuse_second(run_dir: Path, submission: Submission, stages: tuple[str, ...], slurm: Slurm) -> None:
    """A run has one job of a stage at a time: two would train at the same time."""
    for stage in stages:
        known = [job.job_id for job in submission.stages if job.stage == stage]
        waiting = [job.name for job in slurm.listed(known) if not job.finished]
        if waiting:
            name = run_name(run_dir)
            raise RunError(
                f"{name} has a {stage} job in the queue already: {waiting[0]}. Look at it with "
                f"launcher status {name}, or stop it first with launcher cancel {name}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Again:
    """A run that is there and may be submitted again."""

    config: RunConfig
    stages: tuple[str, ...]
    warnings: list[str]


def check_again(run_dir: Path, slurm: Slurm, stages: tuple[str, ...], *, dry_run: bool) -> Again:
    """Looks at a run before it is queued again: its settings as they are frozen, and the cluster as it is now.

    Raises:
        ConfigErrors: all problems. UserError: this machine belongs to no cluster.
    """
    _refuse_unknown(stages)
    frozen = load_config(RunPaths(run_dir).config)
    problems = kind_problems(frozen.config) or sbatch_problems(frozen.config)
    warnings: list[str] = []
    if not problems:
        problems, warnings = ask_site(frozen.config, slurm, stages, must_be_there=not dry_run)
    if problems:
        raise ConfigErrors(problems)
    if frozen.derived is None and "prepare" not in stages:
        stages = ("prepare", *stages)
    return Again(config=frozen.config, stages=stages, warnings=warnings)
