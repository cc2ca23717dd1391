"""Runs without a queue: an attempt runs to its end inside the command that starts it."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from launcher.errors import RunError
from launcher.local.multi_host import check_leader, lead
from launcher.local.ranks import run_local, startable
from launcher.paths import RunPaths
from launcher.runs.attempts import AttemptRecord
from launcher.runs.run_dir import last_attempt, lock_run, new_attempt
from launcher.runs.scheduler import Requeued, Submitted, refuse_ended
from launcher.runs.states import RunState, StarterProcess, is_alive, run_process, run_state
from launcher.runs.status import FINAL_STATES, read_status, set_state

_POLL_S = 0.2


class LocalScheduler:
    """All ranks on this host. A `Scheduler`."""

    def context(self) -> list[str] | None:
        return [socket.gethostname()]

    def submit(self, run_dir: Path) -> Submitted:
        startable(RunPaths(run_dir))  # what cannot start here makes no attempt
        return _attempt(run_dir, lambda attempt, lock: run_local(run_dir, attempt=attempt, lock=lock))

    def query(self, run_dirs: Sequence[Path]) -> list[RunState]:
        return [run_state(run_dir) for run_dir in run_dirs]

    def cancel(self, run_dirs: Sequence[Path], *, now: bool, wait_s: float, dry_run: bool = False) -> None:
        for run_dir in run_dirs:
            state = run_state(run_dir)
            if state.state in FINAL_STATES and not state.alive:
                refuse_ended([state])
            if state.alive is None:
                raise RunError(f"{state.name} was last seen on another host; cancel it there")
            if not dry_run:
                _stop(run_dir, now=now, wait_s=wait_s)

    def requeue(self, record: AttemptRecord, *, without: Sequence[str] = ()) -> Requeued:
        return Requeued(done=False, problem="there is no queue here; launcher resume continues the run")


class HostsScheduler(LocalScheduler):
    """The hosts of cluster.hosts, from the first of them.

    Args:
        remote: start the others through a remote shell; otherwise the user does.
    """

    def __init__(self, hosts: list[str], *, remote: bool = False) -> None:
        self._hosts = hosts
        self._remote = remote

    def context(self) -> list[str] | None:
        return self._hosts

    def submit(self, run_dir: Path) -> Submitted:
        check_leader(run_dir)
        return _attempt(run_dir, lambda attempt, lock: lead(run_dir, attempt=attempt, lock=lock, remote=self._remote))


def _attempt(run_dir: Path, run: Callable[[int, int], int]) -> Submitted:
    with lock_run(run_dir) as lock:
        RunPaths(run_dir).cancel.unlink(missing_ok=True)
        return Submitted(run_dir=run_dir, exit_code=run(new_attempt(run_dir), lock))


def _stop(run_dir: Path, *, now: bool, wait_s: float) -> None:
    """Marks the run as cancelled, signals its processes, and waits until they are gone."""
    # The mark tells the ranks a cancellation from a preemption.
    RunPaths(run_dir).cancel.touch()
    _signal(run_dir, run_process(run_dir), now=now)
    deadline = time.monotonic() + wait_s
    while is_alive(run_dir):
        if time.monotonic() > deadline:
            raise RunError(
                f"{run_dir.name} has not ended {wait_s:.0f} s after the signal; it may be in a long step or save. "
                f"Look again with launcher status {run_dir.name}, or lose what is unsaved with launcher cancel --now"
            )
        time.sleep(_POLL_S)
    # A run that nobody ran, or that was killed, could not write its end itself.
    if run_state(run_dir).state != "succeeded":
        set_state(RunPaths(run_dir), last_attempt(run_dir), "cancelled", "cancelled by the user")


def _signal(run_dir: Path, process: StarterProcess | None, *, now: bool) -> None:
    """Asks the starter to end the run, or kills its ranks; rank 0 where another program started them."""
    status = read_status(RunPaths(run_dir).status)
    if process is not None:
        pids = process.ranks if now else [process.pid]
    else:
        pids = [status.pid] if status is not None and status.pid is not None and is_alive(run_dir, status) else []
    for pid in pids:
        with suppress(ProcessLookupError):  # it has ended meanwhile
            os.kill(pid, signal.SIGKILL if now else signal.SIGTERM)
