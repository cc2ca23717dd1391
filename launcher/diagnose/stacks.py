"""Which rank of a hang keeps the others waiting, and where it is, from the stacks the ranks dumped."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from launcher.diagnose.evidence import Evidence, RankEvidence
from launcher.diagnose.log_tail import frame_text, frames_of, is_library

_THREAD = re.compile(r"^(?:Current thread|Thread) 0x[0-9a-f]+.*$", re.MULTILINE)
_COLLECTIVE = re.compile(r"torch/distributed/(?!elastic)|deepspeed/comm/")
# Ranks also wait for each other inside a backward pass.
_MAY_WAIT = re.compile(r"torch/autograd/|deepspeed/runtime/|torch/nn/parallel/|accelerate/")
# Where a value is fetched from a GPU, which has to finish its collectives first; Python sees no more than the line.
_FETCHES = re.compile(r"launcher/train/(?:step|engines?|world|validation|loss)\.py")
_WRAPPERS = re.compile(r"launcher/train/world\.py")


@dataclass(frozen=True, slots=True)
class HungRank:
    """The rank to blame and where it is."""

    rank: RankEvidence
    place: str
    """file:line function; empty where it dumped nothing."""
    why: str


def find_hang(evidence: Evidence) -> HungRank | None:
    """The rank that does not wait for others: one that cannot even dump its stack, or whose stack is in no collective.

    Pure. None without ranks. Where every rank waits in a collective, the one that did the least is named.
    """
    if not evidence.ranks:
        return None
    dumped = [rank for rank in evidence.ranks if rank.stacks.strip()]
    silent = [rank for rank in evidence.ranks if not rank.stacks.strip() and rank.end is None]
    if dumped and silent:
        worst = min(silent, key=_progress)
        return HungRank(worst, "", "it dumped no stack, as a process that is stopped or whose node is down")
    if dumped:
        on_gpu = evidence.derived is not None and evidence.derived.device == "cuda"
        waits = {rank.rank: _waits(rank.stacks, on_gpu=on_gpu) for rank in dumped}
        places = Counter(hang_place(rank.stacks) for rank in dumped)
        # Of several that may be it, the one that is where the others are not.
        worst = min(dumped, key=lambda rank: (waits[rank.rank], places[hang_place(rank.stacks)], *_progress(rank)))
        why = "the others wait for it" if waits[worst.rank] < 2 else "all ranks wait in a collective"
        return HungRank(worst, hang_place(worst.stacks), why)
    stalled = evidence.report.stall.rank if evidence.report.stall is not None else None
    worst = next((rank for rank in evidence.ranks if rank.rank == stalled), min(evidence.ranks, key=_progress))
    return HungRank(worst, "", "no rank dumped its stack")


def main_thread(stacks: str) -> str:
    """The newest dump of the thread that trains."""
    newest = stacks[stacks.rfind("Timeout (") :] if "Timeout (" in stacks else stacks
    starts = [match.start() for match in _THREAD.finditer(newest)]
    threads = [newest[start:end] for start, end in zip(starts, [*starts[1:], len(newest)], strict=True)]
    ours = [thread for thread in threads if "launcher/worker.py" in thread]
    # Python dumps its main thread last.
    return (ours or threads or [newest])[-1]


def hang_place(stacks: str) -> str:
    """`file:line function` of the innermost frame outside libraries, or of the innermost one."""
    frames = frames_of(main_thread(stacks))
    own = [frame for frame in frames if not is_library(frame["file"])]
    frames = [frame for frame in own if not _WRAPPERS.search(frame["file"])] or own or frames
    return frame_text(frames[0]) if frames else ""


def _waits(stacks: str, *, on_gpu: bool) -> int:
    """0: does something of its own; 1: may be waiting; 2: waits in a collective."""
    files = [frame["file"] for frame in frames_of(main_thread(stacks))]
    if any(_COLLECTIVE.search(file) for file in files):
        return 2
    fetches = on_gpu and bool(files) and _FETCHES.search(files[0]) is not None
    return 1 if fetches or any(_MAY_WAIT.search(file) for file in files) else 0


def _progress(rank: RankEvidence) -> tuple[int, str]:
    return (-1, "") if rank.beat is None else (rank.beat.step, rank.beat.time)
