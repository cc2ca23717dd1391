"""Requeues the job exactly once, even if the controller does not answer for a while."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from launcher.errors import SlurmError, SlurmUnavailable
from launcher.runs.attempts import AttemptRecord
from launcher.runs.scheduler import Requeued
from launcher.runs.states import SLURM_WAITING_STATES
from launcher.slurm.client.parse import JobInfo
from launcher.slurm.client.query import Slurm

logger = logging.getLogger(__name__)

_EXCLUDE_PAUSE_S = 0.5
_EXCLUDE_TRIES = 20


def requeue_job(slurm: Slurm, record: AttemptRecord, without: Sequence[str]) -> Requeued:
    """Requeues the job of an attempt, in which this process runs.

    A call without an answer may have been carried out, so the job's state is read before every call.

    Args:
        without: nodes to exclude, in addition to those excluded already; none if too few would be left.
    """
    job_id, restart = record.job_id, record.restart
    try:
        info = slurm.job(job_id)
        by_scheduler = info is not None and _is_back(info, restart)
        if not by_scheduler:
            _requeue(slurm, job_id, restart)
    except SlurmError as error:
        return Requeued(done=False, problem=str(error))
    if not without:
        return Requeued(done=True, by_scheduler=by_scheduler)
    avoided = info.excluded if info is not None else []
    nodes = list(dict.fromkeys([*avoided, *without]))
    problem = _too_few_left(slurm, info, nodes, len(record.nodes)) or _exclude(slurm, job_id, nodes)
    return Requeued(done=True, by_scheduler=by_scheduler, excluded=() if problem else tuple(nodes), problem=problem)


def _is_back(info: JobInfo, restart: int) -> bool:
    return info.state in SLURM_WAITING_STATES or info.restarts > restart


def _requeue(slurm: Slurm, job_id: str, restart: int) -> None:
    try:
        slurm.requeue(job_id)
    except SlurmUnavailable:
        raise
    except SlurmError:
        # An earlier call without an answer may have been carried out.
        info = slurm.job(job_id)
        if info is None or not _is_back(info, restart):
            raise


def _too_few_left(slurm: Slurm, info: JobInfo | None, excluded: list[str], num_nodes: int) -> str:
    """Why these nodes cannot be excluded: with too few nodes left the job would never start. Empty if they can."""
    if info is None or not info.partition:
        return ""
    try:
        found = [partition for partition in slurm.partitions() if partition.name in info.partition.split(",")]
    except SlurmError as error:
        return f"{', '.join(excluded)} is not excluded: {error}"
    usable = max((partition.working_nodes for partition in found), default=0)
    if not found or usable - len(excluded) >= num_nodes:
        return ""
    why = f"the job needs {num_nodes} nodes, and partition {info.partition} has {usable} that work"
    return f"{', '.join(excluded)} is not excluded: {why}"


def _exclude(slurm: Slurm, job_id: str, nodes: list[str]) -> str:
    """Why it failed; empty on success. Slurm refuses for a moment while the job is completing."""
    problem = ""
    for _ in range(_EXCLUDE_TRIES):
        try:
            slurm.exclude(job_id, nodes)
            return ""
        except SlurmError as error:
            problem = str(error)
            logger.debug("%s", problem)
            time.sleep(_EXCLUDE_PAUSE_S)
    return f"it may start on {', '.join(nodes)} again: {problem}"
