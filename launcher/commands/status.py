"""launcher status: all runs in a table, a sweep as a grid, or one run on a page."""

from __future__ import annotations

import argparse
import json
import sys
import time
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console, RenderableType
from rich.live import Live

from launcher.commands.console import print_trimmed
from launcher.commands.status_page import further_facts, page
from launcher.commands.status_table import best_member, grid, table
from launcher.errors import ExitCode
from launcher.report.goodput import run_goodput
from launcher.runs.run_dir import all_runs, find_run
from launcher.runs.states import RunState
from launcher.slurm.client.job_status import Jobs, find_sweep, live_state, live_states, members_of
from launcher.slurm.client.sweep import read_sweep


def run(args: argparse.Namespace) -> int:
    jobs = Jobs()
    if args.json:
        print(json.dumps(_document(_select(args, jobs)), indent=2))
    elif args.watch:
        _watch(args, jobs)
    else:
        _print(_select(args, jobs))
    return ExitCode.DONE


@dataclass(frozen=True, slots=True)
class _Selection:
    """The runs to show: one (`single`), the members of a sweep, or all of a folder."""

    states: list[RunState]
    jobs: Jobs
    single: bool = False
    sweep: Path | None = None
    runs_dir: str = "runs"

    @property
    def over(self) -> bool:
        return (self.single or self.sweep is not None) and all(state.over for state in self.states)


def _select(args: argparse.Namespace, jobs: Jobs) -> _Selection:
    if args.run is None:
        return _Selection(live_states(all_runs(args.runs_dir), jobs), jobs, runs_dir=args.runs_dir)
    sweep = find_sweep(args.run, args.runs_dir)
    if sweep is not None:
        return _Selection(live_states(members_of(sweep), jobs), jobs, sweep=sweep)
    return _Selection([live_state(find_run(args.run, args.runs_dir), jobs)], jobs, single=True)


def _document(shown: _Selection) -> object:
    """One object for a run, a list for all; a sweep is an object with its members."""
    if shown.single:
        return {**shown.states[0].as_dict(), **further_facts(shown.states[0], shown.jobs)}
    rows = [{**state.as_dict(), "goodput": run_goodput(Path(state.path)).useful_share} for state in shown.states]
    if shown.sweep is None:
        return rows
    sweep = read_sweep(shown.sweep)
    best = best_member(shown.states)
    differs = {str(shown.sweep / member.run): member.differs for member in sweep.members} if sweep else {}
    members = [{**row, "differs": differs.get(str(row["path"]), {})} for row in rows]
    return {"sweep": shown.sweep.name, "best": best.name if best else None, "members": members}


def _view(shown: _Selection, width: int) -> RenderableType:
    if shown.single:
        return page(shown.states[0], shown.jobs)
    if shown.sweep is not None:
        return grid(shown.sweep, shown.states, width, shown.jobs.not_asked)
    return table(shown.states, width, shown.jobs.not_asked)


def _watch(args: argparse.Namespace, jobs: Jobs) -> None:
    """On a terminal the view is replaced; elsewhere it is printed again, under the time, whenever it has changed."""
    console = Console(highlight=False)
    before: list[RunState] | None = None
    live = Live(console=console, auto_refresh=False) if console.is_terminal else None
    with suppress(KeyboardInterrupt), live or nullcontext():
        while True:
            shown = _select(args, jobs)
            if live is not None:
                live.update(_view(shown, console.width), refresh=True)
            elif shown.states != before:
                print(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} ---")
                _print(shown)
                sys.stdout.flush()
            before = shown.states
            if shown.over:
                return
            time.sleep(args.interval)


def _print(shown: _Selection) -> None:
    if not shown.states:
        print(f"no runs in {Path(shown.runs_dir)}/ yet; launcher train experiment=quickstart makes one")
        return
    console = Console(highlight=False)
    if console.is_terminal:
        console.print(_view(shown, console.width))
    else:
        console.width = 240  # lines for programs and logs are never folded
        print_trimmed(console, _view(shown, console.width))
