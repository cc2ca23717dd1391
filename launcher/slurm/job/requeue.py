"""Back into the queue, once and surely: also while the controller is away, and never twice."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Protocol

from launcher.errors import SlurmError, SlurmUnavailable
from launcher.slurm.client.parse import JobInfo, Partition

logger = logging.getLogger(__name__)

_WAITING = frozenset({"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT"})
_EXCLUDE_PAUSE_S = 0.5
_EXCLUDE_TRIES = 20


class Queue(Protocol):
    """What of `query.Slurm` is needed here."""

    def job(self, job_id: str) -> JobInfo | None: ...
    def requeue(self, job_id: str) -> None: ...
    def exclude(self, job_id: str, nodes: list[str]) -> None: ...
    def partitions(self) -> list[Partition]: ...


@dataclass(frozen=True, slots=True)
class Requeued:
    """What came of it."""

    done: bool
    by_slurm: bool = False
    """Slurm had put the job back by itself, as after preemption or the loss of a node."""
    excluded: tuple[str, ...] = ()
    """Nodes the job will not get."""
    problem: str = ""
    """Why it is not back in the queue, or may get a node it should not."""


def requeue_job(queue: Queue, job_id: str, *, restart: int, without: list[str], num_nodes: int = 1) -> Requeued:
    """Puts the job this process runs in back into the queue.

    A call may have been carried out although nobody answered, so the job is looked at before every call.

    Args:
        queue: patient; how long it waits for a controller that is away is its own setting.
        restart: how often the job had been restarted when this attempt began.
        without: nodes it should not get, besides those it has to avoid already.
        num_nodes: how many nodes it needs; where too few are left, none is left out.
    """
    try:
        info = queue.job(job_id)
        by_slurm = info is not None and _is_back(info, restart)
        if not by_slurm:
            _requeue(queue, job_id, restart)
    except SlurmError as error:
        return Requeued(done=False, problem=str(error))
    if not without:
        return Requeued(done=True, by_slurm=by_slurm)
    avoided = info.excluded if info is not None else []
    nodes = list(dict.fromkeys([*avoided, *without]))
    problem = _too_few_left(queue, info, nodes, num_nodes) or _exclude(queue, job_id, nodes)
    return Requeued(done=True, by_slurm=by_slurm, excluded=() if problem else tuple(nodes), problem=problem)


def _is_back(info: JobInfo, restart: int) -> bool:
    return info.state in _WAITING or info.restarts > restart


def _requeue(queue: Queue, job_id: str, restart: int) -> None:
    try:
        queue.requeue(job_id)
    except SlurmUnavailable:
        raise
    except SlurmError:
        # Refused because an earlier, unanswered call had been carried out?
        info = queue.job(job_id)
        if info is None or not _is_back(info, restart):
            raise


def _too_few_left(queue: Queue, info: JobInfo | None, excluded: list[str], num_nodes: int) -> str:
    """Why these nodes cannot be spared; empty if they can. A job that needs more than is left would wait for ever."""
    if info is None or not info.partition:
        return ""
    try:
        found = [partition for partition in queue.partitions() if partition.name in info.partition.split(",")]
    except SlurmError as error:
        return f"{', '.join(excluded)} is not excluded: {error}"
    usable = max((_usable(partition) for partition in found), default=0)
    if not found or usable - len(excluded) >= num_nodes:
        return ""
    why = f"the job needs {num_nodes} nodes, and partition {info.partition} has {usable} that work"
    return f"{', '.join(excluded)} is not excluded: {why}"


def _usable(partition: Partition) -> int:
    return sum(kind.count for kind in partition.kinds if not kind.state.startswith(("down", "drain", "fail", "unk")))


def _exclude(queue: Queue, job_id: str, nodes: list[str]) -> str:
    """Empty, or why it could not be done. Slurm refuses for a moment while it takes the job apart."""
    problem = ""
    for _ in range(_EXCLUDE_TRIES):
        try:
            queue.exclude(job_id, nodes)
            return ""
        except SlurmError as error:
            problem = str(error)
            logger.debug("%s", problem)
            time.sleep(_EXCLUDE_PAUSE_S)
    return f"it may start on {', '.join(nodes)} again: {problem}"
