"""How an attempt ended, from the exit codes of its ranks; and the record of it."""

from __future__ import annotations

import dataclasses
import signal
from dataclasses import dataclass, field

from launcher.errors import ExitCode, WorldError
from launcher.paths import RunPaths
from launcher.runs.events import EventWriter, read_events
from launcher.runs.hang_detector import Stall
from launcher.runs.jsonl import utc_now
from launcher.runs.status import FINAL_STATES, read_status, write_status

_MEANING = {
    ExitCode.BUG: "unexpected error",
    ExitCode.USER: "something the user must change",
    ExitCode.CHECKPOINT: "no checkpoint that can be trusted, or a save that failed",
    ExitCode.WORLD: "the ranks that met are not the ranks that were planned",
    ExitCode.NON_FINITE: "loss or gradient is not finite",
    ExitCode.SUPERSEDED: "a newer attempt of the run exists",
    ExitCode.HANG: "it made no progress",
}


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
    def reason(self) -> str:
        """One line for people."""
        if self.killed:
            return "killed by the user before it could save"
        if self.stall is not None:
            return (
                f"rank {self.stall.rank} made no progress for {self.stall.silent_s:.0f} s in phase {self.stall.phase}"
            )
        if self.lost and not self.saved:
            return str(self.lost)
        if self.failed_rank is None:
            return f"stopped by {self.stopped_by}" if self.exit_code == ExitCode.PREEMPTED and self.stopped_by else ""
        rank = f"rank {self.failed_rank}"
        if self.failed_code == -signal.SIGKILL:
            return f"{rank} was killed (SIGKILL); most often the machine was out of memory"
        if self.failed_code < 0:
            return f"{rank} was ended by {signal.Signals(-self.failed_code).name}"
        meaning = _MEANING.get(ExitCode(self.failed_code)) if self.failed_code in set(ExitCode) else None
        return f"{rank} failed with exit code {self.failed_code}" + (f" ({meaning})" if meaning else "")


def record_end(paths: RunPaths, attempt: int, outcome: Outcome) -> None:
    """Writes what the ranks could not write themselves: the end of the attempt, and the state it leaves the run in."""
    events = read_events(paths.events)
    mine = {event.event for event in events if event.attempt == attempt}
    states = [event.fields.get("state") for event in events if event.event == "state" and event.attempt == attempt]
    state = str(states[-1]) if states else ""
    ends = [event for event in events if event.event == "attempt_end" and event.attempt == attempt]
    # Rank 0 may have written only what followed for it: that a peer, killed or failed before it, was gone.
    told = bool(ends) and (not outcome.failed_rank or ends[-1].fields.get("exit_code") == outcome.failed_code)
    writer = EventWriter(paths.events, attempt, -1)
    try:
        if outcome.exit_code == ExitCode.PREEMPTED and "preempted" not in mine:
            writer.write("preempted", reason=outcome.reason)
        if not told:
            writer.write("attempt_end", exit_code=int(outcome.exit_code), reason=outcome.reason)
        final = _final_state(paths, outcome)
        # Rank 0 may have finished and said so before another rank failed: a run never succeeds without all of them.
        corrected = final == "failed" and (state == "succeeded" or (state == "failed" and not told))
        if final and (state not in FINAL_STATES or corrected):
            writer.write("state", state=final, reason=outcome.reason)
            state = final
    finally:
        writer.close()
    status = read_status(paths.status)
    if status is not None and state and status.state != state:
        now = dataclasses.replace(status, state=state, reason=outcome.reason, eta_s=None, updated=utc_now())
        write_status(paths.status, now)


def _final_state(paths: RunPaths, outcome: Outcome) -> str | None:
    """The state an attempt ends in; None when it may go on (preempted: the run is still running, only not now)."""
    if outcome.exit_code == ExitCode.DONE:
        return "succeeded"
    if paths.cancel.exists():
        return "cancelled"
    return None if outcome.exit_code == ExitCode.PREEMPTED else "failed"
