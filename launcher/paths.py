"""Where everything lies inside a run directory; the one place these names are written."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class RunPaths:
    """Paths of one run: names, and which attempt is the newest. Nothing is created here."""

    root: Path

    @property
    def config(self) -> Path:
        """Frozen configuration, complete, with the derived values; all that workers read."""
        return self.root / "config.yaml"

    @property
    def plan(self) -> Path:
        """The plan `launcher check` printed when the run was created, as JSON."""
        return self.root / "plan.json"

    @property
    def events(self) -> Path:
        return self.root / "events.jsonl"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def status(self) -> Path:
        return self.root / "status.json"

    @property
    def data(self) -> Path:
        """Link to the prepared data set (holds audit.json, train/, validation/)."""
        return self.root / "data"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def attempts(self) -> Path:
        return self.root / "attempts"

    def attempt(self, number: int) -> Path:
        return self.attempts / f"{number:04d}"

    def attempt_numbers(self) -> list[int]:
        """Every attempt there is a folder of, oldest first."""
        return sorted(int(path.name) for path in self.attempts.glob("[0-9]*") if path.name.isdigit())

    def newest_attempt(self) -> int:
        """Number of the newest attempt; 0 before the first."""
        return max(self.attempt_numbers(), default=0)

    def rank_log(self, attempt: int, rank: int) -> Path:
        """What one rank wrote on stdout and stderr."""
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
        """The last word of a rank: exit code and error; absent when it was killed."""
        return self.attempt(attempt) / f"end-{rank:04d}.json"

    def heartbeat(self, attempt: int, rank: int) -> Path:
        """What a rank does now; rewritten in place as it goes on."""
        return self.attempt(attempt) / f"beat-{rank:04d}.json"

    def stacks(self, attempt: int, rank: int) -> Path:
        """Python stacks of a rank that made no progress for too long; empty otherwise."""
        return self.attempt(attempt) / f"stacks-{rank:04d}.txt"

    def job_log(self, attempt: int) -> Path:
        """What the job itself and srun said during an attempt."""
        return self.attempt(attempt) / "job.log"

    def host_status(self, attempt: int, number: int) -> Path:
        """What one host of a run on several (cluster.hosts) reports about itself; rewritten in place once a second."""
        return self.attempt(attempt) / f"box-{number:04d}.json"

    @property
    def submission(self) -> Path:
        """Jobs of a submitted run: argv and job id of each stage (slurm/submit/submit.py)."""
        return self.root / "submission.json"

    @property
    def versions(self) -> Path:
        """Versions of the main packages, and the code revision, when the run was created."""
        return self.root / "versions.json"

    @property
    def lock(self) -> Path:
        """Held (flock) by whoever runs this directory on this machine, ranks included."""
        return self.root / ".lock"

    @property
    def cancel(self) -> Path:
        """Marker left by `launcher cancel`; tells a stop by the user from a preemption."""
        return self.root / "cancel"

    @property
    def plots(self) -> Path:
        return self.root / "plots"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    @property
    def eval(self) -> Path:
        """Result of `launcher eval`, as JSON."""
        return self.root / "eval.json"

    @property
    def eval_partial(self) -> Path:
        """Result of an evaluation that looked at less than the one in eval.json did."""
        return self.root / "eval-partial.json"

    def tracker(self, name: str) -> Path:
        """A tracker's own files, its cursor and the log of its replay."""
        return self.root / name

    @property
    def export(self) -> Path:
        """Default Hugging Face folder, made from the newest checkpoint for eval, generate and serve."""
        return self.root / "export"


def cache_dir() -> Path:
    """Where converted models and prepared data are kept: $LAUNCHER_CACHE, else ~/.cache/launcher."""
    return Path(os.environ.get("LAUNCHER_CACHE") or Path.home() / ".cache" / "launcher")


_SCRATCH: ContextVar[Path | None] = ContextVar("scratch", default=None)


def new_cache_dir() -> Path:
    """Where prepared data and hashes that are made now are kept: as cache_dir, but see scratch_cache."""
    return _SCRATCH.get() or cache_dir()


@contextmanager
def scratch_cache() -> Iterator[None]:
    """For a dry run: what the cache holds is found, and what is made meanwhile lies elsewhere and goes at the end."""
    with tempfile.TemporaryDirectory(prefix="launcher-") as folder:
        token = _SCRATCH.set(Path(folder))
        try:
            yield
        finally:
            _SCRATCH.reset(token)
