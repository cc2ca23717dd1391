"""launcher cancel: stops a run, or all runs of a sweep, for good; they save first unless told otherwise."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from launcher.checkpoint.commit import committed, verify
from launcher.errors import ExitCode, RunError, SlurmUnavailable
from launcher.local.cancel import stop_local
from launcher.paths import RunPaths
from launcher.runs.run_dir import find_run
from launcher.runs.states import RunState
from launcher.runs.status import FINAL_STATES
from launcher.slurm.client.job_status import find_sweep, is_submitted, live_state, live_states, members_of
from launcher.slurm.client.query import Slurm
from launcher.slurm.submit.cancel import jobs_to_stop, stop_runs

QUALITY = (
    "The quality of a cancelled model is not known: it was trained on part of what was planned. "
    "To stop earlier on purpose, start a new run with fewer epochs."
)


def run(args: argparse.Namespace) -> int:
    sweep = find_sweep(args.run, args.runs_dir)
    if sweep is not None:
        return _cancel_sweep(sweep, args)
    run_dir = find_run(args.run, args.runs_dir)
    before = live_state(run_dir)
    slurm = bool(before.job_id) or is_submitted(run_dir)
    if not slurm:
        _refuse(before)
    elif not args.dry_run:
        _stop_jobs([run_dir], [before], args)
    if not slurm and not args.dry_run:
        stop_local(run_dir, now=args.now, wait_s=args.wait)
    after = live_state(run_dir)
    good_step = _last_good_step(run_dir)
    if args.json:
        print(json.dumps(_document(after, good_step, dry_run=args.dry_run), indent=2))
    else:
        _tell(after, good_step, dry_run=args.dry_run)
    return ExitCode.DONE


def _refuse(before: RunState) -> None:
    if before.state in FINAL_STATES and not before.alive:
        raise RunError(f"{before.name} is not running: it {_past(before.state)}. There is nothing to cancel")
    if before.alive is None:
        raise RunError(f"{before.name} was last seen on another machine; cancel it there")


def _past(state: str) -> str:
    return "was cancelled" if state == "cancelled" else state


def _stop_jobs(run_dirs: list[Path], before: list[RunState], args: argparse.Namespace) -> None:
    """Ends their jobs; says what cannot be done where Slurm does not answer.

    Raises: RunError if they have ended already.
    """
    slurm = Slurm()
    try:
        if all(state.state in FINAL_STATES for state in before) and not jobs_to_stop(run_dirs, slurm):
            if len(before) == 1:
                _refuse(before[0])
            raise RunError(f"all {len(before)} runs have ended already. There is nothing to cancel")
        stop_runs(run_dirs, now=args.now, wait_s=args.wait, slurm=slurm)
    except SlurmUnavailable as error:
        job = f" (job {before[0].job_id})" if before[0].job_id else ""
        raise type(error)(
            f"Slurm runs {before[0].name}{job} and does not answer here: {error}. "
            "Try again, or on a machine of that cluster"
        ) from error


def _cancel_sweep(sweep: Path, args: argparse.Namespace) -> int:
    run_dirs = members_of(sweep)
    before = live_states(run_dirs)
    if not args.dry_run:
        _stop_jobs(run_dirs, before, args)
    after = before if args.dry_run else live_states(run_dirs)
    good = [_last_good_step(run_dir) for run_dir in run_dirs]
    if args.json:
        documents = [_document(state, step, dry_run=args.dry_run) for state, step in zip(after, good, strict=True)]
        print(json.dumps({"sweep": sweep.name, "members": documents}, indent=2))
        return ExitCode.DONE
    for state, step in zip(after, good, strict=True):
        would = "would stop " if args.dry_run and not state.over else ""
        kept = "no checkpoint" if step is None else f"last good checkpoint is step {step}"
        print(f"{would}{state.name}: {state.state} {_progress(state)}, {kept}")
    if not args.dry_run and any(step is not None for step in good):
        print(QUALITY)
    return ExitCode.DONE


def _last_good_step(run_dir: Path) -> int | None:
    """Step of the newest checkpoint whose every byte is as written."""
    return next((found.step for found in committed(RunPaths(run_dir)) if not verify(found)), None)


def _document(state: RunState, good_step: int | None, *, dry_run: bool) -> dict[str, object]:
    return {**state.as_dict(), "dry_run": dry_run, "last_good_checkpoint_step": good_step, "note": QUALITY}


def _progress(state: RunState) -> str:
    return f"at step {state.step} of {state.of}" if state.of else "before its first step"


def _tell(state: RunState, good_step: int | None, *, dry_run: bool) -> None:
    job = f", job {state.job_id}" if state.job_id else ""
    if dry_run:
        what = "nothing to stop:" if state.over else "would stop"
        print(f"{what} {state.name} ({state.state}{job}, {_progress(state).removeprefix('at ')})")
        return
    print(f"{state.name}: {state.state} {_progress(state)}")
    if state.state == "succeeded":
        return
    if good_step is None and state.of:
        print("There is no checkpoint; nothing of this run can be used.")
    elif good_step is not None:
        print(f"The last good checkpoint is step {good_step}. {QUALITY}")
        print(f"  use it as it is   launcher export {state.name} --to DIR")
    print(f"  go on after all   {state.hint or f'launcher resume {state.name}'}")
