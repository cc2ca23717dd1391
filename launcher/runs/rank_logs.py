"""What the ranks and the job of a run wrote, merged by the time its lines carry."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from launcher.paths import RunPaths
from launcher.runs.attempts import read_attempt
from launcher.runs.jsonl import parse_time

JOB = -1
"""Rank of the job's own log: the supervisor, and srun."""

# What launcher/log.py writes, and what Slurm's own messages carry in their middle.
_CLOCK = re.compile(r"(\d\d):(\d\d):(\d\d)[ ,.]")
_MOMENT = re.compile(r"(?:slurmstepd|srun|slurmd)\S*: .*? AT (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)\b")
_HALF_A_DAY = timedelta(hours=12)


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line, and when it was written."""

    attempt: int
    rank: int
    """JOB for the job's own log."""
    moment: datetime
    """Local time of the machine that wrote it; of a line without one, that of the line before it."""
    text: str


@dataclass(slots=True)
class RankLog:
    """One log file, read on from where the last reading stopped."""

    path: Path
    attempt: int
    rank: int
    moment: datetime
    """The newest time met so far; at first the start of the attempt, which tells the day."""
    offset: int = 0
    stamped: bool = False
    """A line with a time was met."""

    def new_lines(self, last: int | None = None) -> list[LogLine]:
        """Complete lines that came since the last call, or the last few of them; empty while there is no file."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                data = file.read()
        except FileNotFoundError:
            return []
        complete = data[: data.rfind(b"\n") + 1]
        self.offset += len(complete)
        lines = []
        for text in complete.decode("utf-8", errors="replace").splitlines():
            self._note_time(text)
            lines.append(LogLine(self.attempt, self.rank, self.moment, text))
        return lines if last is None else lines[max(0, len(lines) - last) :]

    def _note_time(self, text: str) -> None:
        found = _moment_of(text, self.moment)
        if found is not None:
            # Never backwards, so that a file keeps its own order whatever its clock does.
            self.moment = max(found, self.moment) if self.stamped else found
            self.stamped = True


def find_logs(run_dir: Path, *, rank: int | None = None) -> list[RankLog]:
    """Every log of a run, of all attempts, in their order; with `rank` only those of that rank."""
    starts: dict[int, datetime] = {}
    found = []
    for path in sorted(RunPaths(run_dir).attempts.glob("[0-9]*/*.log")):
        number = JOB if path.name == "job.log" else _number(path.stem.removeprefix("rank-"))
        attempt = _number(path.parent.name)
        if number is None or attempt is None or rank not in (None, number):
            continue
        if attempt not in starts:
            starts[attempt] = _start(run_dir, attempt, path)
        found.append(RankLog(path, attempt=attempt, rank=number, moment=starts[attempt]))
    return sorted(found, key=lambda log: (log.attempt, log.rank))


def merge(logs: Iterable[list[LogLine]]) -> list[LogLine]:
    """Lines of several logs by attempt and time; at the same second the job first, then ranks in their order."""
    return sorted((line for lines in logs for line in lines), key=lambda line: (line.attempt, line.moment, line.rank))


def _number(text: str) -> int | None:
    return int(text) if text.isdigit() else None


def _start(run_dir: Path, attempt: int, log: Path) -> datetime:
    """When the attempt began, in local time without a zone, as log lines have it."""
    record = read_attempt(run_dir, attempt)
    if record is not None:
        try:
            return parse_time(record.started).astimezone().replace(tzinfo=None, microsecond=0)
        except ValueError:
            pass
    return datetime.fromtimestamp(log.parent.stat().st_mtime).replace(microsecond=0)


def _moment_of(text: str, near: datetime) -> datetime | None:
    """The time a line begins with; its day is the one that brings it nearest to `near`."""
    clock = _CLOCK.match(text)
    if clock is not None:
        hour, minute, second = map(int, clock.groups())
        if hour > 23 or minute > 59 or second > 59:
            return None
        moment = near.replace(hour=hour, minute=minute, second=second)
        if moment - near > _HALF_A_DAY:
            return moment - timedelta(days=1)
        return moment + timedelta(days=1) if near - moment > _HALF_A_DAY else moment
    slurm = _MOMENT.match(text)
    try:
        return datetime.fromisoformat(slurm.group(1)) if slurm is not None else None
    except ValueError:
        return None
