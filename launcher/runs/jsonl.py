"""Append-only files of JSON objects, one per line: metrics.jsonl and events.jsonl. Times are UTC.

Every line is strict JSON (`files.as_json`); finite floats are written with `repr`, so they come back bit for bit.
"""

from __future__ import annotations

import errno
import json
import os
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from launcher.files import as_json


def utc_now() -> str:
    """ISO 8601 with milliseconds and Z."""
    return utc_text(datetime.now(UTC))


def utc_text(moment: datetime) -> str:
    """That moment, as `utc_now` writes it."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def parse_time(text: str) -> datetime:
    """Raises: ValueError: it is not a time."""
    return datetime.fromisoformat(text)


def seconds_between(start: str, end: str) -> float:
    """Seconds from one time to another; 0 where they cannot be read."""
    try:
        return max(0.0, (parse_time(end) - parse_time(start)).total_seconds())
    except (ValueError, TypeError):
        return 0.0


class AppendLog:
    """An open append-only file. Several processes may append to the same one: each line is a single O_APPEND write."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab+", buffering=0)
        size = os.fstat(self._file.fileno()).st_size
        self._is_torn = size > 0 and os.pread(self._file.fileno(), 1, size - 1) != b"\n"

    def append(self, line: dict[str, object]) -> None:
        """Adds one line.

        Raises: OSError: the disk took none of it, or only a part.
        """
        text = json.dumps(as_json(line), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        # A writer that died in the middle of a line left no newline: end its line, or ours would be lost with it.
        data = (b"\n" if self._is_torn else b"") + text.encode("utf-8", errors="backslashreplace") + b"\n"
        self._is_torn = self._file.write(data) != len(data)
        if self._is_torn:
            raise OSError(errno.ENOSPC, "the line was written only in part", self._file.name)

    def close(self) -> None:
        self._file.close()


def whole_lines(path: Path, offset: int) -> bytes:
    """The lines of a file from byte `offset` on; none where there is no file.

    A last line without newline is still being written (or its writer died): it is left for the next call.
    """
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read()
    except FileNotFoundError:
        return b""
    return data[: data.rfind(b"\n") + 1]


def read_lines(path: Path, offset: int = 0) -> tuple[list[dict[str, object]], int]:
    """Objects of `whole_lines`, and the offset where the next call continues.

    Lines that are not a JSON object, left by a writer that died, are skipped.
    """
    complete = whole_lines(path, offset)
    lines = []
    for raw in complete.splitlines():
        with suppress(ValueError):
            line = json.loads(raw)
            if isinstance(line, dict):
                lines.append(line)
    return lines, offset + len(complete)
