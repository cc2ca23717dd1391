"""Finds the rank that hangs, from the heartbeats of all ranks. The starter of the ranks asks twice a second."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from launcher.config.cluster_schema import FaultConfig
from launcher.config.frozen import load_config
from launcher.errors import LauncherError, RecordError
from launcher.files import record_from_json
from launcher.paths import RunPaths
from launcher.runs.heartbeat import EVERY_S, Beat, Phase

_LARGEST_GAP_S = 5.0
"""Longer between two looks, and the watcher itself was stopped or starved: that time says nothing about the ranks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stall:
    """A rank without heartbeats for longer than its phase allows."""

    rank: int
    host: str
    """Empty where the rank never said it."""
    phase: str
    step: int
    silent_s: float
    limit_s: float


@dataclass(slots=True)
class _Watched:
    rank: int
    beat: Beat
    """The last one; before the first, what is assumed of the rank."""
    line: bytes = b""
    changed_at_s: float = 0.0


class HangDetector:
    """Looks at the beat files of an attempt; time is the watcher's own, so clocks of nodes may differ.

    Args:
        clock: seconds, for tests.
    """

    def __init__(
        self, paths: RunPaths, attempt: int, world_size: int, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._paths = paths
        self._attempt = attempt
        self._clock = clock
        self._last_look = clock()
        self._watched_s = 0.0
        try:
            fault = load_config(paths.config).config.fault
        except LauncherError:
            fault = FaultConfig()
        unseen = Beat(rank=0, host="", pid=0, phase=Phase.start, step=0, beat=0, limit_s=fault.load_limit_s, time="")
        self._ranks = [_Watched(rank, unseen) for rank in range(world_size)]

    def stalled(self) -> Stall | None:
        """The rank that hangs, None while all make progress. Missing and half-written files raise nothing.

        Of several, the one that could not write down its stack (it is stopped, or its node is gone); then the one in
        another phase than most; then the one silent longest.
        """
        now = self._clock()
        self._watched_s += min(now - self._last_look, _LARGEST_GAP_S)
        self._last_look = now
        for watched in self._ranks:
            self._look_at(watched)
        late = [watched for watched in self._ranks if self._is_late(watched)]
        if not late:
            return None
        phases = Counter(watched.beat.phase for watched in self._ranks)
        worst = min(late, key=lambda one: (self._has_dumped(one.rank), phases[one.beat.phase], one.changed_at_s))
        return Stall(
            rank=worst.rank,
            host=worst.beat.host,
            phase=worst.beat.phase,
            step=worst.beat.step,
            silent_s=self._watched_s - worst.changed_at_s,
            limit_s=worst.beat.limit_s,
        )

    def _look_at(self, watched: _Watched) -> None:
        with suppress(OSError, RecordError):
            line = self._paths.heartbeat(self._attempt, watched.rank).read_bytes()
            if line and line != watched.line:
                watched.line, watched.changed_at_s = line, self._watched_s
                watched.beat = record_from_json(Beat, line)

    def _is_late(self, watched: _Watched) -> bool:
        if self._watched_s - watched.changed_at_s <= watched.beat.limit_s + EVERY_S:
            return False
        return watched.beat.phase != Phase.finish and not self._paths.rank_end(self._attempt, watched.rank).exists()

    def _has_dumped(self, rank: int) -> bool:
        with suppress(OSError):
            return self._paths.stacks(self._attempt, rank).stat().st_size > 0
        return False
