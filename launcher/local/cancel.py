"""Cancels a run that this host runs: its ranks save first, or are killed."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

from launcher.errors import RunError
from launcher.paths import RunPaths
from launcher.runs.events import last_state
from launcher.runs.run_dir import last_attempt, write_state
from launcher.runs.states import RunProcess, is_alive, run_process, run_state
from launcher.runs.status import read_status

_POLL_S = 0.2


def stop_local(run_dir: Path, *, now: bool, wait_s: float) -> None:
    """Marks the run as cancelled, signals its processes, and waits until they are gone.

    Args:
        now: kill them; what was not saved is lost.
    Raises: RunError if they are still there after `wait_s` seconds.
    """
    # The mark tells the ranks a cancellation from a preemption.
    RunPaths(run_dir).cancel.touch()
    process = run_process(run_dir)
    _signal(run_dir, process, now=now)
    deadline = time.monotonic() + wait_s
    while is_alive(run_dir):
        if time.monotonic() > deadline:
            raise RunError(
                f"{run_dir.name} has not ended {wait_s:.0f} s after the signal; it may be in a long step or save. "
                f"Look again with launcher status {run_dir.name}, or lose what is unsaved with launcher cancel --now"
            )
        time.sleep(_POLL_S)
    # A run that nobody ran, or that was killed, could not write its end itself.
    if last_state(RunPaths(run_dir).events) != "cancelled" and run_state(run_dir).state != "succeeded":
        write_state(run_dir, "cancelled", attempt=last_attempt(run_dir), reason="cancelled by the user")


def _signal(run_dir: Path, process: RunProcess | None, *, now: bool) -> None:
    with suppress(ProcessLookupError):
        if process is None:
            status = read_status(RunPaths(run_dir).status)
            if status is not None and status.pid is not None and is_alive(run_dir, status):
                os.kill(status.pid, signal.SIGKILL if now else signal.SIGTERM)
        elif now:
            for pid in process.ranks:
                os.kill(pid, signal.SIGKILL)
        else:
            os.kill(process.pid, signal.SIGTERM)
