"""The hosts of a run without Slurm report to each other, in a small file each in the attempt's folder.

A file is rewritten in place once a second. On network file systems a renamed file may be seen late, while opening one
anew shows what was written into it. A reader needs no clock but its own: all that counts is whether the file changes.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any

from launcher.errors import ExitCode, HostLost
from launcher.files import find_record, rewrite
from launcher.paths import RunPaths
from launcher.runs.jsonl import utc_now

BEAT_S = 1.0
SILENT_S = 20.0
"""A host that reports nothing for so long is lost."""


class HostState(Enum):
    waiting = "waiting"
    """The first host, until the others have joined."""
    joined = "joined"
    running = "running"
    ended = "ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class HostStatus:
    """The report of one host."""

    index: int = field(metadata={"json": "box"})
    """In cluster.hosts, from 0."""
    host: str
    """Its own host name."""
    state: HostState
    token: str
    """Made by the first host; one that repeats it sees the same folder."""
    beat: int = 0
    master_address: str = ""
    master_port: int = 0
    exit_code: int | None = None
    error: str = ""
    """Why it cannot take part."""
    versions: dict[str, str | None] = field(default_factory=dict)
    time: str = ""


class OwnStatus:
    """This host's file, kept changing by a thread until the end of the `with` block."""

    def __init__(self, path: Path, status: HostStatus) -> None:
        self._path = path
        self._status = status
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep_beating, daemon=True)

    def __enter__(self) -> OwnStatus:
        self.report()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        self._over.set()
        self._thread.join()
        if self._status.state is not HostState.ended:
            self.end(ExitCode.INTERRUPTED if kind is KeyboardInterrupt else ExitCode.WORLD, error=str(error or ""))

    def end(self, exit_code: int, *, error: str = "") -> None:
        self.report(state=HostState.ended, exit_code=int(exit_code), error=error)

    def report(self, **changes: Any) -> None:
        """Writes the file, with these fields changed."""
        with self._lock:
            self._status = replace(self._status, **changes, beat=self._status.beat + 1, time=utc_now())
            rewrite(self._path, self._status, durable=True)

    def _keep_beating(self) -> None:
        while not self._over.wait(BEAT_S):
            # A file server that is away for a moment must not end the thread: the others notice the silence.
            with suppress(OSError):
                self.report()


class OtherHosts:
    """The files of the other hosts, as they change."""

    def __init__(self, paths: RunPaths, attempt: int, hosts: list[str], own: int) -> None:
        self._files = {index: paths.host_status(attempt, index) for index in range(len(hosts)) if index != own}
        self._hosts = hosts
        self._seen: dict[int, tuple[int, float]] = {}
        self._asked = 0.0

    def status(self, index: int) -> HostStatus | None:
        return find_record(HostStatus, self._files[index])

    def lost(self) -> HostLost | None:
        """The host that has gone; None while all are there or have ended well. Cheap to ask often."""
        now = time.monotonic()
        if now - self._asked < BEAT_S / 2:
            return None
        self._asked = now
        return next((lost for index in self._files if (lost := self._lost(index, now)) is not None), None)

    def _lost(self, index: int, now: float) -> HostLost | None:
        status, host = self.status(index), self._hosts[index]
        if status is not None and status.state is HostState.ended:
            if status.exit_code in (ExitCode.DONE, ExitCode.PREEMPTED):
                return None
            reason = f" ({status.error})" if status.error else ""
            message = f"{host} ended with exit code {status.exit_code}{reason}"
            return HostLost(message, node=host, code=status.exit_code)
        beat, since = self._seen.get(index, (-1, now))
        if status is not None and status.beat != beat:
            beat, since = status.beat, now
        self._seen[index] = (beat, since)
        silent_s = now - since
        if silent_s <= SILENT_S:
            return None
        return HostLost(f"{host} has reported nothing for {silent_s:.0f} s", node=host, silent_s=silent_s)
