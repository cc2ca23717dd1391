"""The next attempt of a run, started from this host: its ranks here alone, or on every host of cluster.hosts."""

from __future__ import annotations

from pathlib import Path

from launcher.local.multi_host import check_leader, is_over_boxes, lead
from launcher.local.ranks import run_local, startable
from launcher.paths import RunPaths
from launcher.runs.run_dir import lock_run, new_attempt


def start_run(run_dir: Path, *, console: bool = True, remote: bool = False) -> int:
    """Makes a new attempt of a run and runs it here to its end; with cluster.hosts, together with the other machines.

    Args:
        remote: start the other machines through a remote shell (local/multi_host.py).
    Returns: the exit code, as run_local.
    Raises: RunError if somebody runs it already.
    """
    over_boxes = is_over_boxes(run_dir)
    if over_boxes:
        check_leader(run_dir)
    else:
        startable(RunPaths(run_dir), None)  # what cannot start here makes no attempt
    with lock_run(run_dir) as lock:
        RunPaths(run_dir).cancel.unlink(missing_ok=True)
        attempt = new_attempt(run_dir)
        if over_boxes:
            return lead(run_dir, attempt=attempt, console=console, lock=lock, remote=remote)
        return run_local(run_dir, attempt=attempt, console=console, lock=lock)
