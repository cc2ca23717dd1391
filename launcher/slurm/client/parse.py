"""What Slurm's tools print, as values. Pure; for the text of Slurm 22.05 to 25.x."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import product

from launcher.errors import LauncherError

FINISHED_STATES = frozenset(
    {
        "BOOT_FAIL",
        "CANCELLED",
        "COMPLETED",
        "DEADLINE",
        "FAILED",
        "NODE_FAIL",
        "OUT_OF_MEMORY",
        "PREEMPTED",
        "REVOKED",
        "TIMEOUT",
    }
)
"""Job states that do not change any more."""

_NOTHING = frozenset({"", "(null)", "N/A", "n/a", "None", "Unknown", "NONE"})
_MAX_HOSTS = 100_000
# A key begins the line or follows a blank; what follows its = may hold anything, blanks and other keys' names too.
_KEY = re.compile(r"(?:^| )([A-Z][\w:/.]*)=")
# The one field that comes early and holds what somebody typed.
_JOB_NAME = re.compile(r"(?<= )JobName=.*? (?=UserId=[^ ]*\(\d+\) GroupId=)")


@dataclass(frozen=True, slots=True, kw_only=True)
class JobInfo:
    """One job as Slurm tells it. Times are UTC."""

    job_id: str
    """Slurm's own number; a member of an array that has begun has one of its own."""
    state: str
    """PENDING, RUNNING, COMPLETING, ...: the base state, without flags."""
    reason: str = ""
    """Why it waits or ended; empty where Slurm gives none."""
    nodes: list[str] = field(default_factory=list)
    restarts: int = 0
    submitted: datetime | None = None
    eligible: datetime | None = None
    """When it could have started, as far as dependencies and delays are concerned."""
    started: datetime | None = None
    """Real start, or the one Slurm expects."""
    ended: datetime | None = None
    """Real end, or the one the time limit sets."""
    time_limit_s: int | None = None
    """None: no limit, or not told."""
    partition: str = ""
    exit_code: str = ""
    """CODE:SIGNAL of the batch script."""
    comment: str = ""
    stdout: str = ""
    array_job_id: str = ""
    array_task_id: str = ""
    """A number, or a list such as 1-2%1 for members that wait together; empty for a job that is no array."""
    excluded: list[str] = field(default_factory=list)
    """Nodes it must not get."""
    dependency: str = ""

    @property
    def name(self) -> str:
        """What people call the job: ARRAY_TASK for a member of an array, else its number."""
        return f"{self.array_job_id}_{self.array_task_id}" if self.array_task_id else self.job_id

    @property
    def finished(self) -> bool:
        return self.state in FINISHED_STATES


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeKind:
    """Nodes of a partition that are alike."""

    count: int
    cpus: int
    """As Slurm counts them: hardware threads where it gives those out."""
    memory_mib: int
    gpus: dict[str, int] = field(default_factory=dict)
    """Number by type; the type is empty where the site names none."""
    features: list[str] = field(default_factory=list)
    state: str = ""

    @property
    def gpu_count(self) -> int:
        return sum(self.gpus.values())


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
        """Nodes there are, whatever their state."""
        return sum(kind.count for kind in self.kinds)


def parse_jobs(text: str) -> list[JobInfo]:
    """`scontrol --oneliner show job`, one job a line."""
    return [parse_job(line) for line in text.splitlines() if line.startswith("JobId=")]


def parse_job(line: str) -> JobInfo:
    """One line of it. What a job name or comment holds is never taken for another field.

    Raises:
        LauncherError: it is no such line.
    """
    fields = _fields(_JOB_NAME.sub("", line, count=1))
    if "JobId" not in fields or "JobState" not in fields:
        raise LauncherError(f"scontrol printed what is not known: {line[:200]!r}")
    return JobInfo(
        job_id=fields["JobId"],
        state=fields["JobState"].split("+")[0],
        reason=_text(fields, "Reason"),
        nodes=hostnames(_text(fields, "NodeList")),
        restarts=_count(fields.get("Restarts", "")),
        submitted=parse_slurm_time(fields.get("SubmitTime", "")),
        eligible=parse_slurm_time(fields.get("EligibleTime", "")),
        started=parse_slurm_time(fields.get("StartTime", "")),
        ended=parse_slurm_time(fields.get("EndTime", "")),
        time_limit_s=parse_duration_s(fields.get("TimeLimit", "")),
        partition=_text(fields, "Partition"),
        exit_code=_text(fields, "ExitCode"),
        comment=_text(fields, "Comment"),
        stdout=_last(line, "StdOut"),
        array_job_id=_text(fields, "ArrayJobId"),
        array_task_id=_text(fields, "ArrayTaskId"),
        excluded=hostnames(_text(fields, "ExcNodeList")),
        dependency=_text(fields, "Dependency"),
    )


def _fields(line: str) -> dict[str, str]:
    """Values by key. The first of two wins: what users type (comment, paths) comes after what Slurm says."""
    places = list(_KEY.finditer(line))
    fields: dict[str, str] = {}
    ends = [place.start() for place in places[1:]] + [len(line)]
    for place, end in zip(places, ends, strict=False):
        value = line[place.end() : end]
        fields.setdefault(place.group(1), value.strip())
    return fields


def _last(line: str, key: str) -> str:
    """The value of a key that comes after the comment; a comment that holds the same key does not win."""
    _, found, rest = line.rpartition(f" {key}=")
    if not found:
        return ""
    end = _KEY.search(rest)
    value = rest[: end.start()] if end else rest
    return "" if value.strip() in _NOTHING else value.strip()


def _text(fields: dict[str, str], key: str) -> str:
    value = fields.get(key, "")
    return "" if value in _NOTHING else value


def _count(text: str) -> int:
    return int(text) if text.isdigit() else 0


SQUEUE_FORMAT = "%A|%F|%K|%T|%P|%l|%V|%S|%e|%N|%r|%k"
"""Fields of squeue for parse_squeue; the comment, which may hold anything, comes last."""


def parse_squeue(text: str) -> list[JobInfo]:
    """`squeue --noheader --format=SQUEUE_FORMAT`; restarts, paths and exclusions are not in it."""
    jobs = []
    for line in text.splitlines():
        cells = [_plain(cell) for cell in line.split("|", SQUEUE_FORMAT.count("|"))]
        if len(cells) == SQUEUE_FORMAT.count("|") + 1:
            job_id, array, task, state, partition, limit, submitted, started, ended, nodes, reason, comment = cells
            jobs.append(
                JobInfo(
                    job_id=job_id,
                    state=state,
                    reason=reason,
                    nodes=hostnames(nodes),
                    submitted=parse_slurm_time(submitted),
                    started=parse_slurm_time(started),
                    ended=parse_slurm_time(ended),
                    time_limit_s=parse_duration_s(limit),
                    partition=partition,
                    comment=comment,
                    array_job_id=array if task else "",
                    array_task_id=task,
                )
            )
    return jobs


SACCT_FORMAT = "JobID,State,ExitCode,Partition,Submit,Eligible,Start,End,Timelimit,NodeList"
"""Fields of sacct for parse_sacct."""


def parse_sacct(text: str) -> list[JobInfo]:
    """`sacct --allocations --noheader --parsable2 --format=SACCT_FORMAT`: jobs as the site's accounting knows them."""
    jobs = []
    for line in text.splitlines():
        cells = [_plain(cell) for cell in line.split("|")]
        if len(cells) != SACCT_FORMAT.count(",") + 1:
            continue
        name, state, exit_code, partition, submitted, eligible, started, ended, limit, nodes = cells
        array, is_member, task = name.partition("_")
        jobs.append(
            JobInfo(
                job_id=name,
                state=state.split(" ")[0].rstrip("+"),  # CANCELLED by 1000
                exit_code=exit_code,
                partition=partition,
                submitted=parse_slurm_time(submitted),
                eligible=parse_slurm_time(eligible),
                started=parse_slurm_time(started),
                ended=parse_slurm_time(ended),
                time_limit_s=parse_duration_s(limit),
                nodes=[] if nodes.startswith("None") else hostnames(nodes),
                array_job_id=array if is_member else "",
                array_task_id=task,
            )
        )
    return jobs


def _plain(cell: str) -> str:
    cell = cell.strip()
    return "" if cell in _NOTHING else cell


SINFO_FORMAT = "%P|%D|%c|%m|%l|%s|%a|%T|%G|%f"
"""Fields of sinfo for parse_partitions."""


def parse_partitions(text: str) -> list[Partition]:
    """`sinfo --all --exact --noheader --format=SINFO_FORMAT`, one kind of nodes a line."""
    found: dict[str, Partition] = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split("|", SINFO_FORMAT.count("|"))]
        if len(cells) != SINFO_FORMAT.count("|") + 1:
            continue
        name, count, cpus, memory, limit, size, up, state, gres, features = cells
        partition = Partition(
            name=name.removesuffix("*"),
            is_default=name.endswith("*"),
            is_up=up.startswith("up"),
            time_limit_s=parse_duration_s(limit),
            max_nodes=int(largest) if (largest := size.rpartition("-")[2]).isdigit() else None,
        )
        kinds = found.setdefault(partition.name, partition).kinds
        if _count(count):
            kinds.append(
                NodeKind(
                    count=int(count),
                    cpus=_count(cpus.rstrip("+")),
                    memory_mib=_count(memory.rstrip("+")),
                    gpus=parse_gpus(gres),
                    features=[] if features in _NOTHING else features.split(","),
                    state=state.rstrip("*~#!%$@^-+").lower(),
                )
            )
    return list(found.values())


_GRES = re.compile(
    r"gpu(?::(?P<kind>(?!no_consume)[^:,(]*[^:,(\d][^:,(]*))?(?::no_consume)?(?::(?P<count>\d+))?(?:\(.*\))?"
)


def parse_gpus(text: str) -> dict[str, int]:
    """GPUs of a node by type, from `gpu:h100:4(S:0-1),gpu:a100:2,shard:8`; type "" where none is named."""
    gpus: dict[str, int] = {}
    for word in _split_outside(text, "()"):
        match = _GRES.fullmatch(word)
        if match is not None:
            kind = match.group("kind") or ""
            gpus[kind] = gpus.get(kind, 0) + int(match.group("count") or 1)
    return gpus


def parse_duration_s(text: str) -> int | None:
    """Seconds of `[DAYS-]HH:MM:SS`, `MM:SS` or minutes; None for UNLIMITED, Partition_Limit and the like."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text.strip())
    if match is None:
        return None
    days, first, second, third = (int(part) if part else 0 for part in match.groups())
    if match.group(1) or match.group(4):  # with days the first number is hours, as it is where three stand
        return days * 86_400 + first * 3600 + second * 60 + third
    return first * 60 + second


def parse_slurm_time(text: str) -> datetime | None:
    """A time printed under TZ=UTC, without a zone; None for Unknown and the like."""
    try:
        return datetime.fromisoformat(text.strip()).replace(tzinfo=UTC)
    except ValueError:
        return None


def hostnames(nodelist: str) -> list[str]:
    """Single names from Slurm's node list: `n[1-3,07],gpu[01-02]-[a]`; in the order given.

    Raises:
        LauncherError: brackets that do not close, a range that is none, or more names than any cluster has.
    """
    names: list[str] = []
    for word in _split_outside(nodelist, "[]"):
        parts = re.split(r"\[([^\[\]]*)\]", word)
        if any("[" in part or "]" in part for part in parts[::2]):
            raise LauncherError(f"{nodelist!r} is no list of nodes: its brackets do not match")
        choices = [_range(part, nodelist) if place % 2 else [part] for place, part in enumerate(parts)]
        size = 1
        for choice in choices:
            size *= len(choice)
        if len(names) + size > _MAX_HOSTS:
            raise LauncherError(f"{nodelist!r} names more than {_MAX_HOSTS:,} nodes")
        names += ["".join(pieces) for pieces in product(*choices)]
    return names


def _split_outside(text: str, brackets: str) -> list[str]:
    """Words between commas, where commas inside brackets do not count."""
    opening, closing = brackets[0], brackets[1]
    words, depth = [""], 0
    for letter in text.strip():
        depth += (letter == opening) - (letter == closing)
        if letter == "," and depth == 0:
            words.append("")
        else:
            words[-1] += letter
    return [word.strip() for word in words if word.strip() and word.strip() not in _NOTHING]


def _range(text: str, nodelist: str) -> list[str]:
    numbers: list[str] = []
    for piece in text.split(","):
        low, dash, high = piece.partition("-")
        if not dash:
            numbers.append(piece)
        elif low.isdigit() and high.isdigit() and 0 <= int(high) - int(low) < _MAX_HOSTS:
            numbers += [f"{number:0{len(low)}d}" for number in range(int(low), int(high) + 1)]
        else:
            raise LauncherError(f"{nodelist!r} is no list of nodes: {piece!r} is no range")
    return numbers
