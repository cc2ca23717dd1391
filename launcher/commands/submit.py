"""launcher submit: checks a run, makes its directory, and puts it into Slurm's queue; returns at once."""

from __future__ import annotations

import argparse
import json
import os
import shlex
from contextlib import nullcontext
from pathlib import Path

from rich.console import Console

from launcher.commands.plan_view import in_short, print_plan
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
from launcher.slurm.submit.dry_run import NO_KEY, chained, preview, preview_folder, requests_again, variables_of
from launcher.slurm.submit.scheduler import SlurmScheduler
from launcher.slurm.submit.submit import (
    SubmitPlan,
    check_again,
    check_stages,
    plan_submission,
    submit_new,
)
from launcher.slurm.submit.sweep_submit import SweepPlan, plan_sweep, submit_sweep, sweep_requests


def run(args: argparse.Namespace) -> int:
    stages = tuple(args.stages.split(","))
    if args.throttle < 0:
        raise UserError(f"--throttle {args.throttle}: give 1 or more, or leave it out for no limit")
    if args.run is not None:
        return _again(args, stages)
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
    submitted = submit_new(plan, slurm, os.environ)
    submitted.warnings.extend(_audit(plan.planned))
    if args.json:
        print(json.dumps({**_queued_document(submitted), "plan": as_json(plan.planned.plan)}, indent=2))
    else:
        print(_plan_summary(plan.planned))
        _tell_queued(submitted)
    return ExitCode.DONE


def _again(args: argparse.Namespace, stages: tuple[str, ...]) -> int:
    if args.overrides or args.sweep:
        raise UserError("settings of a run are frozen when it is created; start a new run for other settings")
    _refuse_throttle(args)
    return submit_again(
        args.run, stages=stages, runs_dir=args.runs_dir, dry_run=args.dry_run, as_json=args.json, verbose=args.verbose
    )


def submit_again(
    name: str,
    *,
    stages: tuple[str, ...] = ("train",),
    runs_dir: str = "runs",
    dry_run: bool = False,
    as_json: bool = False,
    verbose: bool = False,
) -> int:
    """Queues the next attempt of a run that is there; nothing for one that has finished. Also `launcher resume`.

    Raises:
        RunError: there is no such run, or a job of it waits or runs. UserError: it is not for Slurm, or Slurm refused.
    """
    run_dir = find_run(name, runs_dir)
    if stages == ("train",) and run_state(run_dir).state == "succeeded":
        note = "it has finished; there is nothing left to do"
        document = {"run_dir": str(run_dir), "name": run_name(run_dir), "jobs": [], "note": note}
        print(json.dumps(document, indent=2) if as_json else f"{run_name(run_dir)}: {note}")
        return ExitCode.DONE
    if dry_run:
        again = check_again(run_dir, Slurm(), stages, dry_run=True)
        requests = requests_again(again, os.environ)
        _show_jobs(requests, again.config, as_json=as_json, verbose=verbose, warnings=again.warnings)
        return ExitCode.DONE
    submitted = SlurmScheduler(stages=stages).submit(run_dir)
    if as_json:
        print(json.dumps(_queued_document(submitted), indent=2))
    else:
        _tell_queued(submitted)
    return ExitCode.DONE


def _sweep(args: argparse.Namespace, members: list[list[str]], stages: tuple[str, ...]) -> int:
    if stages != ("train",):
        raise UserError(f"--stages {args.stages}: the members of a sweep are only trained; leave it out")
    slurm = Slurm()
    plan = plan_sweep(members, slurm, conf_dir=args.conf_dir, throttle=args.throttle, dry_run=args.dry_run)
    if args.dry_run:
        return _show_sweep_dry_run(args, plan)
    folder, sweep, jobs = submit_sweep(plan, slurm, os.environ)
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


def _queued_document(queued: Submitted) -> dict[str, object]:
    main = next((job for job in queued.jobs if job.stage == "train"), queued.jobs[-1])
    return {
        "run_dir": str(queued.run_dir),
        "name": run_name(queued.run_dir),
        "job_id": main.job_id,
        "jobs": _job_documents(queued.jobs),
        "estimate_start": utc_text(queued.estimate_start) if queued.estimate_start is not None else None,
        "warnings": queued.warnings,
    }


def _job_documents(jobs: list[StageJob]) -> list[dict[str, object]]:
    return [{"stage": job.stage, "job_id": job.job_id, "dependency": job.dependency, "argv": job.argv} for job in jobs]


def _tell_queued(queued: Submitted) -> None:
    name = run_name(queued.run_dir)
    lines = [f"warning  {text}" for text in queued.warnings]
    for job in queued.jobs:
        after = f", after job {job.dependency}" if job.dependency else ""
        lines.append(f"{name}: {job.stage} is job {job.job_id}{after}")
    start = queued.estimate_start
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
    requests = preview(config, plan.stages, os.environ)
    warnings = [*plan.warnings, *_audit(plan.planned)]
    if not args.json:
        _show_plan(plan.planned, verbose=args.verbose)
    _show_jobs(
        requests, config, as_json=args.json, verbose=args.verbose, warnings=warnings, plan=as_json(plan.planned.plan)
    )
    return ExitCode.DONE


def _show_sweep_dry_run(args: argparse.Namespace, plan: SweepPlan) -> int:
    folder = preview_folder(plan.first)
    requests = chained(sweep_requests(plan, folder, NO_KEY, variables_of(plan.first, os.environ)))
    runs: list[dict[str, object]] = [
        {"run": f"{folder.name}/{i:02d}", "differs": differs} for i, differs in enumerate(plan.differs)
    ]
    if not args.json:
        _show_plan(plan.plans[0].planned, verbose=args.verbose)
        for one in plan.differs:
            print("member    " + " ".join(f"{key}={value}" for key, value in one.items()))
    plan_fields = as_json(plan.plans[0].planned.plan)
    _show_jobs(
        requests,
        plan.first,
        as_json=args.json,
        verbose=args.verbose,
        warnings=plan.warnings,
        plan=plan_fields,
        runs=runs,
    )
    return ExitCode.DONE


def _show_jobs(
    requests: list[JobRequest],
    config: RunConfig,
    *,
    as_json: bool,
    verbose: bool,
    warnings: list[str],
    plan: dict[str, object] | None = None,
    runs: list[dict[str, object]] | None = None,
) -> None:
    """The commands a submission would run, word by word, and what the jobs would see."""
    commands = [(request, sbatch_argv(config, request)) for request in requests]
    if as_json:
        jobs = [
            {
                "stage": request.stage,
                "argv": argv,
                "script": str(request.script),
                "script_text": request.script.read_text(encoding="utf-8"),
            }
            for request, argv in commands
        ]
        document: dict[str, object] = {"dry_run": True, "jobs": jobs, "environment": requests[0].variables}
        document |= {"warnings": warnings} | ({"plan": plan} if plan else {}) | ({"members": runs} if runs else {})
        print(json.dumps(document, indent=2))
        return
    for warning in warnings:
        print(f"warning   {warning}")
    for request, argv in commands:
        print(f"{request.stage:<9} {shlex.join(argv)}")
        print(f"script    {request.script}")
        if verbose:
            print("\n".join(f"    {line}" for line in request.script.read_text(encoding="utf-8").splitlines()))
    print(f"variables {' '.join(requests[0].variables)}")
    print("dry run: nothing was created or queued")


def _show_plan(planned: PlannedRun, *, verbose: bool) -> None:
    if not verbose:
        print(_plan_summary(planned))
        return

    print_plan(Console(highlight=False, width=120), planned.plan, planned.config)


def _plan_summary(planned: PlannedRun) -> str:
    plan, data, batch = planned.plan, planned.plan.data, planned.plan.batch
    about = "about " if data.is_estimate else ""
    ranks = f"{batch.world_size} rank{'s' if batch.world_size > 1 else ''} on {batch.device}"
    product = f"{batch.world_size} x {batch.micro_sequences} x {batch.grad_accum_steps}"
    return (
        f"{plan.model}: {plan.method}, {plan.strategy}, {plan.precision}, {ranks}\n"
        f"{about}{data.examples:,} examples, {data.tokens:,} tokens an epoch; {about}{batch.total_steps:,} steps of "
        f"{batch.global_sequences} sequences = {product} (ranks x micro-batch x accumulation), "
        f"peak learning rate {batch.peak_lr:.2g}"
    )


def _audit(planned: PlannedRun) -> list[str]:
    unaudited = [f"the audit has not run on all of the data: {planned.unaudited}"] if planned.unaudited else []
    return [*(in_short(finding) for finding in planned.findings if not finding.blocks), *unaudited]
