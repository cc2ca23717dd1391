"""Signs of life of this rank: heartbeats for the process that watches it, and its stacks when the heartbeats stop.

`WATCHDOG.beat()` reports progress; `WATCHDOG.enter(Phase.step)` and `with WATCHDOG.phase(Phase.save)` say in which
phase. Every phase has a limit. After it a C thread dumps the Python stacks, even of a rank that never releases the GIL;
then the starter, which sees the same silence, ends the ranks. Under one that does not watch (torchrun, accelerate) the
rank ends itself.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from launcher.config.cluster_schema import FaultConfig
from launcher.errors import ExitCode, RankHung
from launcher.paths import RunPaths
from launcher.runs.heartbeat import Heart, Phase
from launcher.runs.rank_end import end_of, write_rank_end
from launcher.runs.rank_environment import is_watched

logger = logging.getLogger(__name__)

SHORTEST_STEP_LIMIT_S = 300.0
FINISH_LIMIT_S = 120.0
_TIMES_THE_SLOWEST = 10.0
# Before the starter, which allows one second more than the limit, ends all ranks.
_DUMP_AFTER_S = 0.5
_LEAVE_AFTER_S = 10.0
# The starter ends a silent rank long before. A rank that still lives then is out of its reach: its node was cut off.
_LEAVE_UNREACHED_AFTER_S = 60.0
_TICK_S = 1.0


class Watchdog:
    """The signs of life of one process. Before `begin`, its methods do nothing."""

    def __init__(self) -> None:
        self.has_trained = False
        """Whether this rank has reached its first step, so that there may be something to save."""
        self._heart: Heart | None = None
        self._fault = FaultConfig()
        self._phase = Phase.start
        self._step = 0
        self._last_s = 0.0
        self._slowest_s = 0.0
        self._is_warm = False
        self._stacks: IO[bytes] | None = None

    def begin(self, paths: RunPaths, attempt: int, *, rank: int, fault: FaultConfig) -> None:
        """Starts the heartbeats of this rank; a second call only sets the limits. Ranks: each, as early as it can."""
        self._fault = fault
        if self._heart is not None:
            return
        host = socket.gethostname()
        self._heart = Heart(paths.heartbeat(attempt, rank), rank=rank, host=host)
        with suppress(OSError):
            self._stacks = paths.stacks(attempt, rank).open("ab", buffering=0)
        self._last_s = time.monotonic()
        self._write()
        threading.Thread(target=self._guard, args=(paths, attempt, rank, host), name="watchdog", daemon=True).start()

    def beat(self, *, step: int | None = None) -> None:
        """A sign of life; cheap enough for every micro-batch. `step`: optimizer steps done."""
        if self._heart is None:
            return
        now = time.monotonic()
        if self._phase in (Phase.step, Phase.evaluate):
            self._slowest_s = max(self._slowest_s, now - self._last_s)
        self._last_s = now
        if step is not None:
            self._is_warm = self._is_warm or (self._phase == Phase.step and step > self._step)
            self._step = step
        self._write()

    def enter(self, phase: Phase, *, step: int | None = None) -> None:
        """Begins another phase."""
        if self._heart is None:
            return
        self._phase = phase
        self.has_trained = self.has_trained or phase == Phase.step
        self._step = self._step if step is None else step
        self._last_s = time.monotonic()
        self._write()

    @contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        """Another phase for the length of a block or function; then the one before continues."""
        before = self._phase
        self.enter(name)
        try:
            yield
        finally:
            self.enter(before)

    @property
    def limit_s(self) -> float:
        """How long this rank may be silent in its present phase."""
        fault = self._fault
        match self._phase:
            case Phase.meet:
                # The ranks name a missing one themselves; this limit is for ranks that cannot.
                return 2 * fault.meet_limit_s + 60.0
            case Phase.save:
                return fault.save_limit_s
            case Phase.finish:
                return FINISH_LIMIT_S
            case Phase.step | Phase.evaluate:
                learned = max(SHORTEST_STEP_LIMIT_S, _TIMES_THE_SLOWEST * self._slowest_s)
                limit = fault.step_limit_s or learned
                # The first step may compile kernels; its duration says nothing about the others.
                return limit if self._is_warm else max(limit, fault.load_limit_s)
            case _:
                return fault.load_limit_s

    def _write(self) -> None:
        assert self._heart is not None
        limit_s = self.limit_s
        if self._heart.beat(self._phase, step=self._step, limit_s=limit_s) and self._stacks is not None:
            with suppress(OSError, RuntimeError, ValueError):
                faulthandler.dump_traceback_later(limit_s + _DUMP_AFTER_S, file=self._stacks)
                if os.fstat(self._stacks.fileno()).st_size:
                    # The rank was slow, but did not hang.
                    self._stacks.truncate(0)

    def _guard(self, paths: RunPaths, attempt: int, rank: int, host: str) -> None:
        """A thread that writes the open collectives once the rank is silent, and ends the rank if nobody else does."""
        watched = is_watched(os.environ)
        sign, silent_s, has_written = (self._phase, self._last_s), 0.0, False
        while True:
            before = time.monotonic()
            time.sleep(_TICK_S)
            if (self._phase, self._last_s) != sign:
                sign, silent_s, has_written = (self._phase, self._last_s), 0.0, False
                continue
            # Of a long gap only a part counts: this process itself was stopped then.
            silent_s += min(time.monotonic() - before, 2 * _TICK_S)
            limit_s = self.limit_s
            if silent_s > limit_s and not has_written:
                has_written = True
                write_collectives(paths.attempt(attempt) / f"nccl-{rank:04d}.json")
            # The starter does not watch a rank that has done its work, and trackers may still hold it up.
            is_for_watcher = watched and self._phase != Phase.finish
            if silent_s > limit_s + (_LEAVE_UNREACHED_AFTER_S if is_for_watcher else _LEAVE_AFTER_S):
                break
        # The other ranks end with this one, through the starter or the lost connection.
        message = f"no sign of life for {silent_s:.0f} s in phase {self._phase} (limit {limit_s:.0f} s)"
        logger.error("rank %d hangs: %s; its stacks: %s", rank, message, paths.stacks(attempt, rank))
        error = RankHung(message, phase=self._phase, silent_s=round(silent_s, 1), limit_s=limit_s)
        end = end_of(rank, host=host, exit_code=ExitCode.HANG, error=error, message=message)
        with suppress(OSError):
            write_rank_end(paths.rank_end(attempt, rank), end)
        os._exit(ExitCode.HANG)


def record_collectives(folder: Path, environ: dict[str, str] | os._Environ[str]) -> None:
    """Makes NCCL record its last collectives, and write them when one times out. Call before torch is loaded."""
    environ.setdefault("TORCH_FR_BUFFER_SIZE", "2000")
    environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")
    environ.setdefault("TORCH_FR_DUMP_TEMP_FILE", str(folder / "nccl-trace-"))


def write_collectives(path: Path) -> None:
    """Writes NCCL's record of its last collectives, the open ones last; nothing without NCCL. Never raises."""
    if "torch.distributed.distributed_c10d" not in sys.modules:
        return  # the rank hangs while importing torch, and holds the import lock
    try:
        from torch._C._distributed_c10d import _dump_nccl_trace_json  # type: ignore[attr-defined]

        path.write_bytes(_dump_nccl_trace_json())
    except Exception as error:
        logger.debug("no record of collectives: %s", error)


WATCHDOG = Watchdog()
"""The watchdog of this process."""
