"""Rank 0 on the terminal and in its log at once: a pseudo-terminal, so that its progress bar stays alive."""

from __future__ import annotations

import os
import re
import signal
import sys
import termios
import threading
from contextlib import suppress
from pathlib import Path

# A progress bar redraws itself with these; colours and cursor moves are of use on a terminal only.
_ERASE_LINE = b"\x1b[2K"
_ESCAPES = re.compile(rb"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\].*?(?:\x07|\x1b\\)|\x1b[@-Z\\-_]")


class LogFilter:
    """Turns what was sent to a terminal into plain lines: of each line only what was drawn last, without escapes."""

    def __init__(self) -> None:
        self._pending = b""

    def feed(self, data: bytes) -> bytes:
        """Complete lines so far; the rest waits for more."""
        *lines, self._pending = (self._pending + data).split(b"\n")
        # A bar that redraws itself for hours sends no newline: keep only its newest picture.
        self._pending = self._pending.rpartition(_ERASE_LINE)[2]
        self._pending = self._pending[self._pending.rfind(b"\r", 0, -1) + 1 :]
        return b"".join(self._plain(line) + b"\n" for line in lines)

    def close(self) -> bytes:
        """The rest, when the writer has gone."""
        rest, self._pending = self._plain(self._pending), b""
        return rest + b"\n" if rest else b""

    @staticmethod
    def _plain(line: bytes) -> bytes:
        shown = _ESCAPES.sub(b"", line.rpartition(_ERASE_LINE)[2]).rstrip(b"\r")
        return shown.rpartition(b"\r")[2].rstrip()


class RankOutput:
    """Where rank 0 writes: `descriptor` for the child, copied by a thread to our stderr and to the log.

    A pseudo-terminal where our stderr is a terminal (its size follows ours), otherwise a pipe.
    """

    def __init__(self, log: Path) -> None:
        self._log = log.open("ab", buffering=0)
        self._is_terminal = sys.stderr.isatty()
        self._source, self.descriptor = os.openpty() if self._is_terminal else os.pipe()
        if self._is_terminal:
            self._copy_size()
            self._previous = signal.signal(signal.SIGWINCH, self._copy_size)
        self._thread = threading.Thread(target=self._pump, name="rank-0-output", daemon=True)

    def start(self) -> None:
        """Begins to copy. Call once the child has the descriptor: our own copy of it is closed here."""
        os.close(self.descriptor)
        self._thread.start()

    def close(self) -> None:
        """Waits for the last lines, but not for ever: a process that outlives rank 0 may hold its output open."""
        self._thread.join(timeout=2)
        if self._is_terminal:
            signal.signal(signal.SIGWINCH, self._previous)

    def _copy_size(self, *_: object) -> None:
        termios.tcsetwinsize(self._source, termios.tcgetwinsize(sys.stderr.fileno()))

    def _pump(self) -> None:
        plain = LogFilter()
        while True:
            try:
                data = os.read(self._source, 65536)
            except OSError:  # a pseudo-terminal reports its end as an error
                data = b""
            if not data:
                break
            # Where nobody watches any more (a closed terminal), the log goes on.
            with suppress(OSError, ValueError):
                sys.stderr.buffer.write(data)
                sys.stderr.buffer.flush()
            self._log.write(plain.feed(data))
        self._log.write(plain.close())
        self._log.close()
        os.close(self._source)
