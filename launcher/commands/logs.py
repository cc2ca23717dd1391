"""launcher logs: what the ranks and the job of a run wrote, merged by time, as it is written with -f."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from launcher.errors import ExitCode, RunError
from launcher.runs.rank_logs import JOB, LogLine, RankLog, find_logs, merge
from launcher.runs.run_dir import find_run, last_attempt
from launcher.runs.states import RunState
from launcher.runs.status import FINAL_STATES
from launcher.slurm.client.job_status import Jobs, live_state

_POLL_S = 0.5
# The record is read at every poll, but only a word from Slurm says that a job has gone; it is asked this often.
_ASK_SLURM_S = 5.0


def run(args: argparse.Namespace) -> int:
    run_dir = find_run(args.run, args.runs_dir)
    if args.follow and not args.json:
        _Follower(run_dir, args).follow()
        return ExitCode.DONE
    newest = last_attempt(run_dir)
    logs = _wanted(run_dir, args, newest, only=True)
    if args.json:
        document = [
            {
                "attempt": log.attempt,
                "rank": "job" if log.rank == JOB else log.rank,
                "lines": [line.text for line in log.new_lines(args.lines)],
            }
            for log in logs
        ]
        print(json.dumps(document, indent=2))
    elif not logs:
        raise RunError(_nothing(run_dir, args.attempt, args.rank))
    else:
        _Screen(prefix=len({log.rank for log in logs}) > 1, attempts=args.attempt == 0).show(
            merge(log.new_lines(args.lines) for log in logs)
        )
    return ExitCode.DONE


def _wanted(run_dir: Path, args: argparse.Namespace, newest: int, *, only: bool) -> list[RankLog]:
    """Logs of the attempts asked for: all, the one named, or the newest (and with `only` false those after it)."""
    first = newest if args.attempt is None else args.attempt
    logs = find_logs(run_dir, rank=args.rank)
    if first == 0 and args.attempt is not None:
        return logs
    last = first if only or args.attempt is not None else sys.maxsize
    return [log for log in logs if first <= log.attempt <= last]


def _nothing(run_dir: Path, attempt: int | None, rank: int | None) -> str:
    every = find_logs(run_dir)
    if not every:
        return (
            f"{run_dir.name} has no logs yet; launcher train and the jobs of launcher submit write them, "
            "other starters (torchrun, srun by hand) keep their own"
        )
    attempts, ranks = sorted({log.attempt for log in every}), sorted({log.rank for log in every} - {JOB})
    which = "the newest attempt" if attempt is None else f"attempt {attempt}"
    whose = "" if rank is None else f", rank {rank}"
    return f"{run_dir.name} has no log of {which}{whose}; there are attempts {attempts} and ranks {ranks}"


class _Screen:
    """Prints merged lines: which rank wrote each, and where another attempt begins."""

    def __init__(self, *, prefix: bool, attempts: bool) -> None:
        self.prefix = prefix
        self._attempts = attempts
        self._shown = 0

    def show(self, lines: list[LogLine]) -> None:
        for line in lines:
            if line.attempt != self._shown and (self._attempts or self._shown):
                print(f"--- attempt {line.attempt} ---")
            self._shown = line.attempt
            mark = "" if not self.prefix else "[job] " if line.rank == JOB else f"[{line.rank}] "
            print(mark + line.text)


class _Follower:
    """Shows lines as they are written, until the run is over; says on stderr what it waits for."""

    def __init__(self, run_dir: Path, args: argparse.Namespace) -> None:
        self._run_dir = run_dir
        self._args = args
        self._first = last_attempt(run_dir)
        self._jobs: Jobs = Jobs(fresh_s=_ASK_SLURM_S)
        self._logs: dict[Path, RankLog] = {}
        self._screen = _Screen(prefix=False, attempts=args.attempt == 0)
        self._said = ""

    def follow(self) -> None:
        last = self._args.lines
        while True:
            # Asked first: what was written before the end is then shown for certain.
            state = live_state(self._run_dir, self._jobs)
            self._show_new(last)
            last = None
            if self._is_over(state):
                break
            self._say(_waiting(state))
            time.sleep(_POLL_S)
        print(_ending(state), file=sys.stderr)

    def _show_new(self, last: int | None) -> None:
        for log in _wanted(self._run_dir, self._args, self._first, only=False):
            self._logs.setdefault(log.path, log)
        self._screen.prefix = len({log.rank for log in self._logs.values()}) > 1
        self._screen.show(merge(log.new_lines(last) for log in self._logs.values()))
        sys.stdout.flush()

    def _is_over(self, state: RunState) -> bool:
        if state.not_asked:
            return state.state in FINAL_STATES
        past = self._args.attempt not in (None, 0) and last_attempt(self._run_dir) > self._args.attempt
        return state.over or past

    def _say(self, text: str) -> None:
        """Once, until there is something else to say."""
        if text and text != self._said:
            print(text, file=sys.stderr, flush=True)
        self._said = text


def _waiting(state: RunState) -> str:
    if state.not_asked:
        return f"{state.name}: Slurm cannot be asked ({state.not_asked}); following what the run itself writes"
    if not state.queue_reason and not state.requeued and state.state != "queued":
        return ""
    why = f": {state.queue_why}" if state.queue_why else ""
    where = f"job {state.job_id} " if state.job_id else ""
    return f"{state.name}: {where}waits in the queue{why}"


def _ending(state: RunState) -> str:
    if state.preempted:
        return f"{state.name}: stopped and saved at step {state.step} of {state.of}; go on with {state.hint}"
    reason = f": {state.reason}" if state.reason else ""
    step = f" at step {state.step} of {state.of}" if state.of else ""
    return f"{state.name}: {state.state}{step}{reason}"
