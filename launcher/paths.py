"""The path of every file in a run directory and of the cache; no other module spells these names."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path


class _Name:
    """A file or folder of fixed name inside the run directory."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, paths: RunPaths, owner: type[RunPaths]) -> Path:
        return paths.root / self._name


@dataclass(frozen=True, slots=True)
class RunPaths:
    """Paths of one run: names, and which attempt is the newest. Nothing is created here."""

    root: Path
    config = _Name("config.yaml")
    """Frozen configuration, complete, with the derived values; all that workers read."""
    plan = _Name("plan.json")
    """The plan `launcher check` printed when the run was created."""
    versions = _Name("versions.json")
    """Versions of the main packages, and the code revision, when the run was created."""
    submission = _Name("submission.json")
    """Jobs of a submitted run: argv and job id of each stage (runs/submission.py)."""
    events = _Name("events.jsonl")
    metrics = _Name("metrics.jsonl")
    status = _Name("status.json")
    data = _Name("data")
    """Link to the prepared dataset (holds audit.json, train/, validation/)."""
    checkpoints = _Name("checkpoints")
    attempts = _Name("attempts")
    lock = _Name(".lock")
    """Held (flock) by whoever runs this directory on this host, ranks included."""
    cancel = _Name("cancel")
    """Marker left by `launcher cancel`; tells a stop by the user from a preemption."""
    plots = _Name("plots")
    report = _Name("report.html")
    eval = _Name("eval.json")
    """Result of `launcher eval`."""
    eval_partial = _Name("eval-partial.json")
    """Result of an evaluation that looked at less than the one in eval.json did."""
    export = _Name("export")
    """Default Hugging Face folder, made from the newest checkpoint for eval, generate and serve."""

    def tracker(self, name: str) -> Path:
        """A tracker's own files, its cursor and the log of its replay."""
        return self.root / name

    def attempt(self, number: int) -> Path:
        return self.attempts / f"{number:04d}"

    def attempt_numbers(self) -> list[int]:
        """Every attempt there is a folder of, oldest first."""
        return sorted(int(path.name) for path in self.attempts.glob("[0-9]*") if path.name.isdigit())

    def newest_attempt(self) -> int:
        """Number of the newest attempt; 0 before the first."""
        return max(self.attempt_numbers(), default=0)

    def rank_log(self, attempt: int, rank: int) -> Path:
        """Output of one rank, stdout and stderr."""
        return self.attempt(attempt) / f"rank-{rank:04d}.log"

    def process(self, attempt: int) -> Path:
        """Process ids of a local start, for `launcher cancel` and `launcher status`."""
        return self.attempt(attempt) / "process.json"

    def attempt_record(self, attempt: int) -> Path:
        """Who runs an attempt and where: starter, job, nodes, times (runs/attempts.py)."""
        return self.attempt(attempt) / "attempt.json"

    def verdict(self, attempt: int) -> Path:
        """Why the attempt ended, which rank and node was first, and what to do (diagnose/verdict.py)."""
        return self.attempt(attempt) / "verdict.json"

    def rank_end(self, attempt: int, rank: int) -> Path:
        """How a rank ended: exit code and error; absent when it was killed."""
        return self.attempt(attempt) / f"end-{rank:04d}.json"

    def heartbeat(self, attempt: int, rank: int) -> Path:
        """What a rank does at the moment; rewritten in place."""
        return self.attempt(attempt) / f"beat-{rank:04d}.json"

    def stacks(self, attempt: int, rank: int) -> Path:
        """Python stacks of a rank that made no progress for too long; empty otherwise."""
        return self.attempt(attempt) / f"stacks-{rank:04d}.txt"

    def job_log(self, attempt: int) -> Path:
        """Output of the job itself and of srun during an attempt."""
        return self.attempt(attempt) / "job.log"

    def host_status(self, attempt: int, number: int) -> Path:
        """Status of one host of a run on several (cluster.hosts); rewritten in place once a second."""
        return self.attempt(attempt) / f"box-{number:04d}.json"


def cache_dir() -> Path:
    """Where converted models and prepared data are kept: $LAUNCHER_CACHE, or ~/.cache/launcher."""
    return Path(os.environ.get("LAUNCHER_CACHE") or Path.home() / ".cache" / "launcher")


_SCRATCH: ContextVar[Path | None] = ContextVar("scratch", default=None)


def new_cache_dir() -> Path:
    """Where new prepared data and hashes go: cache_dir, or a temporary folder inside scratch_cache."""
    return _SCRATCH.get() or cache_dir()


@contextmanager
def scratch_cache() -> Iterator[None]:
    """For a dry run: the cache is read as usual, but anything new goes to a temporary folder, removed at the end."""
    with tempfile.TemporaryDirectory(prefix="launcher-") as folder:
        token = _SCRATCH.set(Path(folder))
        try:
            yield
        finally:
            _SCRATCH.reset(token)
