"""What the local starter sees of an attempt: the exit codes of its ranks, in order, and what they add up to."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field

from launcher.diagnose.conclude import StarterReport
from launcher.errors import ExitCode, WorldError
from launcher.runs.hang_detector import Stall


@dataclass(slots=True)
class Outcome:
    """What is known of an attempt; complete when the last rank has gone."""

    stopped_by: str = ""
    """Name of the stop signal, empty without one."""
    killed: bool = False
    """The user did not wait for the save."""
    failed_rank: int | None = None
    """The rank that failed first."""
    failed_code: int = 0
    """Its exit code; -N when signal N ended it."""
    lost: WorldError | None = None
    """The other host of the run that went away, or did not come."""
    saved: bool = False
    """A rank said that it saved at a step edge because it was told to stop."""
    done: int = 0
    """Ranks that finished their work."""
    stall: Stall | None = None
    """The rank that made no progress, for which all were ended."""
    exits: list[tuple[int, int]] = field(default_factory=list)
    """(rank, exit code; -N when signal N ended it) in the order they ended."""

    def add_exit(self, rank: int, code: int, *, stopping: bool) -> None:
        """Takes one rank's end into account, in the order they come.

        Args:
            stopping: a stop was asked for; a rank that SIGTERM ends then was still starting up, and did not fail.
        """
        self.exits.append((rank, code))
        if code == ExitCode.DONE:
            self.done += 1
        elif code == ExitCode.PREEMPTED:
            self.saved = True
        elif stopping and code == -signal.SIGTERM:
            pass
        elif self.failed_rank is None and not self.killed and self.lost is None and self.stall is None:
            self.failed_rank, self.failed_code = rank, code

    @property
    def exit_code(self) -> int:
        """What `launcher train` exits with."""
        if self.killed:
            return ExitCode.INTERRUPTED
        if self.stall is not None:
            return ExitCode.HANG
        if self.failed_rank is not None:
            return self.failed_code if self.failed_code > 0 else 128 - self.failed_code
        if self.lost and not self.saved:
            return ExitCode.WORLD
        if self.saved or (self.stopped_by and not self.done):
            return ExitCode.PREEMPTED
        return ExitCode.DONE

    @property
    def first_failure(self) -> str:
        """For a host that does not keep the record of the attempt, and so makes no verdict."""
        if self.failed_rank is None:
            return ""
        code = self.failed_code
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}"
        return f"rank {self.failed_rank} {how}"

    def report(self) -> StarterReport:
        """For the verdict."""
        failed = None if self.failed_rank is None else (self.failed_rank, self.failed_code)
        return StarterReport(
            exit_code=int(self.exit_code),
            stopped_by="user" if self.killed else self.stopped_by,
            stall=self.stall,
            exits=self.exits,
            first_failed=failed,
            error=self.lost,
        )
