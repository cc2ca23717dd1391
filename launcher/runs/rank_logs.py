"""The logs of ranks and job, merged by the time their lines carry."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from launcher.paths import RunPaths
from launcher.runs.attempts import read_attempt
from launcher.runs.jsonl import parse_time, whole_lines

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
    """Local time where it was written; of a line without a time, that of the line before it."""
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
        complete = whole_lines(self.path, self.offset)
        self.offset += len(complete)
        lines = []
        for text in complete.decode("utf-8", errors="replace").splitlines():
            if (found := _moment_of(text, self.moment)) is not None:
                # Never backwards, so that a file keeps its own order whatever its clock does.
                self.moment = max(found, self.moment) if self.stamped else found
                self.stamped = True
            lines.append(LogLine(self.attempt, self.rank, self.moment, text))
        return lines if last is None else lines[max(0, len(lines) - last) :]


def find_logs(run_dir: Path, *, rank: int | None = None) -> list[RankLog]:
    """Every log of a run, of all attempts, in their order; with `rank` only those of that rank."""
    paths, found = RunPaths(run_dir), []
    for attempt in paths.attempt_numbers():
        moment = _start(run_dir, attempt)
        for path in paths.attempt(attempt).glob("*.log"):
            number = path.stem.removeprefix("rank-")
            owner = JOB if path.name == "job.log" else int(number) if number.isdigit() else None
            if owner is not None and rank in (None, owner):
                found.append(RankLog(path, attempt=attempt, rank=owner, moment=moment))
    return sorted(found, key=lambda log: (log.attempt, log.rank))


def merge(logs: Iterable[list[LogLine]]) -> list[LogLine]:
    """Lines of several logs by attempt and time; at the same second the job first, then ranks in their order."""
    return sorted((line for lines in logs for line in lines), key=lambda line: (line.attempt, line.moment, line.rank))


def _start(run_dir: Path, attempt: int) -> datetime:
    """When the attempt began, in local time without a zone, as log lines have it."""
    record = read_attempt(run_dir, attempt)
    if record is not None:
        with suppress(ValueError):
            return parse_time(record.started).astimezone().replace(tzinfo=None, microsecond=0)
    return datetime.fromtimestamp(RunPaths(run_dir).attempt(attempt).stat().st_mtime).replace(microsecond=0)


def _moment_of(text: str, near: datetime) -> datetime | None:
    """The time a line begins with; its day is the one that brings it nearest to `near`."""
    with suppress(ValueError):  # numbers that are no time
        if clock := _CLOCK.match(text):
            hour, minute, second = map(int, clock.groups())
            moment = near.replace(hour=hour, minute=minute, second=second)
            if moment - near > _HALF_A_DAY:
                return moment - timedelta(days=1)
            return moment + timedelta(days=1) if near - moment > _HALF_A_DAY else moment
        if slurm := _MOMENT.match(text):
            return datetime.fromisoformat(slurm[1])
    return None
