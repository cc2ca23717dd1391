"""What the launcher asks of a scheduler: to start runs, look them up and stop them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Protocol

from launcher.errors import RunError
from launcher.runs.attempts import AttemptRecord
from launcher.runs.states import RunState
from launcher.runs.submission import StageJob


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """What became of a submission."""

    run_dir: Path
    exit_code: int | None = None
    """Of the attempt, where it ran here to its end; None where it waits in a queue."""
    jobs: list[StageJob] = field(default_factory=list)
    """Those queued now."""
    estimate_start: datetime | None = None
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Requeued:
    """Whether a run goes on by itself after an attempt."""

    done: bool
    by_scheduler: bool = False
    """The scheduler had already requeued the job itself, as Slurm does after a preemption or a node failure."""
    excluded: tuple[str, ...] = ()
    """Nodes the job must not get."""
    problem: str = ""
    """Why it was not requeued, or may still get an excluded node."""


class Scheduler(Protocol):
    """One way to get nodes for the ranks of a run. `launcher/schedulers.py` lists and chooses them."""

    def context(self) -> list[str] | None:
        """Hosts on which an attempt started now would run; None where a queue decides that later."""

    def submit(self, run_dir: Path) -> Submitted:
        """Starts or queues the next attempt of a run.

        Raises: RunError: it runs or waits already. UserError: it cannot run here, or was refused.
        """

    def query(self, run_dirs: Sequence[Path]) -> list[RunState]:
        """The states of runs now. Asks as rarely as it can, and says in `not_asked` why there was no answer."""

    def cancel(self, run_dirs: Sequence[Path], *, now: bool, wait_s: float, dry_run: bool = False) -> None:
        """Ends runs for good and waits until nothing of them runs.

        Args:
            now: kill them; unsaved steps are lost.
            dry_run: only refuse what cannot be cancelled.
        Raises: RunError if there is nothing to cancel, or a run is still there after `wait_s` seconds.
        """

    def requeue(self, record: AttemptRecord, *, without: Sequence[str] = ()) -> Requeued:
        """Has the job of an attempt that ends here started again, exactly once. Called inside the job.

        Args:
            without: nodes to exclude, in addition to those excluded already.
        """


def refuse_ended(states: Sequence[RunState]) -> None:
    """Raises: RunError that these runs have ended."""
    if len(states) > 1:
        raise RunError(f"all {len(states)} runs have ended already. There is nothing to cancel")
    end = "was cancelled" if states[0].state == "cancelled" else states[0].state
    raise RunError(f"{states[0].name} is not running: it {end}. There is nothing to cancel")
