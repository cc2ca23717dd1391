"""What the parts of a doctor's job report, as JSON files in its folder."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from launcher.errors import RecordError
from launcher.files import record_from_json

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class JobReport:
    """job.json: the job itself, from its first node."""

    nodes: list[str]
    probe_exit: int | None = None
    """Exit code of srun; None while the probe runs."""
    sum_exit: int | None = None
    """None also if there is no sum."""
    ended: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """The connection from a node to another."""

    peer: str
    error: str = ""
    port: int = 0
    round_trip_ms: float = 0.0
    clock_ahead_s: float = 0.0
    """How far the other node's clock is ahead of this one's."""
    mib_per_s: float = 0.0


@dataclass(slots=True, kw_only=True)
class NodeReport:
    """probe-N.json: a node. Other versions of the launcher may report less."""

    node: str
    """Its name in Slurm."""
    host: str = ""
    sees_folder: bool = False
    folder_error: str = ""
    versions: dict[str, str | None] = field(default_factory=dict)
    driver: str = ""
    gpus: list[str] = field(default_factory=list)
    cores: int = 0
    memory_gib: float = 0.0
    shm_gib: float | None = None
    """Free in /dev/shm."""
    links: list[Link] = field(default_factory=list)
    sees: list[str] = field(default_factory=list)
    """Hosts whose marks it sees in the shared folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SumReport:
    """link-N.json: a rank of launcher.train.allreduce_check."""

    rank: int
    host: str
    error: str = ""
    backend: str = ""
    mib: int = 0
    seconds: float = 0.0
    gib_per_s: float = 0.0


def read_reports(cls: type[T], folder: Path, pattern: str) -> list[T]:
    """The reports in the last lines of files, of those that have one; a container may print something before."""
    reports = []
    for path in sorted(folder.glob(pattern)):
        with suppress(OSError, IndexError, RecordError):
            last = path.read_bytes().strip().splitlines()[-1]
            reports.append(record_from_json(cls, last, path))
    return reports
