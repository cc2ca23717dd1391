"""status.json: the newest state of a run in one small file to poll. A view; events.jsonl is the record."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from launcher.files import find_record, write_json
from launcher.paths import RunPaths
from launcher.runs import jsonl
from launcher.runs.events import last_state, write_event

FINAL_STATES = frozenset({"succeeded", "failed", "cancelled"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """Where a run is. Use `dataclasses.replace(status, ...)` for the next one, with `updated=jsonl.utc_now()`."""

    name: str
    """Name of the run."""
    state: str
    """validating, queued, running, succeeded, failed or cancelled."""
    step: int = 0
    of: int = 0
    epoch: float = 0.0
    loss: float | None = None
    eval_loss: float | None = None
    tokens_per_s: float | None = None
    eta_s: float | None = None
    last_checkpoint_step: int | None = None
    last_checkpoint_time: str | None = None
    attempt: int = 0
    pid: int | None = None
    """Process id of rank 0."""
    host: str | None = None
    """Of rank 0."""
    job_id: str | None = None
    """Slurm job, where it is one."""
    reason: str = ""
    """Why it is in this state; empty where that needs no reason."""
    updated: str = field(default_factory=jsonl.utc_now)


def write_status(path: Path, status: Status) -> None:
    # Not synced to disk: it is only a view, and syncing would make the training loop wait for the file system.
    write_json(path, status, indent=None, durable=False)


def read_status(path: Path) -> Status | None:
    """None where there is none, or none that can be read."""
    return find_record(Status, path)


def set_state(paths: RunPaths, attempt: int, state: str, reason: str, *, again: bool = False) -> None:
    """Makes `state` the state of the run, in its events and its status file.

    Nothing happens once a newer attempt exists: only that one decides then.

    Args:
        again: also where the run is in this state already, because the reason is a better one.
    """
    if paths.newest_attempt() > attempt:
        return
    if again or last_state(paths.events) != state:
        write_event(paths.events, attempt, "state", state=state, reason=reason)
    status = read_status(paths.status)
    if status is not None and status.state != state:
        now = replace(status, state=state, reason=reason, eta_s=None, updated=jsonl.utc_now())
        write_status(paths.status, now)
