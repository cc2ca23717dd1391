"""Messages of srun and slurmd about the end of an attempt."""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass, field
from enum import Enum


class MessageKind(Enum):
    """The event that a message reports."""

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


@dataclass(frozen=True, slots=True)
class SlurmMessage:
    """One line of srun or slurmd."""

    kind: MessageKind
    line: str
    node: str = ""
    ranks: list[int] = field(default_factory=list)
    exit_code: int | None = None
    """Of the ranks; -N when signal N ended them."""


_SIGNALS = {signal.strsignal(number): int(number) for number in signal.valid_signals()}
_TASKS = re.compile(r"srun: (?:error: )?(?:(?P<node>[\w.\-]+): )?tasks? (?P<ranks>[\d,\- ]+?): (?P<what>.+)")
_EXITED = re.compile(r"Exited with exit code (\d+)")


def parse_messages(text: str) -> list[SlurmMessage]:
    """Messages in the order of their lines. Pure; lines that say nothing about the end are passed over."""
    found = ((_task_message(line) or _other_message(line)) for line in text.splitlines())
    return [message for message in found if message is not None]


def _task_message(line: str) -> SlurmMessage | None:
    match = _TASKS.match(line)
    if match is None:
        return None
    node, ranks = match["node"] or "", expand_numbers(match["ranks"].replace(" ", ""))
    what = match["what"].removesuffix(" (core dumped)").strip()
    if exited := _EXITED.match(what):
        return SlurmMessage(MessageKind.exited, line, node, ranks, int(exited[1]))
    if what.startswith(("Out Of Memory", "OOM Killed")):
        return SlurmMessage(MessageKind.out_of_memory, line, node, ranks, -signal.SIGKILL)
    if what in _SIGNALS:
        return SlurmMessage(MessageKind.signalled, line, node, ranks, -_SIGNALS[what])
    return None


# slurmd writes why it ends a step into the log of the step's first rank; srun says other things meanwhile.
_OTHER = tuple(
    (kind, re.compile(pattern))
    for kind, pattern in (
        (MessageKind.preempted, r"DUE TO PREEMPTION"),
        (MessageKind.time_limit, r"DUE TO TIME LIMIT"),
        (MessageKind.node_failure, r"srun: error: Node failure on (?P<node>[\w.\-]+)"),
        (MessageKind.node_failure, r"CANCELLED AT \S+ DUE TO NODE (?:(?P<node>[\w.\-]+) )?FAILURE"),
        (MessageKind.requeued, r"DUE TO JOB REQUEUE"),
        (MessageKind.out_of_memory, r"(?:slurmstepd-(?P<node>[\w.\-]+): )?.*[Dd]etected \d+ oom[-_]kill event"),
        (MessageKind.out_of_memory, r"Exceeded (?:job|step) memory limit|exceeded memory limit \("),
        (MessageKind.cancelled, r"\*\*\* JOB \S+ ON \S+ CANCELLED AT \S+ \*\*\*"),
        (MessageKind.start_failed, r"[Tt]ask launch for \S+ failed on node (?P<node>[\w.\-]+)"),
        (MessageKind.start_failed, r"(?:slurmstepd-(?P<node>[\w.\-]+): )?.*execve\(\): \S+: "),
        (MessageKind.start_failed, r"srun: error: (?:Unable to (?:create step|allocate resources)|Only allocated )"),
    )
)


def _other_message(line: str) -> SlurmMessage | None:
    if not line.startswith(("srun:", "slurmstepd", "slurmd")):
        return None
    for kind, pattern in _OTHER:
        if match := pattern.search(line):
            return SlurmMessage(kind, line, match.groupdict().get("node") or "")
    return None


def expand_numbers(text: str) -> list[int]:
    """0-2,5 as [0, 1, 2, 5]; what is not a number is left out."""
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        if first.isdigit():
            found += range(int(first), (int(last) if last.isdigit() else int(first)) + 1)
    return found
