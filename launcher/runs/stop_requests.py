"""Stop signals to the starter of the ranks: noted, to be passed on in order."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

# USR2, not USR1: NCCL may catch USR1. Slurm sends TERM on preemption and USR2 where the job script asks for a lead.
RANK_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
"""On these a rank saves and leaves."""
_DEBOUNCE_S = 0.5


@dataclass(slots=True)
class StopRequests:
    """The stop signals received so far."""

    names: list[str] = field(default_factory=list)
    _at: float = float("-inf")

    @property
    def first(self) -> str:
        """Name of the first one; empty without."""
        return self.names[0] if self.names else ""

    def note(self, number: int, frame: FrameType | None) -> None:
        # Some senders signal twice at once (to a process and its group): that is one request.
        now = time.monotonic()
        if now - self._at > _DEBOUNCE_S:
            self.names.append(signal.Signals(number).name)
        self._at = now


@contextmanager
def noting_stops() -> Iterator[StopRequests]:
    """Notes stop signals instead of dying from them while ranks run; the previous handlers come back afterwards."""
    stop = StopRequests()
    previous = {number: signal.signal(number, stop.note) for number in (*RANK_STOP_SIGNALS, signal.SIGHUP)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
