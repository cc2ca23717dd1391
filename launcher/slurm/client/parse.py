"""Parses what Slurm's tools print. Pure; for the text of Slurm 22.05 to 25.x."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import product

from launcher.errors import LauncherError

FINISHED_STATES = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED",
    "TIMEOUT",
}  # fmt: skip
"""Job states that do not change any more."""

# Formats of the tools, by the name scontrol gives the field. A comment may hold anything, so it comes last.
SQUEUE = {
    "JobId": "%A", "ArrayJobId": "%F", "ArrayTaskId": "%K", "JobState": "%T", "Partition": "%P", "TimeLimit": "%l",
    "SubmitTime": "%V", "StartTime": "%S", "EndTime": "%e", "NodeList": "%N", "Reason": "%r", "Comment": "%k",
}  # fmt: skip
SACCT = {
    "JobId": "JobID", "JobState": "State", "ExitCode": "ExitCode", "Partition": "Partition", "SubmitTime": "Submit",
    "EligibleTime": "Eligible", "StartTime": "Start", "EndTime": "End", "TimeLimit": "Timelimit",
    "NodeList": "NodeList",
}  # fmt: skip
SINFO = {
    "Partition": "%P", "Nodes": "%D", "CPUs": "%c", "Memory": "%m", "TimeLimit": "%l", "JobSize": "%s", "Up": "%a",
    "State": "%T", "Gres": "%G",
}  # fmt: skip

_NOTHING = frozenset({"", "(null)", "N/A", "n/a", "None", "Unknown", "NONE", "None assigned"})
_OUT_OF_SERVICE = ("down", "drain", "fail", "maint", "unk", "power", "inval")
_MAX_HOSTS = 100_000
# A key begins the line or follows a blank; its value may hold anything, blanks and the names of other keys too.
_KEY = re.compile(r"(?:^| )([A-Z][\w:/.]*)=")
# The one user-chosen value that comes before Slurm's own fields.
_JOB_NAME = re.compile(r"(?<= )JobName=.*? (?=UserId=[^ ]*\(\d+\) GroupId=)")


@dataclass(frozen=True, slots=True, kw_only=True)
class JobInfo:
    """One job as Slurm describes it. Times are UTC."""

    job_id: str
    """Slurm's number; each member of an array gets one when it starts."""
    state: str
    """PENDING, RUNNING, COMPLETING, ...: the base state, without flags."""
    reason: str = ""
    """Why it waits or ended; empty if Slurm gives none."""
    nodes: list[str] = field(default_factory=list)
    restarts: int = 0
    submitted: datetime | None = None
    eligible: datetime | None = None
    """When dependencies and delays first allowed it to start."""
    started: datetime | None = None
    """Actual start, or the one Slurm expects."""
    ended: datetime | None = None
    """Actual end, or the one the time limit sets."""
    time_limit_s: int | None = None
    """None: no limit, or unknown."""
    partition: str = ""
    exit_code: str = ""
    """CODE:SIGNAL of the batch script."""
    comment: str = ""
    array_job_id: str = ""
    array_task_id: str = ""
    """A number, or a list such as 1-2%1 for members that are pending together; empty if the job is not an array."""
    excluded: list[str] = field(default_factory=list)
    """Nodes it must not get."""

    @property
    def name(self) -> str:
        """ARRAY_TASK for a member of an array, otherwise its number."""
        return f"{self.array_job_id}_{self.array_task_id}" if self.array_task_id else self.job_id

    @property
    def finished(self) -> bool:
        return self.state in FINISHED_STATES


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeKind:
    """Nodes of a partition that are alike."""

    count: int
    cpus: int
    """As Slurm counts them: hardware threads where it allocates those."""
    memory_mib: int
    gpus: dict[str, int] = field(default_factory=dict)
    """Number by type; the type is empty if the site names none."""
    state: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """A partition, with the kinds of nodes in it."""

    name: str
    is_default: bool = False
    is_up: bool = True
    time_limit_s: int | None = None
    """None: no limit."""
    max_nodes: int | None = None
    """Nodes a job may have; None: all."""
    kinds: list[NodeKind] = field(default_factory=list)

    @property
    def nodes(self) -> int:
        """Number of nodes in any state."""
        return sum(kind.count for kind in self.kinds)

    @property
    def working_nodes(self) -> int:
        return sum(kind.count for kind in self.kinds if not kind.state.startswith(_OUT_OF_SERVICE))


def parse_jobs(text: str) -> list[JobInfo]:
    """`scontrol --oneliner show job`, one job a line."""
    return [parse_job(line) for line in text.splitlines() if line.startswith("JobId=")]


def parse_job(line: str) -> JobInfo:
    """One line of it. Text in a job name or comment is never taken for another field.

    Raises:
        LauncherError: the line does not describe a job.
    """
    line = _JOB_NAME.sub("", line, count=1)
    keys = list(_KEY.finditer(line))
    ends = [key.start() for key in keys[1:]] + [len(line)]
    # The first of two wins: what users type (comment, paths) comes after Slurm's own fields.
    fields = {key[1]: line[key.end() : end].strip() for key, end in reversed(list(zip(keys, ends, strict=False)))}
    if not {"JobId", "JobState"} <= fields.keys():
        raise LauncherError(f"scontrol printed something unexpected: {line[:200]!r}")
    return _job(fields)


def parse_squeue(text: str) -> list[JobInfo]:
    """`squeue --noheader` with the SQUEUE format; restarts and exclusions are not in it."""
    return [_job(row) for row in _rows(text, SQUEUE)]


def parse_sacct(text: str) -> list[JobInfo]:
    """`sacct --allocations --noheader --parsable2` with the SACCT format."""
    return [_job(row) for row in _rows(text, SACCT)]


def _rows(text: str, names: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Lines of cells between `|`; the last cell may hold `|` itself, other lines are passed over."""
    for line in text.splitlines():
        cells = line.split("|", len(names) - 1)
        if len(cells) == len(names):
            yield dict(zip(names, (cell.strip() for cell in cells), strict=True))


def _job(fields: Mapping[str, str]) -> JobInfo:
    text = defaultdict(str, {key: value for key, value in fields.items() if value not in _NOTHING})
    array, _, task = fields["JobId"].partition("_")  # as sacct writes a member of an array
    task = text["ArrayTaskId"] or task
    return JobInfo(
        job_id=fields["JobId"],
        state=re.split("[+ ]", fields["JobState"])[0],  # PENDING+REQUEUED, CANCELLED by 1000
        reason=text["Reason"],
        nodes=hostnames(text["NodeList"]),
        restarts=_count(text["Restarts"]),
        submitted=parse_slurm_time(text["SubmitTime"]),
        eligible=parse_slurm_time(text["EligibleTime"]),
        started=parse_slurm_time(text["StartTime"]),
        ended=parse_slurm_time(text["EndTime"]),
        time_limit_s=parse_duration_s(text["TimeLimit"]),
        partition=text["Partition"],
        exit_code=text["ExitCode"],
        comment=text["Comment"],
        array_job_id=(text["ArrayJobId"] or array) if task else "",
        array_task_id=task,
        excluded=hostnames(text["ExcNodeList"]),
    )


def _count(text: str) -> int:
    return int(text) if text.isdigit() else 0


def parse_partitions(text: str) -> list[Partition]:
    """`sinfo --all --exact --noheader` with the SINFO format, one kind of nodes a line."""
    found: dict[str, Partition] = {}
    for row in _rows(text, SINFO):
        largest = row["JobSize"].rpartition("-")[2]
        partition = Partition(
            name=row["Partition"].removesuffix("*"),
            is_default=row["Partition"].endswith("*"),
            is_up=row["Up"].startswith("up"),
            time_limit_s=parse_duration_s(row["TimeLimit"]),
            max_nodes=int(largest) if largest.isdigit() else None,
        )
        kind = NodeKind(
            count=_count(row["Nodes"]),
            cpus=_count(row["CPUs"].rstrip("+")),
            memory_mib=_count(row["Memory"].rstrip("+")),
            gpus=parse_gpus(row["Gres"]),
            state=row["State"].rstrip("*~#!%$@^-+").lower(),
        )
        kinds = found.setdefault(partition.name, partition).kinds
        if kind.count:
            kinds.append(kind)
    return list(found.values())


_GRES = re.compile(
    r"gpu(?::(?P<kind>(?!no_consume)[^:,(]*[^:,(\d][^:,(]*))?(?::no_consume)?(?::(?P<count>\d+))?(?:\(.*\))?"
)


def parse_gpus(text: str) -> dict[str, int]:
    """GPUs of a node by type, from `gpu:h100:4(S:0-1),gpu:a100:2,shard:8`; type "" if none is named."""
    gpus: dict[str, int] = {}
    for match in map(_GRES.fullmatch, _split_outside_brackets(text)):
        if match is not None:
            kind = match["kind"] or ""
            gpus[kind] = gpus.get(kind, 0) + int(match["count"] or 1)
    return gpus


def parse_duration_s(text: str) -> int | None:
    """Seconds of `[DAYS-]HH:MM:SS`, `MM:SS` or minutes; None for UNLIMITED, Partition_Limit and the like."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text.strip())
    if match is None:
        return None
    days, first, second, third = (int(part) if part else 0 for part in match.groups())
    if match[1] or match[4]:  # after days, and as one of three, the first number is hours
        return days * 86_400 + first * 3600 + second * 60 + third
    return first * 60 + second


def parse_slurm_time(text: str) -> datetime | None:
    """A time printed under TZ=UTC, without a zone; None for Unknown and the like."""
    try:
        return datetime.fromisoformat(text.strip()).replace(tzinfo=UTC)
    except ValueError:
        return None


def hostnames(nodelist: str) -> list[str]:
    """The nodes of a Slurm node list such as `n[1-3,07],gpu[01-02]-[a]`, in the order given.

    Raises:
        LauncherError: brackets that do not match, an invalid range, or more names than any cluster has.
    """
    names: list[str] = []
    for part in _split_outside_brackets(nodelist):
        # Texts and the contents of brackets in turn.
        pieces = re.split(r"\[([^\[\]]*)\]", part)
        if any("[" in text or "]" in text for text in pieces[::2]):
            raise LauncherError(f"{nodelist!r} is not a list of nodes: its brackets do not match")
        choices = [_range(text, nodelist) if index % 2 else [text] for index, text in enumerate(pieces)]
        if len(names) + math.prod(map(len, choices)) > _MAX_HOSTS:
            raise LauncherError(f"{nodelist!r} names more than {_MAX_HOSTS:,} nodes")
        names += ["".join(chosen) for chosen in product(*choices)]
    return names


def _split_outside_brackets(text: str) -> list[str]:
    parts = (part.strip() for part in re.split(r",(?![^\[(]*[\])])", text))
    return [part for part in parts if part not in _NOTHING]


def _range(text: str, nodelist: str) -> list[str]:
    numbers: list[str] = []
    for piece in text.split(","):
        low, dash, high = piece.partition("-")
        if not dash:
            numbers.append(piece)
        elif low.isdigit() and high.isdigit() and 0 <= int(high) - int(low) < _MAX_HOSTS:
            numbers += [f"{number:0{len(low)}d}" for number in range(int(low), int(high) + 1)]
        else:
            raise LauncherError(f"{nodelist!r} is not a list of nodes: {piece!r} is not a range")
    return numbers
