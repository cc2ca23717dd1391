"""status.json: the newest state of a run in one small file to poll. A view; events.jsonl is the record."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from launcher.files import find_record, write_json
from launcher.runs import jsonl

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
    """Machine of rank 0."""
    job_id: str | None = None
    """Slurm job, where it is one."""
    reason: str = ""
    """Why it is in this state; empty where that needs no reason."""
    updated: str = field(default_factory=jsonl.utc_now)


def write_status(path: Path, status: Status) -> None:
    """Replaces status.json in one step, so that a reader sees the old or the new one, never a part.

    It is not synced to disk: it is only a view, and syncing would make the loop wait for the file system.
    """
    write_json(path, status, indent=None, durable=False)


def read_status(path: Path) -> Status | None:
    """What status.json says; None where there is none or it cannot be read."""
    return find_record(Status, path)
