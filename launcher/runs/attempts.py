"""The record of an attempt, `attempts/N/attempt.json`: who ran it, where and when."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from launcher.files import find_record, write_json
from launcher.paths import RunPaths


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptRecord:
    """One attempt of a run, written by the starter of its ranks. Times are UTC, ISO 8601."""

    attempt: int
    starter: str
    """local, slurm, or other (torchrun, accelerate, srun by hand)."""
    host: str
    """Of the starter."""
    world_size: int
    started: str
    ended: str = ""
    """Empty while it runs, and for ever if its starter was killed or its host went down."""
    exit_code: int | None = None
    """Of the attempt, as the starter saw it."""
    job_id: str = ""
    """Slurm job; ARRAY_TASK for a member of an array."""
    restart: int = 0
    """How often Slurm had restarted the job."""
    queued: str = ""
    """When the job became able to run, as Slurm tells it."""
    nodes: list[str] = field(default_factory=list)
    """Host names in rank order, each once."""
    ranks_per_node: int = 1
    checkpoint_step: int = -1
    """Newest committed checkpoint when the attempt began; -1: none."""

    def node_of(self, rank: int) -> str:
        """Host name of a rank; ranks are dealt out to nodes in blocks."""
        index = rank // max(1, self.ranks_per_node)
        return self.nodes[index] if index < len(self.nodes) else self.host


def write_attempt(run_dir: Path, record: AttemptRecord) -> None:
    """Writes or replaces the record of its attempt, whole."""
    write_json(RunPaths(run_dir).attempt_record(record.attempt), record)


def read_attempt(run_dir: Path, attempt: int) -> AttemptRecord | None:
    """None where the attempt left no record, or none that can be read."""
    return find_record(AttemptRecord, RunPaths(run_dir).attempt_record(attempt))


def read_attempts(run_dir: Path) -> list[AttemptRecord]:
    """All records, oldest first."""
    numbers = RunPaths(run_dir).attempt_numbers()
    return [record for number in numbers if (record := read_attempt(run_dir, number)) is not None]
