"""Submits a sweep: plans and checks every member, makes a run directory for each, queues one job array for all.

If a job must prepare data, one does it for the whole sweep, and the array waits for it.
"""

from __future__ import annotations

import os
import secrets
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

from launcher.config.compose import compose_with_problems
from launcher.config.schema import RunConfig
from launcher.config.unused_settings import ineffective_overrides
from launcher.errors import ConfigErrors, LauncherError, Problem, SlurmUnavailable, UserError
from launcher.plan.run_plan import allow_problems
from launcher.runs.jsonl import utc_text
from launcher.runs.run_dir import make_folder, refuse_taken_name, write_state
from launcher.runs.submission import StageJob, Submission, read_submission, write_submission
from launcher.slurm.client.query import Slurm
from launcher.slurm.client.sbatch import JobRequest, job_variables, sbatch_argv, sbatch_environment, sbatch_problems
from launcher.slurm.client.sweep import Member, Sweep, idle_apart, member_problems, varying_settings, write_sweep
from launcher.slurm.submit.submit import (
    SubmitPlan,
    ask_site,
    create,
    kind_problems,
    plan_checked,
    queue_all,
    record_submitted,
    stage_requests,
)

STAGES = ("train",)


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepPlan:
    """A sweep that can be submitted."""

    plans: list[SubmitPlan]
    overrides: list[list[str]]
    differs: list[dict[str, str]]
    throttle: int
    warnings: list[str] = field(default_factory=list)

    @property
    def first(self) -> RunConfig:
        """Configuration of the first member; all members ask Slurm for the same."""
        return self.plans[0].planned.config


def plan_sweep(
    members: list[list[str]], slurm: Slurm, *, conf_dir: Path | None, throttle: int, dry_run: bool
) -> SweepPlan:
    """Composes, checks and plans every member.

    Raises:
        ConfigErrors: the problems of all members. RunError: the name is taken. ModelError, DataError: of any member.
    """
    differs = varying_settings(members)
    composed = [compose_with_problems(overrides, extra_dir=conf_dir) for overrides in members]
    configs = [config for config, _ in composed]
    ineffective = [
        ineffective_overrides(config, {override.partition("=")[0] for override in overrides})
        for config, overrides in zip(configs, members, strict=True)
    ]
    found, idle = idle_apart([problems for _, problems in composed], ineffective)
    found = [
        problems or [*kind_problems(config), *sbatch_problems(config), *allow_problems(config)]
        for config, problems in zip(configs, found, strict=True)
    ]
    problems = member_problems(found, differs) or _uneven(configs) or _twins(configs, differs)
    warnings: list[str] = []
    if not problems:
        problems, warnings = ask_site(configs[0], slurm, STAGES, must_be_there=not dry_run)
    if problems:
        raise ConfigErrors(problems)
    refuse_taken_name(configs[0])
    plans = _plans(configs, differs, dry_run=dry_run)
    warnings = list(dict.fromkeys([*warnings, *idle, *(warning for plan in plans for warning in plan.warnings)]))
    return SweepPlan(plans=plans, overrides=members, differs=differs, throttle=throttle, warnings=warnings)


def _uneven(configs: list[RunConfig]) -> list[Problem]:
    """Settings that must be the same in all members: what the job array asks for, and where its runs are."""
    problems = []
    for name in configs[0].cluster.__dataclass_fields__:
        values = [getattr(config.cluster, name) for config in configs]
        if any(value != values[0] for value in values):
            hint = f"Submit one sweep for each value; quote text that holds a comma: cluster.{name}=\"'a,b'\""
            problems.append(Problem(f"cluster.{name}", values[1], "is not the same in all members of the sweep", hint))
    for name in ("name", "runs_dir"):
        values = [getattr(config, name) for config in configs]
        if any(value != values[0] for value in values):
            problems.append(Problem(name, values[1], "all members of a sweep are in one folder", "Give one value"))
    return problems


def _twins(configs: list[RunConfig], differs: list[dict[str, str]]) -> list[Problem]:
    """Members that are the same run, typed alike (seed=1,1) or not (optim.lr=1e-4,0.0001)."""
    problems = []
    seen: dict[str, int] = {}
    for index, config in enumerate(configs):
        first = seen.setdefault(repr(config), index)
        if first != index:
            typed = " ".join(f"{key}={value}" for key, value in differs[index].items())
            why = f"is the same run as member {first:02d}, so it would be trained twice"
            label = f"{index:02d} ({typed})" if typed else f"{index:02d}"
            problems.append(Problem("member of the sweep", label, why, "Give each value once"))
    return problems


def _plans(configs: list[RunConfig], differs: list[dict[str, str]], *, dry_run: bool) -> list[SubmitPlan]:
    plans: list[SubmitPlan] = []
    found: list[list[Problem]] = []
    for config in configs:
        # Members usually share their data: it is prepared only once, here or by the job before the array.
        try:
            plans.append(plan_checked(config, stages=STAGES, warnings=[], dry_run=dry_run))
            found.append([])
        except ConfigErrors as error:
            found.append(error.problems)
    if problems := member_problems(found, differs):
        raise ConfigErrors(problems)
    return plans


def sweep_requests(plan: SweepPlan, folder: Path, key: str) -> list[JobRequest]:
    """The job array of a sweep, after a job that prepares the data of all members if one is needed."""
    stages = ("prepare", "train") if any(member.in_job for member in plan.plans) else STAGES
    requests = stage_requests(plan.first, folder, stages, key)
    *before, train = [replace(request, script_args=["--sweep", str(folder)]) for request in requests]
    return [*before, replace(train, members=len(plan.plans), throttle=plan.throttle)]


def submit_sweep(plan: SweepPlan, slurm: Slurm) -> tuple[Path, Sweep, list[StageJob]]:
    """Makes a folder with a run directory for each member, and queues them as one job array.

    Returns: the folder, the content of sweep.json, and the jobs; the last one is the array.
    Raises:
        UserError: sbatch refused; nothing is left behind. SlurmUnavailable: no answer; the folder stays.
    """
    config = plan.first
    folder = make_folder(Path(config.runs_dir), config.name, f"{config.experiment_name}-sweep").absolute()
    key = secrets.token_hex(8)
    try:
        runs = [_create_member(member, folder, index, key) for index, member in enumerate(plan.plans)]
        members = [
            Member(index=index, run=run.name, overrides=plan.overrides[index], differs=plan.differs[index])
            for index, run in enumerate(runs)
        ]
        sweep = Sweep(key=key, throttle=plan.throttle, members=members)
        write_sweep(folder, sweep)
        requests = sweep_requests(plan, folder, key)
        full = sbatch_environment(os.environ, job_variables(config.cluster, os.environ))
        estimate = slurm.estimate_start(sbatch_argv(config, requests[0]), full)
        for run in runs:
            write_state(run, "queued")
        jobs = queue_all(config, requests, slurm, full)
    except SlurmUnavailable as error:
        name = folder.name
        raise SlurmUnavailable(
            f"{error}\nIt is not known whether the job array was queued, so {folder} stays. launcher status {name} "
            f"looks for its jobs; launcher resume {name}/00 (and so on) does too, and queues a member that has none. "
            "If none has one, remove the folder and submit again"
        ) from error
    except LauncherError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise UserError(f"{error}\nNothing was queued, and no run directory was kept") from error
    array = jobs[-1]
    sweep = replace(sweep, job_id=array.job_id, argv=array.argv, submitted=array.submitted)
    write_sweep(folder, sweep)
    for index, run in enumerate(runs):
        _record_member(run, index, jobs, utc_text(estimate) if estimate is not None else "")
    return folder, sweep, jobs


def _create_member(plan: SubmitPlan, folder: Path, index: int, key: str) -> Path:
    config = plan.planned.config
    config.runs_dir, config.name = str(folder), f"{index:02d}"
    run = create(plan)
    # Before the array has a number: if the answer of sbatch is lost, the array is found by this key.
    sweep: dict[str, object] = {"dir": str(folder), "index": index, "key": key}
    write_submission(run, Submission(key=f"{key}_{index}", sweep=sweep, unanswered=True))
    return run


def _record_member(run: Path, index: int, jobs: list[StageJob], estimate: str) -> None:
    mine = [replace(job, job_id=f"{job.job_id}_{index}") if job.stage == "train" else job for job in jobs]
    submission = read_submission(run)
    assert submission is not None, "written by _create_member"
    write_submission(run, submission.with_jobs(mine, estimate_start=estimate))
    record_submitted(run, mine)
