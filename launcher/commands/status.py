"""launcher status: all runs in a table, a sweep as a grid, or one run on a page."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console, RenderableType
from rich.live import Live

from launcher.commands.status_page import further_facts, page
from launcher.commands.status_table import best_member, goodput_share, grid, table
from launcher.errors import ExitCode
from launcher.runs.run_dir import all_runs, find_run
from launcher.runs.states import RunState
from launcher.slurm.client.job_status import Jobs, find_sweep, live_state, live_states, members_of
from launcher.slurm.client.sweep import read_sweep


def run(args: argparse.Namespace) -> int:
    jobs = Jobs()
    if args.json:
        print(json.dumps(_document(_look(args, jobs)), indent=2))
    elif args.watch:
        _watch(args, jobs)
    else:
        _print(_look(args, jobs))
    return ExitCode.DONE


@dataclass(frozen=True, slots=True)
class _Seen:
    """What is shown: one run (`single`), the members of a sweep, or all runs of a folder."""

    states: list[RunState]
    folders: list[Path]
    jobs: Jobs
    single: bool = False
    sweep: Path | None = None
    runs_dir: str = "runs"

    @property
    def over(self) -> bool:
        return (self.single or self.sweep is not None) and all(state.over for state in self.states)


def _look(args: argparse.Namespace, jobs: Jobs) -> _Seen:
    if args.run is None:
        folders = all_runs(args.runs_dir)
        return _Seen(live_states(folders, jobs), folders, jobs, runs_dir=args.runs_dir)
    sweep = find_sweep(args.run, args.runs_dir)
    if sweep is not None:
        folders = members_of(sweep)
        return _Seen(live_states(folders, jobs), folders, jobs, sweep=sweep)
    folder = find_run(args.run, args.runs_dir)
    return _Seen([live_state(folder, jobs)], [folder], jobs, single=True)


def _document(seen: _Seen) -> object:
    """One object for a run, a list for all; a sweep is an object with its members."""
    if seen.single:
        return {**seen.states[0].as_dict(), **further_facts(seen.folders[0], seen.jobs)}
    rows = [
        {**state.as_dict(), "goodput": goodput_share(folder)}
        for state, folder in zip(seen.states, seen.folders, strict=True)
    ]
    if seen.sweep is None:
        return rows
    sweep = read_sweep(seen.sweep)
    best = best_member(seen.states)
    differs = {str(seen.sweep / member.run): member.differs for member in sweep.members} if sweep else {}
    members = [{**row, "differs": differs.get(str(row["path"]), {})} for row in rows]
    return {"sweep": seen.sweep.name, "best": best.name if best else None, "members": members}


def _view(seen: _Seen, width: int) -> RenderableType:
    if seen.single:
        return page(seen.states[0], seen.folders[0], seen.jobs)
    if seen.sweep is not None:
        return grid(seen.sweep, seen.states, width, seen.jobs.not_asked)
    return table(seen.states, seen.folders, width, seen.jobs.not_asked)


def _watch(args: argparse.Namespace, jobs: Jobs) -> None:
    """On a terminal the view is replaced; elsewhere it is printed again, under the time, whenever it has changed."""
    console = Console(highlight=False)
    try:
        if not console.is_terminal:
            _print_changes(args, jobs)
            return
        with Live(console=console, auto_refresh=False, screen=False) as live:
            while True:
                seen = _look(args, jobs)
                live.update(_view(seen, console.width), refresh=True)
                if seen.over:
                    return
                time.sleep(args.interval)
    except KeyboardInterrupt:
        return  # it is how one stops watching


def _print_changes(args: argparse.Namespace, jobs: Jobs) -> None:
    before: list[RunState] = []
    while True:
        seen = _look(args, jobs)
        if seen.states != before or not before:
            print(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} ---")
            _print(seen)
            sys.stdout.flush()
        before = seen.states
        if seen.over:
            return
        time.sleep(args.interval)


def _print(seen: _Seen) -> None:
    if not seen.states:
        print(f"no runs in {Path(seen.runs_dir)}/ yet; launcher train experiment=quickstart makes one")
        return
    console: Console = Console(highlight=False)
    if console.is_terminal:
        console.print(_view(seen, console.width))
        return
    console.width = 240  # lines for programs and logs are never folded
    with console.capture() as captured:
        console.print(_view(seen, console.width))
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))
