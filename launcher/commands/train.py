"""launcher train: a new run here and now, or the next attempt of one that is there."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from launcher.commands.plan_view import in_short, print_plan, summary
from launcher.commands.submit import submit_again
from launcher.errors import ExitCode, UserError
from launcher.files import as_json
from launcher.local.multi_host import join
from launcher.plan.create import create_planned, plan_overrides
from launcher.plan.run_plan import PlannedRun
from launcher.runs.run_dir import find_run
from launcher.runs.scheduler import Scheduler
from launcher.runs.states import RunState, run_state
from launcher.schedulers import scheduler_for, scheduler_here


def run(args: argparse.Namespace) -> int:
    if args.join is not None:
        return _join(args)
    if args.run is None:
        return _new(args)
    if args.overrides:
        raise UserError(
            f"settings of a run are frozen when it is created and cannot be changed by {' '.join(args.overrides)}; "
            "start a new run for other settings"
        )
    return continue_run(args, remote=args.ssh)


def _new(args: argparse.Namespace) -> int:
    planned = plan_overrides(args.overrides, conf_dir=args.conf_dir)
    if args.dry_run:
        if args.json:
            print(json.dumps({"dry_run": True, "plan": as_json(planned.plan)}, indent=2))
        else:
            print_plan(planned.plan, planned.config)
            print("\n".join([*_warnings(planned), "dry run: nothing was created or started"]))
        return ExitCode.DONE
    run_dir = create_planned(planned)
    if not args.json:
        print("\n".join([summary(planned.plan), *_warnings(planned)]))
        print(f"run directory: {run_dir}", flush=True)
    return _start(scheduler_here(run_dir, remote=args.ssh), run_dir, as_json=args.json)


def _join(args: argparse.Namespace) -> int:
    """This machine's part of a run that the first one of cluster.hosts starts."""
    if args.run is not None or args.overrides or args.ssh or args.dry_run:
        raise UserError("--join RUN goes alone: settings, --run, --ssh and --dry-run are for the first machine")
    run_dir = find_run(args.join, args.runs_dir)
    state = run_state(run_dir)
    if state.state == "succeeded":
        return _tell(state, ExitCode.DONE, as_json=args.json, note="it has finished; there is nothing left to do")
    code = join(run_dir)
    return _tell(run_state(run_dir), code, as_json=args.json)


def _warnings(planned: PlannedRun) -> list[str]:
    """What plan and audit find odd but do not refuse, such as dropped or truncated examples."""
    return [f"warning  {text}" for text in [*planned.plan.warnings, *map(in_short, planned.findings)]]


def continue_run(args: argparse.Namespace, *, remote: bool = False) -> int:
    """The next attempt of a run; nothing for one that has finished. Also `launcher resume`.

    A run for Slurm goes into the queue again; inside a job it starts here, unless a job of its own has it.

    Raises: RunError if there is no such run, or it is already running, or its job is still in the queue.
    """
    run_dir = find_run(args.run, args.runs_dir)
    scheduler = scheduler_for(run_dir, remote=remote)
    if scheduler.context() is None:
        return submit_again(argparse.Namespace(**vars(args), verbose=False))
    state = run_state(run_dir)
    if state.state == "succeeded":
        return _tell(state, ExitCode.DONE, as_json=args.json, note="it has finished; there is nothing left to do")
    if args.dry_run:
        start = "the beginning" if state.last_checkpoint_step is None else f"step {state.last_checkpoint_step}"
        return _tell(state, ExitCode.DONE, as_json=args.json, note=f"dry run: it would go on from {start}")
    return _start(scheduler, run_dir, as_json=args.json)


def _start(scheduler: Scheduler, run_dir: Path, *, as_json: bool) -> int:
    code = scheduler.submit(run_dir).exit_code or ExitCode.DONE
    return _tell(run_state(run_dir), code, as_json=as_json)


def _tell(state: RunState, code: int, *, as_json: bool, note: str = "") -> int:
    if as_json:
        print(json.dumps({**state.as_dict(), "train_exit_code": code, "note": note}, indent=2))
        return code
    lines = [f"{state.name}: {note or _ending(state)}", f"  everything of it lies in  {state.path}"]
    if state.state == "succeeded":
        lines += [
            f"  measure it                launcher eval {state.name}",
            f"  curves and settings       launcher report {state.name}",
            f"  ask it something          launcher generate {state.name} 'PROMPT'",
        ]
    elif state.hint:
        lines.append(f"  go on                     {state.hint}")
    print("\n".join(lines))
    return code


def _ending(state: RunState) -> str:
    if state.preempted:
        return f"stopped and saved at step {state.step} of {state.of}"
    reason = f": {state.reason}" if state.reason else ""
    return f"{state.state} at step {state.step} of {state.of}{reason}"
