"""Submitting a sweep: every member planned and checked, a run directory each, one job array for all of them."""

from __future__ import annotations

import secrets
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from launcher.config.compose import compose_with_problems
from launcher.config.schema import RunConfig
from launcher.config.share import share_dir
from launcher.errors import ConfigErrors, LauncherError, Problem, UserError
from launcher.launch.rundir import make_folder, refuse_taken_name, write_state
from launcher.planning import allow_problems
from launcher.slurm.query import Slurm, SlurmUnavailable
from launcher.slurm.sbatch import JobRequest, job_variables, sbatch_argv, sbatch_environment, sbatch_problems
from launcher.slurm.submission import StageJob, Submission, write_submission
from launcher.slurm.submit import SubmitPlan, ask_site, create, kind_problems, plan_checked, queue_one, record_submitted
from launcher.slurm.sweep import Member, Sweep, differences, member_problems, write_sweep
from launcher.track.jsonl import utc_text

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
    differs = differences(members)
    composed = [compose_with_problems(words, extra_dir=conf_dir) for words in members]
    found = [problems + (_further(config) if not problems else []) for config, problems in composed]
    problems = member_problems(found, differs)
    configs = [config for config, _ in composed]
    if not problems:
        problems = _uneven(configs)
    warnings: list[str] = []
    if not problems:
        problems, warnings = ask_site(configs[0], slurm, STAGES, must_be_there=not dry_run)
    if problems:
        raise ConfigErrors(problems)
    refuse_taken_name(configs[0])
    plans = _plans(configs, differs, dry_run=dry_run)
    warnings += list(dict.fromkeys(warning for plan in plans for warning in plan.warnings))
    return SweepPlan(plans=plans, overrides=members, differs=differs, throttle=throttle, warnings=warnings)


def _further(config: RunConfig) -> list[Problem]:
    return kind_problems(config) + sbatch_problems(config) + allow_problems(config)


def _uneven(configs: list[RunConfig]) -> list[Problem]:
    """Members of a job array ask for the same; whatever differs there must be another sweep."""
    problems = []
    for name in configs[0].cluster.__dataclass_fields__:
        values = [getattr(config.cluster, name) for config in configs]
        if any(value != values[0] for value in values):
            todo = f"Submit one sweep for each value; quote text that holds a comma: cluster.{name}=\"'a,b'\""
            problems.append(Problem(f"cluster.{name}", values[1], "is not the same in all members of the sweep", todo))
    for name in ("name", "runs_dir"):
        places = [getattr(config, name) for config in configs]
        if any(place != places[0] for place in places):
            problems.append(Problem(name, places[1], "one sweep lies in one folder", "Give one value"))
    return problems


def _plans(configs: list[RunConfig], differs: list[dict[str, str]], *, dry_run: bool) -> list[SubmitPlan]:
    plans: list[SubmitPlan] = []
    found: list[list[Problem]] = []
    for config in configs:
        # Members share their data as a rule: prepared here once, by the first of them.
        config.cluster = replace(config.cluster, prepare=type(config.cluster.prepare).login)
        try:
            plans.append(plan_checked(config, stages=STAGES, warnings=[], dry_run=dry_run))
            found.append([])
        except ConfigErrors as error:
            found.append(error.problems)
    if problems := member_problems(found, differs):
        raise ConfigErrors(problems)
    return plans


def sweep_request(plan: SweepPlan, folder: Path, key: str, variables: list[str]) -> JobRequest:
    """The job array of a sweep."""
    return JobRequest(
        stage="train",
        job_name=folder.name,
        key=key,
        script=share_dir("slurm") / "train.sbatch",
        script_args=["--sweep", str(folder)],
        log_dir=folder,
        variables=variables,
        members=len(plan.plans),
        throttle=plan.throttle,
    )


def submit_sweep(plan: SweepPlan, slurm: Slurm, environ: Mapping[str, str]) -> tuple[Path, Sweep]:
    """Makes a folder with a run directory for each member, and queues them as one job array.

    Raises:
        UserError: sbatch refused; nothing is left behind. SlurmUnavailable: no answer; the folder stays.
    """
    config = plan.first
    folder = make_folder(Path(config.runs_dir), config.name, f"{config.experiment_name}-sweep").absolute()
    key = secrets.token_hex(8)
    try:
        runs = [_create_member(member, folder, index) for index, member in enumerate(plan.plans)]
        members = [
            Member(index=index, run=run.name, overrides=plan.overrides[index], differs=plan.differs[index])
            for index, run in enumerate(runs)
        ]
        sweep = Sweep(key=key, throttle=plan.throttle, members=members)
        write_sweep(folder, sweep)
        variables = job_variables(config.cluster, environ, python=sys.executable)
        request = sweep_request(plan, folder, key, sorted(variables))
        full = sbatch_environment(environ, variables)
        estimate = slurm.estimate_start(sbatch_argv(config, request), full)
        for run in runs:
            write_state(run, "queued")
        job = queue_one(config, request, slurm, full)
    except SlurmUnavailable as error:
        raise SlurmUnavailable(f"{error}\nWhether the job array was queued is not known; squeue --me tells") from error
    except LauncherError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise UserError(f"{error}\nNothing was queued, and no run directory was kept") from error
    sweep = replace(sweep, job_id=job.job_id, argv=job.argv, submitted=job.submitted)
    write_sweep(folder, sweep)
    for index, run in enumerate(runs):
        _record_member(run, folder, index, job, key, utc_text(estimate) if estimate is not None else "")
    return folder, sweep


def _create_member(plan: SubmitPlan, folder: Path, index: int) -> Path:
    config = plan.planned.config
    config.runs_dir, config.name = str(folder), f"{index:02d}"
    return create(plan)


def _record_member(run: Path, folder: Path, index: int, job: StageJob, key: str, estimate: str) -> None:
    mine = replace(job, job_id=f"{job.job_id}_{index}")
    place: dict[str, object] = {"dir": str(folder), "index": index}
    write_submission(run, Submission(key=f"{key}_{index}", stages=[mine], sweep=place, estimate_start=estimate))
    record_submitted(run, [mine])
