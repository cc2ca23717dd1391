"""What srun and slurmd say about the end of an attempt, read into facts."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum


class Word(Enum):
    """One kind of message."""

    exited = "exited"
    """Ranks ended with an exit code."""
    signalled = "signalled"
    """Ranks were ended by a signal."""
    out_of_memory = "out_of_memory"
    node_failure = "node_failure"
    preempted = "preempted"
    time_limit = "time_limit"
    requeued = "requeued"
    cancelled = "cancelled"
    start_failed = "start_failed"
    """The ranks could not be started at all, or not on that node."""
    unreachable = "unreachable"
    """Slurm cannot talk to a node or to its controller."""


@dataclass(frozen=True, slots=True)
class StarterFact:
    """One message, with what it names."""

    word: Word
    line: str
    node: str = ""
    ranks: list[int] = field(default_factory=list)
    exit_code: int | None = None
    """Of the ranks; -N when signal N ended them."""


_SIGNALS = {
    "Hangup": 1,
    "Interrupt": 2,
    "Quit": 3,
    "Illegal instruction": 4,
    "Trace/breakpoint trap": 5,
    "Aborted": 6,
    "Bus error": 7,
    "Floating point exception": 8,
    "Killed": 9,
    "User defined signal 1": 10,
    "Segmentation fault": 11,
    "User defined signal 2": 12,
    "Broken pipe": 13,
    "Terminated": 15,
}
_TASKS = re.compile(r"srun: (?:error: )?(?P<node>[\w.\-]+): tasks? (?P<ranks>[\d,\- ]+?): (?P<what>.+)")
_BARE_TASKS = re.compile(r"srun: (?:error: )?tasks? (?P<ranks>[\d,\- ]+?): (?P<what>.+)")
_EXITED = re.compile(r"Exited with exit code (\d+)")


def starter_facts(text: str) -> list[StarterFact]:
    """Facts in the order they were said. Pure; lines that say nothing about the end are passed over."""
    found = []
    for line in text.splitlines():
        fact = _task_fact(line) or _other_fact(line)
        if fact is not None:
            found.append(fact)
    return found


def _task_fact(line: str) -> StarterFact | None:
    match = _TASKS.match(line) or _BARE_TASKS.match(line)
    if match is None:
        return None
    node = match.groupdict().get("node") or ""
    ranks = expand_numbers(match["ranks"].replace(" ", ""))
    what = match["what"].removesuffix(" (core dumped)").strip()
    exited = _EXITED.match(what)
    if exited:
        return StarterFact(Word.exited, line, node, ranks, int(exited[1]))
    if what.startswith(("Out Of Memory", "OOM Killed")):
        return StarterFact(Word.out_of_memory, line, node, ranks, -9)
    if what in _SIGNALS:
        return StarterFact(Word.signalled, line, node, ranks, -_SIGNALS[what])
    return None


# A step that slurmd ends for its own reasons says so in the log of its first rank, srun's own words come beside.
_OTHER = (
    (Word.preempted, re.compile(r"DUE TO PREEMPTION")),
    (Word.time_limit, re.compile(r"DUE TO TIME LIMIT")),
    (Word.node_failure, re.compile(r"srun: error: Node failure on (?P<node>[\w.\-]+)")),
    (Word.node_failure, re.compile(r"CANCELLED AT \S+ DUE TO NODE (?:(?P<node>[\w.\-]+) )?FAILURE")),
    (Word.requeued, re.compile(r"DUE TO JOB REQUEUE")),
    (Word.out_of_memory, re.compile(r"(?:slurmstepd-(?P<node>[\w.\-]+): )?.*[Dd]etected \d+ oom[-_]kill event")),
    (Word.out_of_memory, re.compile(r"Exceeded (?:job|step) memory limit|exceeded memory limit \(")),
    (Word.cancelled, re.compile(r"\*\*\* JOB \S+ ON \S+ CANCELLED AT \S+ \*\*\*")),
    (Word.start_failed, re.compile(r"[Tt]ask launch for \S+ failed on node (?P<node>[\w.\-]+)")),
    (Word.start_failed, re.compile(r"(?:slurmstepd-(?P<node>[\w.\-]+): )?.*execve\(\): \S+: ")),
    (Word.start_failed, re.compile(r"srun: error: (?:Unable to (?:create step|allocate resources)|Only allocated )")),
    (Word.unreachable, re.compile(r"Unable to contact slurm controller|Zero Bytes were transmitted or received")),
)


def _other_fact(line: str) -> StarterFact | None:
    if not line.startswith(("srun:", "slurmstepd", "slurmd")):
        return None
    for word, pattern in _OTHER:
        match = pattern.search(line)
        if match is not None:
            return StarterFact(word, line, match.groupdict().get("node") or "")
    return None


def expand_numbers(text: str) -> list[int]:
    """0-2,5 as [0, 1, 2, 5]; what is no number is left out."""
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        if first.isdigit():
            found += range(int(first), (int(last) if last.isdigit() else int(first)) + 1)
    return found
