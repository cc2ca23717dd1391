"""Heartbeats: what each rank does at this moment, `attempts/N/beat-RRRR.json`, rewritten in place as it goes on."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from launcher.runs import jsonl

EVERY_S = 1.0
"""A beat is written at a change of phase, and else at most so often. A reader adds it to the limit it allows."""

_LINE_BYTES = 512
_HOST_LENGTH = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """What a rank did last."""

    rank: int
    host: str
    pid: int
    phase: str
    """In order: start, meet, load, rehearse; step, evaluate and save in turns; finish."""
    step: int
    """Optimizer steps done."""
    beat: int
    """Counts every sign of life, written or not."""
    limit_s: float
    """A rank that is silent for longer in this phase hangs."""
    time: str
    """UTC, ISO 8601, by the rank's own clock: for people. Who judges silence uses a clock of his own."""


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

        A file that cannot be written (a full disk, a removed run directory) is no reason to stop: it is tried again
        at the next beat.
        """
        self._count += 1
        now = self._clock()
        # A limit that shrinks is written at once: the first step may take long, and whoever hangs just after it would
        # else be given all of that time.
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
            _rewrite(self._path, jsonl.encode(asdict(beat)).ljust(_LINE_BYTES - 1) + b"\n")
        except OSError:
            self._written_at = float("-inf")
        return True


def _rewrite(path: Path, line: bytes) -> None:
    """One write of always the same length, so a reader sees the old line or the new one.

    Opened anew each time: network file systems send data on when a file is closed.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.pwrite(descriptor, line, 0)
    finally:
        os.close(descriptor)


def read_beat(path: Path) -> Beat | None:
    """None where there is no file, or none that can be read."""
    try:
        return parse_beat(path.read_bytes())
    except OSError:
        return None


def parse_beat(line: bytes) -> Beat | None:
    """None where the line is no beat, or half of one."""
    try:
        found = json.loads(line)
        return Beat(
            rank=int(found["rank"]),
            host=str(found["host"]),
            pid=int(found["pid"]),
            phase=str(found["phase"]),
            step=int(found["step"]),
            beat=int(found["beat"]),
            limit_s=float(found["limit_s"]),
            time=str(found["time"]),
        )
    except (ValueError, TypeError, KeyError):
        return None
