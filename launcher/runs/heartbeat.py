"""Heartbeats: the current phase and step of each rank, `attempts/N/beat-RRRR.json`, rewritten in place."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from launcher.files import rewrite
from launcher.runs import jsonl

EVERY_S = 1.0
"""A beat is written at a change of phase, otherwise at most this often. A reader adds it to the limit it allows."""

_HOST_LENGTH = 200


class Phase(StrEnum):
    """The current activity of a rank."""

    start = "start"
    meet = "meet"
    load = "load"
    rehearse = "rehearse"
    step = "step"
    """This one and the next two alternate."""
    evaluate = "evaluate"
    save = "save"
    finish = "finish"


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """The last sign of life of a rank."""

    rank: int
    host: str
    pid: int
    phase: str
    """A Phase; text, because a newer version may know more of them."""
    step: int
    """Optimizer steps done."""
    beat: int
    """Counts every sign of life, written or not."""
    limit_s: float
    """A rank that is silent for longer in this phase hangs."""
    time: str
    """UTC, ISO 8601, by the rank's own clock: for people. A watcher measures silence by its own clock."""


class Heart:
    """Writes the beats of one rank. Ranks: each its own."""

    def __init__(self, path: Path, *, rank: int, host: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._rank = rank
        self._host = host[:_HOST_LENGTH]
        self._clock = clock
        self._count = 0
        self._written_at = float("-inf")
        self._phase = ""
        self._limit_s = 0.0

    def beat(self, phase: str, *, step: int, limit_s: float) -> bool:
        """Takes note of a sign of life; True when it was due to be written.

        A file that cannot be written (a full disk, a removed run directory) is not a reason to stop: it is tried again
        at the next beat.
        """
        self._count += 1
        now = self._clock()
        # A limit that shrinks is written at once: the first step may take long, and a rank that hangs just after it
        # must not be given all of that time.
        is_new = phase != self._phase or limit_s < self._limit_s / 2
        if not is_new and now - self._written_at < EVERY_S:
            return False
        self._phase, self._limit_s, self._written_at = phase, limit_s, now
        beat = Beat(
            rank=self._rank,
            host=self._host,
            pid=os.getpid(),
            phase=phase,
            step=step,
            beat=self._count,
            limit_s=round(limit_s, 1),
            time=jsonl.utc_now(),
        )
        try:
            rewrite(self._path, beat)
        except OSError:
            self._written_at = float("-inf")
        return True
