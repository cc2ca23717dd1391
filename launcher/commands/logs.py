"""launcher logs: the logs of the ranks and the job of a run, merged by time; -f follows them."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Collection
from pathlib import Path

from launcher.errors import ExitCode, RunError
from launcher.runs.rank_logs import JOB, RankLog, find_logs, merge
from launcher.runs.run_dir import find_run, last_attempt
from launcher.runs.states import RunState
from launcher.runs.status import FINAL_STATES
from launcher.slurm.client.job_status import Jobs, live_state

_POLL_S = 0.5
# The record is read at every poll; Slurm, which alone knows that a job is gone, is asked less often.
_ASK_SLURM_S = 5.0


def run(args: argparse.Namespace) -> int:
    run_dir = find_run(args.run, args.runs_dir)
    if args.follow and not args.json:
        _follow(run_dir, args)
        return ExitCode.DONE
    logs = _wanted(run_dir, args, last_attempt(run_dir))
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
        _Screen(mark_attempts=args.attempt == 0).show(logs, args.lines)
    return ExitCode.DONE


def _wanted(run_dir: Path, args: argparse.Namespace, newest: int) -> list[RankLog]:
    """Logs of the attempts asked for: all, the one named, or the newest and those that began since."""
    logs = find_logs(run_dir, rank=args.rank)
    if args.attempt is None:
        return [log for log in logs if log.attempt >= newest]
    return [log for log in logs if args.attempt in (0, log.attempt)]


def _nothing(run_dir: Path, attempt: int | None, rank: int | None) -> str:
    every = find_logs(run_dir)
    if not every:
        return (
            f"{run_dir.name} has no logs yet; launcher train and launcher submit write them, other starters (torchrun, "
            "srun by hand) keep their own"
        )
    attempts, ranks = sorted({log.attempt for log in every}), sorted({log.rank for log in every} - {JOB})
    which = "the newest attempt" if attempt is None else f"attempt {attempt}"
    whose = "" if rank is None else f", rank {rank}"
    return f"{run_dir.name} has no log of {which}{whose}; there are attempts {attempts} and ranks {ranks}"


class _Screen:
    """Prints merged lines: which rank wrote each, and where another attempt begins."""

    def __init__(self, *, mark_attempts: bool) -> None:
        self._mark_attempts = mark_attempts
        self._attempt = 0

    def show(self, logs: Collection[RankLog], last: int | None) -> None:
        """New lines of all logs; of each at most the `last` ones."""
        has_prefix = len({log.rank for log in logs}) > 1
        for line in merge(log.new_lines(last) for log in logs):
            if line.attempt != self._attempt and (self._mark_attempts or self._attempt):
                print(f"--- attempt {line.attempt} ---")
            self._attempt = line.attempt
            prefix = "" if not has_prefix else "[job] " if line.rank == JOB else f"[{line.rank}] "
            print(prefix + line.text)
        sys.stdout.flush()


def _follow(run_dir: Path, args: argparse.Namespace) -> None:
    """Shows lines as they are written, until the run is over; says on stderr what it waits for."""
    first, jobs, screen = last_attempt(run_dir), Jobs(fresh_s=_ASK_SLURM_S), _Screen(mark_attempts=args.attempt == 0)
    logs: dict[Path, RankLog] = {}
    last, said = args.lines, ""
    while True:
        # Asked before the logs are read, so that everything written before the end is shown.
        state = live_state(run_dir, jobs)
        for log in _wanted(run_dir, args, first):
            logs.setdefault(log.path, log)
        screen.show(logs.values(), last)
        if _is_over(run_dir, state, args.attempt):
            print(_ending(state), file=sys.stderr)
            return
        waiting = _waiting(state)
        if waiting and waiting != said:
            print(waiting, file=sys.stderr, flush=True)
        last, said = None, waiting
        time.sleep(_POLL_S)


def _is_over(run_dir: Path, state: RunState, attempt: int | None) -> bool:
    if state.not_asked:
        return state.state in FINAL_STATES
    return state.over or (attempt not in (None, 0) and last_attempt(run_dir) > (attempt or 0))


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
