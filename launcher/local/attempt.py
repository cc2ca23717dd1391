"""An attempt of the local starter: its record, and how its ranks end."""

from __future__ import annotations

import signal
import socket
from dataclasses import dataclass, field

from launcher.config.schema import Derived
from launcher.diagnose.end_attempt import end_attempt
from launcher.diagnose.evidence import StarterReport
from launcher.diagnose.verdict import Verdict
from launcher.errors import ExitCode, WorldError
from launcher.paths import RunPaths
from launcher.runs.attempts import AttemptRecord, write_attempt
from launcher.runs.hang_detector import Stall
from launcher.runs.jsonl import utc_now


@dataclass(slots=True)
class RankExits:
    """How the ranks of an attempt ended; complete when the last one has gone."""

    stopped_by: str = ""
    """Name of the stop signal, empty without one."""
    killed: bool = False
    """The user did not wait for the save."""
    lost: WorldError | None = None
    """The other host of the run that went away, or did not come."""
    stall: Stall | None = None
    """The rank that made no progress, for which all were ended."""
    exits: list[tuple[int, int]] = field(default_factory=list)
    """(rank, exit code; -N when signal N ended it) in the order they ended."""
    first_failed: tuple[int, int] | None = None
    """Of these, the first one that failed."""

    def add(self, rank: int, code: int) -> None:
        """Takes one rank's end into account, in the order they come."""
        is_stopping = bool(self.stopped_by or self.lost)
        self.exits.append((rank, code))
        # One that SIGTERM ends during a stop was still starting up, and did not fail.
        ended_well = code in (ExitCode.DONE, ExitCode.PREEMPTED) or (is_stopping and code == -signal.SIGTERM)
        is_result = self.killed or self.lost is not None or self.stall is not None
        if self.first_failed is None and not ended_well and not is_result:
            self.first_failed = rank, code

    @property
    def exit_code(self) -> int:
        """Of the attempt."""
        codes = {code for _, code in self.exits}
        saved = ExitCode.PREEMPTED in codes
        if self.killed:
            return ExitCode.INTERRUPTED
        if self.stall is not None:
            return ExitCode.HANG
        if self.first_failed is not None:
            code = self.first_failed[1]
            return code if code > 0 else 128 - code
        if self.lost and not saved:
            return ExitCode.WORLD
        if saved or (self.stopped_by and ExitCode.DONE not in codes):
            return ExitCode.PREEMPTED
        return ExitCode.DONE

    @property
    def first_failure(self) -> str:
        """For a host that does not keep the record of the attempt, and so has no verdict."""
        if self.first_failed is None:
            return ""
        rank, code = self.first_failed
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}"
        return f"rank {rank} {how}"


def begin_local(paths: RunPaths, attempt: int, derived: Derived, hosts: list[str]) -> AttemptRecord:
    """The record of an attempt that starts now.

    Args:
        hosts: in rank order; none: only this one.
    """
    host = socket.gethostname()
    steps = [path.name.partition("-")[2] for path in paths.checkpoints.glob("step-*")]
    record = AttemptRecord(
        attempt=attempt,
        starter="local",
        host=host,
        world_size=derived.world_size,
        started=utc_now(),
        nodes=hosts or [host],
        ranks_per_node=derived.devices_per_node,
        checkpoint_step=max((int(step) for step in steps if step.isdigit()), default=-1),
    )
    write_attempt(paths.root, record)
    return record


def end_local(paths: RunPaths, record: AttemptRecord, ranks: RankExits) -> tuple[Verdict, int]:
    """Judges and records an attempt that has ended. Returns: the verdict, and the exit code of `launcher train`."""
    report = StarterReport(
        exit_code=int(ranks.exit_code),
        stopped_by="user" if ranks.killed else ranks.stopped_by,
        stall=ranks.stall,
        exits=ranks.exits,
        first_failed=ranks.first_failed,
        error=ranks.lost,
    )
    return end_attempt(paths, record, report)
