"""How the machines of a run without Slurm tell each other of themselves: a small file each in the attempt's folder.

A file is rewritten in place once a second. On network file systems a renamed file may be seen late, while opening one
anew shows what was written into it; and a reader needs no clock but its own: it looks only at whether the file changes.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from types import TracebackType

from launcher.errors import ExitCode, HostLost
from launcher.files import find_record, rewrite
from launcher.paths import RunPaths
from launcher.runs.jsonl import utc_now

BEAT_S = 1.0
SILENT_S = 20.0
"""A machine that says nothing for so long is lost."""


class BoxState(Enum):
    waiting = "waiting"
    """The first machine, until the others have come."""
    joined = "joined"
    running = "running"
    ended = "ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxNote:
    """What one machine says of itself."""

    box: int
    """Its place in cluster.hosts, from 0."""
    host: str
    """Its own host name."""
    state: BoxState
    token: str
    """Made by the first machine; one that repeats it sees the same folder."""
    beat: int = 0
    master_address: str = ""
    master_port: int = 0
    exit_code: int | None = None
    error: str = ""
    """Why it cannot take part."""
    versions: dict[str, str | None] = field(default_factory=dict)
    time: str = ""


def read_note(path: Path) -> BoxNote | None:
    """None where there is none, or none that can be read at this moment."""
    return find_record(BoxNote, path)


class OwnNote:
    """This machine's file, kept changing by a thread until the end of the `with` block."""

    def __init__(self, path: Path, note: BoxNote) -> None:
        self._path = path
        self._note = note
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep_beating, daemon=True)

    def __enter__(self) -> OwnNote:
        self._write()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        if self._note.state is not BoxState.ended:
            self.end(ExitCode.INTERRUPTED if kind is KeyboardInterrupt else ExitCode.WORLD, error=str(error or ""))

    def move_to(self, state: BoxState) -> None:
        with self._lock:
            self._note = replace(self._note, state=state)
        self._write()

    def end(self, exit_code: int, *, error: str = "") -> None:
        with self._lock:
            self._note = replace(self._note, state=BoxState.ended, exit_code=int(exit_code), error=error)
        self._write()

    def _keep_beating(self) -> None:
        while not self._over.wait(BEAT_S):
            # A file server that is away for a moment must not end the thread: silence says it all.
            try:
                self._write()
            except OSError:
                continue

    def _write(self) -> None:
        with self._lock:
            self._note = replace(self._note, beat=self._note.beat + 1, time=utc_now())
            rewrite(self._path, self._note, durable=True)


class OtherBoxes:
    """The files of the other machines, as they change."""

    def __init__(
        self, paths: RunPaths, attempt: int, hosts: list[str], own: int, *, silent_s: float = SILENT_S
    ) -> None:
        self._files = {box: paths.host_status(attempt, box) for box in range(len(hosts)) if box != own}
        self._hosts = hosts
        self._silent_s = silent_s
        self._seen: dict[int, tuple[int, float]] = {}
        self._asked = 0.0

    def note(self, box: int) -> BoxNote | None:
        return read_note(self._files[box])

    def lost(self) -> HostLost | None:
        """The host that has gone; None while all are there or have ended well. Cheap to ask often."""
        now = time.monotonic()
        if now - self._asked < BEAT_S / 2:
            return None
        self._asked = now
        return next((lost for box in self._files if (lost := self._lost(box, now)) is not None), None)

    def _lost(self, box: int, now: float) -> HostLost | None:
        note = read_note(self._files[box])
        host = self._hosts[box]
        if note is not None and note.state is BoxState.ended:
            if note.exit_code in (ExitCode.DONE, ExitCode.PREEMPTED):
                return None
            reason = f" ({note.error})" if note.error else ""
            return HostLost(f"{host} ended with exit code {note.exit_code}{reason}", node=host, code=note.exit_code)
        beat, since = self._seen.get(box, (-1, now))
        if note is not None and note.beat != beat:
            beat, since = note.beat, now
        self._seen[box] = (beat, since)
        silent_s = now - since
        if silent_s <= self._silent_s:
            return None
        return HostLost(f"{host} has said nothing for {silent_s:.0f} s", node=host, silent_s=silent_s)
