"""launcher cancel: stops a run, or all runs of a sweep, for good; without --now they save first."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from launcher.checkpoint.commit import committed, verify
from launcher.errors import ExitCode
from launcher.paths import RunPaths
from launcher.runs.run_dir import find_run
from launcher.runs.states import RunState
from launcher.schedulers import scheduler_of
from launcher.slurm.client.job_status import find_sweep, members_of

QUALITY = (
    "The quality of a cancelled model is not known: it was trained on part of what was planned. "
    "To stop earlier on purpose, start a new run with fewer epochs."
)


def run(args: argparse.Namespace) -> int:
    sweep = find_sweep(args.run, args.runs_dir)
    run_dirs = [find_run(args.run, args.runs_dir)] if sweep is None else members_of(sweep)
    scheduler = scheduler_of(*run_dirs)
    scheduler.cancel(run_dirs, now=args.now, wait_s=args.wait, dry_run=args.dry_run)
    ended = [(state, _last_good_step(Path(state.path))) for state in scheduler.query(run_dirs)]
    documents = [_document(state, step, dry_run=args.dry_run) for state, step in ended]
    if args.json:
        print(json.dumps(documents[0] if sweep is None else {"sweep": sweep.name, "members": documents}, indent=2))
    elif sweep is None:
        _tell(*ended[0], dry_run=args.dry_run)
    else:
        _tell_sweep(ended, dry_run=args.dry_run)
    return ExitCode.DONE


def _tell_sweep(ended: list[tuple[RunState, int | None]], *, dry_run: bool) -> None:
    for state, step in ended:
        would = "would stop " if dry_run and not state.over else ""
        kept = "no checkpoint" if step is None else f"last good checkpoint is step {step}"
        print(f"{would}{state.name}: {state.state} {_progress(state)}, {kept}")
    if not dry_run and any(step is not None for _, step in ended):
        print(QUALITY)


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
