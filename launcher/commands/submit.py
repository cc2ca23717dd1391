"""launcher submit: checks a run, makes its directory, and puts it into Slurm's queue; returns at once."""

from __future__ import annotations

import argparse
import json
import shlex
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from launcher.commands.plan_view import in_short, print_plan, summary
from launcher.config.schema import RunConfig
from launcher.errors import ExitCode, UserError
from launcher.files import as_json
from launcher.paths import scratch_cache
from launcher.plan.run_plan import PlannedRun
from launcher.runs.jsonl import utc_text
from launcher.runs.run_dir import find_run, run_name
from launcher.runs.scheduler import Submitted
from launcher.runs.states import run_state
from launcher.runs.submission import StageJob
from launcher.slurm.client.query import Slurm
from launcher.slurm.client.sbatch import JobRequest, sbatch_argv
from launcher.slurm.client.sweep import Sweep, expand
from launcher.slurm.submit.scheduler import SlurmScheduler
from launcher.slurm.submit.submit import (
    NO_KEY,
    SubmitPlan,
    check_again,
    check_stages,
    plan_submission,
    preview,
    preview_folder,
    submit_new,
)
from launcher.slurm.submit.sweep_submit import SweepPlan, plan_sweep, submit_sweep, sweep_requests


def run(args: argparse.Namespace) -> int:
    stages = tuple(args.stages.split(","))
    if args.throttle < 0:
        raise UserError(f"--throttle {args.throttle}: give 1 or more, or leave it out for no limit")
    if args.run is not None:
        if args.overrides or args.sweep:
            raise UserError("settings of a run are frozen when it is created; start a new run for other settings")
        _refuse_throttle(args)
        return submit_again(args, stages)
    check_stages(stages)
    members = expand(args.overrides, args.sweep)
    # A dry run leaves nothing behind, in the cache neither.
    with scratch_cache() if args.dry_run else nullcontext():
        if len(members) > 1:
            return _sweep(args, members, stages)
        _refuse_throttle(args)
        return _one(args, members[0], stages)


def _refuse_throttle(args: argparse.Namespace) -> None:
    if args.throttle:
        raise UserError(
            f"--throttle {args.throttle}: says how many members of a sweep run at once, and this is one run; leave it "
            "out, or make a sweep of it, such as seed=0,1"
        )


def _one(args: argparse.Namespace, overrides: list[str], stages: tuple[str, ...]) -> int:
    slurm = Slurm()
    plan = plan_submission(overrides, slurm, conf_dir=args.conf_dir, stages=stages, dry_run=args.dry_run)
    if args.dry_run:
        return _show_dry_run(args, plan)
    submitted = submit_new(plan, slurm)
    submitted.warnings.extend(_audit(plan.planned))
    if not args.json:
        print(summary(plan.planned.plan))
    _show_queued(args, submitted, plan=as_json(plan.planned.plan))
    return ExitCode.DONE


def submit_again(args: argparse.Namespace, stages: tuple[str, ...] = ("train",)) -> int:
    """Queues the next attempt of an existing run, unless it has finished. Also `launcher resume`.

    Raises:
        RunError: there is no such run, or a job of it waits or runs. UserError: it is not for Slurm, or Slurm refused.
    """
    run_dir = find_run(args.run, args.runs_dir)
    if stages == ("train",) and run_state(run_dir).state == "succeeded":
        note = "it has finished; there is nothing left to do"
        document = {"run_dir": str(run_dir), "name": run_name(run_dir), "jobs": [], "note": note}
        print(json.dumps(document, indent=2) if args.json else f"{run_name(run_dir)}: {note}")
        return ExitCode.DONE
    if args.dry_run:
        again = check_again(run_dir, Slurm(), stages, dry_run=True)
        requests = preview(again.config, run_dir.absolute(), again.stages)
        return _show_jobs(args, requests, again.config, {"warnings": again.warnings})
    _show_queued(args, SlurmScheduler(stages=stages).submit(run_dir))
    return ExitCode.DONE


def _sweep(args: argparse.Namespace, members: list[list[str]], stages: tuple[str, ...]) -> int:
    if stages != ("train",):
        raise UserError(f"--stages {args.stages}: the members of a sweep are only trained; leave it out")
    slurm = Slurm()
    plan = plan_sweep(members, slurm, conf_dir=args.conf_dir, throttle=args.throttle, dry_run=args.dry_run)
    if args.dry_run:
        return _show_sweep_dry_run(args, plan)
    folder, sweep, jobs = submit_sweep(plan, slurm)
    if args.json:
        document = {
            "run_dir": str(folder),
            "name": folder.name,
            "job_id": sweep.job_id,
            "argv": sweep.argv,
            "jobs": _job_documents(jobs),
            "members": [{"run": f"{folder.name}/{member.run}", "differs": member.differs} for member in sweep.members],
            "warnings": plan.warnings,
        }
        print(json.dumps(document, indent=2))
    else:
        _tell_sweep(folder, sweep, plan, jobs)
    return ExitCode.DONE


def _tell_sweep(folder: Path, sweep: Sweep, plan: SweepPlan, jobs: list[StageJob]) -> None:
    lines = [f"warning  {text}" for text in plan.warnings]
    lines += [f"{folder.name}: job {job.job_id} prepares the data of all runs before they start" for job in jobs[:-1]]
    lines += [f"{folder.name}: job array {sweep.job_id}, {len(sweep.members)} runs in {folder}"]
    for member in sweep.members:
        setting = " ".join(f"{key}={value}" for key, value in member.differs.items())
        lines.append(f"  {folder.name}/{member.run}   {setting}")
    lines += [
        "  all of them   launcher status",
        f"  one of them   launcher logs -f {folder.name}/{sweep.members[0].run}",
        f"  stop one      launcher cancel {folder.name}/{sweep.members[0].run}",
    ]
    print("\n".join(lines))


def _job_documents(jobs: list[StageJob]) -> list[dict[str, object]]:
    return [{"stage": job.stage, "job_id": job.job_id, "dependency": job.dependency, "argv": job.argv} for job in jobs]


def _show_queued(args: argparse.Namespace, queued: Submitted, **further: object) -> None:
    name, start = run_name(queued.run_dir), queued.estimate_start
    if args.json:
        main = next((job for job in queued.jobs if job.stage == "train"), queued.jobs[-1])
        document = {
            "run_dir": str(queued.run_dir),
            "name": name,
            "job_id": main.job_id,
            "jobs": _job_documents(queued.jobs),
            "estimate_start": utc_text(start) if start is not None else None,
            "warnings": queued.warnings,
            **further,
        }
        print(json.dumps(document, indent=2))
        return
    lines = [f"warning  {text}" for text in queued.warnings]
    for job in queued.jobs:
        after = f", after job {job.dependency}" if job.dependency else ""
        lines.append(f"{name}: {job.stage} is job {job.job_id}{after}")
    when = start.astimezone().strftime("%Y-%m-%d %H:%M %Z") if start is not None else "Slurm does not say"
    lines += [
        f"  run directory  {queued.run_dir}",
        f"  expected start {when}",
        f"  how it goes    launcher status {name}",
        f"  what it says   launcher logs -f {name}",
        f"  stop it        launcher cancel {name}",
    ]
    print("\n".join(lines))


def _show_dry_run(args: argparse.Namespace, plan: SubmitPlan) -> int:
    config = plan.planned.config
    requests = preview(config, preview_folder(config), plan.stages)
    if not args.json:
        _show_plan(plan.planned, verbose=args.verbose)
    warnings = [*plan.warnings, *_audit(plan.planned)]
    return _show_jobs(args, requests, config, {"warnings": warnings, "plan": as_json(plan.planned.plan)})


def _show_sweep_dry_run(args: argparse.Namespace, plan: SweepPlan) -> int:
    folder = preview_folder(plan.first)
    requests = sweep_requests(plan, folder, NO_KEY)
    if not args.json:
        _show_plan(plan.plans[0].planned, verbose=args.verbose)
        for one in plan.differs:
            print("member    " + " ".join(f"{key}={value}" for key, value in one.items()))
    members = [{"run": f"{folder.name}/{i:02d}", "differs": differs} for i, differs in enumerate(plan.differs)]
    facts = {"warnings": plan.warnings, "plan": as_json(plan.plans[0].planned.plan), "members": members}
    return _show_jobs(args, requests, plan.first, facts)


def _show_jobs(args: argparse.Namespace, requests: list[JobRequest], config: RunConfig, facts: dict[str, Any]) -> int:
    """Prints the commands of a submission and the variables that the jobs get.

    Args:
        facts: warnings, plan and members, as the JSON document has them.
    """
    commands = [(request, sbatch_argv(config, request), request.script.read_text("utf-8")) for request in requests]
    if args.json:
        jobs = [
            {"stage": request.stage, "argv": argv, "script": str(request.script), "script_text": text}
            for request, argv, text in commands
        ]
        document = {"dry_run": True, "jobs": jobs, "environment": requests[0].variables, **facts}
        print(json.dumps(document, indent=2))
        return ExitCode.DONE
    for warning in facts["warnings"]:
        print(f"warning   {warning}")
    for request, argv, text in commands:
        print(f"{request.stage:<9} {shlex.join(argv)}")
        print(f"script    {request.script}")
        if args.verbose:
            print("\n".join(f"    {line}" for line in text.splitlines()))
    print(f"variables {' '.join(requests[0].variables)}")
    print("dry run: nothing was created or queued")
    return ExitCode.DONE


def _show_plan(planned: PlannedRun, *, verbose: bool) -> None:
    if verbose:
        print_plan(planned.plan, planned.config, width=120)
    else:
        print(summary(planned.plan))


def _audit(planned: PlannedRun) -> list[str]:
    unaudited = [f"the audit has not run on all of the data: {planned.unaudited}"] if planned.unaudited else []
    return [*(in_short(finding) for finding in planned.findings if not finding.blocks), *unaudited]
