"""A stop signal sets a flag, and ranks agree on it at the step edge. Imports no torch: armed before torch loads."""

from __future__ import annotations

import signal
import threading
from types import FrameType

from launcher.errors import Preempted
from launcher.runs.stop_requests import RANK_STOP_SIGNALS


class StopFlag:
    """Whether and why this process is to stop: the first stop signal, or a reason of its own."""

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self.reason: str | None = None

    @property
    def requested(self) -> bool:
        return self.reason is not None

    def arm(self) -> None:
        """Catches the stop signals from now on. Main thread only."""
        assert threading.current_thread() is threading.main_thread()
        for number in RANK_STOP_SIGNALS:
            signal.signal(number, self._note)
        # The local starter blocks them until now, so that none ends a rank that cannot catch it yet.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, RANK_STOP_SIGNALS)

    def ask(self, reason: str) -> None:
        """Sets the flag without a signal."""
        self.reason = self.reason or reason

    def preempted(self, doing: str) -> Preempted:
        """The error to leave with; `doing` says when the stop came and what became of the work."""
        by = self.reason or "a signal to another rank"
        return Preempted(f"stopped by {by} {doing}", stopped_by=self.reason)

    def _note(self, number: int, frame: FrameType | None) -> None:
        # A second signal changes nothing: ending the ranks without a save takes SIGKILL.
        if self.signal_name is None:
            self.signal_name = signal.Signals(number).name
        self.ask(self.signal_name)


STOP = StopFlag()
"""The flag of this process."""
