"""Submitting a sweep: every member planned and checked, a run directory each, one job array for all of them.

Where a job is to prepare data, there is one for the whole sweep, and the array waits for it.
"""

from __future__ import annotations

import secrets
import shutil
import sys
from collections.abc import Mapping
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
    script_of,
)

STAGES = ("train",)


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepPlan:
    """A sweep that may be submitted."""

    plans: list[SubmitPlan]
    overrides: list[list[str]]
    differs: list[dict[str, str]]
    throttle: int
    warnings: list[str] = field(default_factory=list)

    @property
    def first(self) -> RunConfig:
        """Configuration of the first member; what the job asks for is the same in all."""
        return self.plans[0].planned.config


def plan_sweep(
    members: list[list[str]], slurm: Slurm, *, conf_dir: Path | None = None, throttle: int = 0, dry_run: bool = False
) -> SweepPlan:
    """Composes, checks and plans every member.

    Raises:
        ConfigErrors: the problems of all members. RunError: the name is taken. ModelError, DataError: of any member.
    """
    differs = varying_settings(members)
    composed = [compose_with_problems(words, extra_dir=conf_dir) for words in members]
    configs = [config for config, _ in composed]
    found, idle = idle_apart(
        [problems for _, problems in composed],
        [ineffective_overrides(config, _keys(words)) for config, words in zip(configs, members, strict=True)],
    )
    found = [problems or _further(config) for config, problems in zip(configs, found, strict=True)]
    problems = member_problems(found, differs)
    if not problems:
        problems = _uneven(configs) or _twins(configs, differs)
    warnings: list[str] = []
    if not problems:
        problems, warnings = ask_site(configs[0], slurm, STAGES, must_be_there=not dry_run)
    if problems:
        raise ConfigErrors(problems)
    refuse_taken_name(configs[0])
    plans = _plans(configs, differs, dry_run=dry_run)
    warnings = list(dict.fromkeys([*warnings, *idle, *(warning for plan in plans for warning in plan.warnings)]))
    return SweepPlan(plans=plans, overrides=members, differs=differs, throttle=throttle, warnings=warnings)


def _keys(words: list[str]) -> set[str]:
    return {word.partition("=")[0] for word in words}


def _further(config: RunConfig) -> list[Problem]:
    return kind_problems(config) + sbatch_problems(config) + allow_problems(config)


def _uneven(configs: list[RunConfig]) -> list[Problem]:
    """Members of a job array ask for the same; whatever differs there must be another sweep."""
    problems = []
    for name in configs[0].cluster.__dataclass_fields__:
        values = [getattr(config.cluster, name) for config in configs]
        if any(value != values[0] for value in values):
            hint = f"Submit one sweep for each value; quote text that holds a comma: cluster.{name}=\"'a,b'\""
            problems.append(Problem(f"cluster.{name}", values[1], "is not the same in all members of the sweep", hint))
    for name in ("name", "runs_dir"):
        places = [getattr(config, name) for config in configs]
        if any(place != places[0] for place in places):
            problems.append(Problem(name, places[1], "one sweep lies in one folder", "Give one value"))
    return problems


def _twins(configs: list[RunConfig], differs: list[dict[str, str]]) -> list[Problem]:
    """Members that are the same run, whether they were typed alike (seed=1,1) or not (optim.lr=1e-4,0.0001)."""
    problems = []
    seen: dict[str, int] = {}
    for index, config in enumerate(configs):
        first = seen.setdefault(repr(config), index)
        if first != index:
            typed = " ".join(f"{key}={value}" for key, value in differs[index].items())
            why = f"is the same run as member {first:02d}, and would be trained a second time"
            label = f"{index:02d} ({typed})" if typed else f"{index:02d}"
            problems.append(Problem("member of the sweep", label, why, "Give each value once"))
    return problems


def _plans(configs: list[RunConfig], differs: list[dict[str, str]], *, dry_run: bool) -> list[SubmitPlan]:
    plans: list[SubmitPlan] = []
    found: list[list[Problem]] = []
    for config in configs:
        # Members share their data as a rule: what is prepared here, or by the job before the array, is made once.
        try:
            plans.append(plan_checked(config, stages=STAGES, warnings=[], dry_run=dry_run))
            found.append([])
        except ConfigErrors as error:
            found.append(error.problems)
    if problems := member_problems(found, differs):
        raise ConfigErrors(problems)
    return plans


def sweep_requests(plan: SweepPlan, folder: Path, key: str, variables: list[str]) -> list[JobRequest]:
    """The job array of a sweep, and before it the job that prepares the data of all members, where one is to."""
    base = JobRequest(
        stage="train",
        job_name=folder.name,
        key=key,
        script=script_of("train"),
        script_args=["--sweep", str(folder)],
        log_dir=folder,
        variables=variables,
    )
    array = replace(base, members=len(plan.plans), throttle=plan.throttle)
    if not any(member.in_job for member in plan.plans):
        return [array]
    return [replace(base, stage="prepare", job_name=f"{folder.name}-prepare", script=script_of("prepare")), array]


def submit_sweep(plan: SweepPlan, slurm: Slurm, environ: Mapping[str, str]) -> tuple[Path, Sweep, list[StageJob]]:
    """Makes a folder with a run directory for each member, and queues them as one job array.

    Returns: the folder, what sweep.json holds, and the jobs: the array, after one that prepares the data if need be.
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
        variables = job_variables(config.cluster, environ, python=sys.executable)
        requests = sweep_requests(plan, folder, key, sorted(variables))
        full = sbatch_environment(environ, variables)
        estimate = slurm.estimate_start(sbatch_argv(config, requests[0]), full)
        for run in runs:
            write_state(run, "queued")
        jobs = queue_all(config, requests, slurm, full)
    except SlurmUnavailable as error:
        raise SlurmUnavailable(f"{error}\n{_in_doubt(folder)}") from error
    except LauncherError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise UserError(f"{error}\nNothing was queued, and no run directory was kept") from error
    array = jobs[-1]
    sweep = replace(sweep, job_id=array.job_id, argv=array.argv, submitted=array.submitted)
    write_sweep(folder, sweep)
    for index, run in enumerate(runs):
        _record_member(run, index, jobs, utc_text(estimate) if estimate is not None else "")
    return folder, sweep, jobs


def _in_doubt(folder: Path) -> str:
    name = folder.name
    return (
        f"Whether the job array was queued is not known, so {folder} stays. launcher status {name} looks for its jobs; "
        f"launcher resume {name}/00 (and so on) looks, too, and queues a member where it has none. Where none has one, "
        f"remove the folder and submit again"
    )


def _create_member(plan: SubmitPlan, folder: Path, index: int, key: str) -> Path:
    config = plan.planned.config
    config.runs_dir, config.name = str(folder), f"{index:02d}"
    run = create(plan)
    # Now, not when the array has a number: where the answer of sbatch is lost, this is how the array is found.
    place: dict[str, object] = {"dir": str(folder), "index": index, "key": key}
    write_submission(run, Submission(key=f"{key}_{index}", sweep=place, unanswered=True))
    return run


def _record_member(run: Path, index: int, jobs: list[StageJob], estimate: str) -> None:
    mine = [replace(job, job_id=f"{job.job_id}_{index}") if job.stage == "train" else job for job in jobs]
    submission = read_submission(run)
    assert submission is not None, "written by _create_member"
    write_submission(run, submission.with_jobs(mine, estimate_start=estimate))
    record_submitted(run, mine)
