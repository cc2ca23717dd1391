"""The ranks find each other before anything large is loaded, and whoever does not come is named with its node.

All ranks register in a store that rank 0 holds; rank 0 alone decides: everybody is here, somebody is missing, or a stop
signal came meanwhile. So all ranks come to the same end, and none waits for one that has left.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from launcher.errors import Preempted, RanksMissing, RendezvousFailed
from launcher.runs.rank_environment import rank_name
from launcher.train.stop import STOP

STOPPED_WAIT_S = 20.0
"""How long a rank that is told to stop waits for the others, so that all leave together."""

_MOST_NAMED = 8
_PATIENCE_S = 15.0
"""Ranks other than 0 wait so much longer: rank 0 may have started later, and is the one who knows who is missing."""
_LAST_WORDS_S = 3.0
# Ranks that come later still find no store, but a signal of their starter, which sees the first ones leave.
_LATE_COMERS_S = 5.0
_GO, _STOP, _MISSING = "go", "stop", "missing"

T = TypeVar("T")


def find_all(rank: int, size: int, *, limit_s: float) -> Store:
    """A store that every rank is connected to; all of them have come. Ranks: all, more than one.

    Raises: RanksMissing naming who did not come within `limit_s`; Preempted when any rank was told to stop meanwhile.
    """
    deadline = time.monotonic() + limit_s
    store = _connect(rank, size, deadline, limit_s)
    _asked(lambda: store.set(f"here/{rank}", socket.gethostname()))
    if rank == 0:
        decision = _decide(store, size, deadline)
    else:
        decision = _await_decision(store, rank, deadline + _PATIENCE_S)
        _asked(lambda: store.add("told", 1))
    if decision == _STOP:
        raise _preempted()
    if decision != _GO:
        missing = [int(number) for number in decision.split()[1:]]
        raise RanksMissing(
            f"{_named(missing)} did not answer within {limit_s:.0f} s (rendezvous {_where()})", ranks=missing
        )
    return store


def first_collective(store: Store, rank: int, size: int, collective: Callable[[], None]) -> None:
    """Runs what makes the ranks talk to each other directly, under the short time limit it was given. Ranks: all.

    Raises: RanksMissing naming who did not take part; RendezvousFailed.
    """
    try:
        collective()
    except (dist.DistError, RuntimeError) as error:
        text = str(error).splitlines()[0]
        silent = _asked(lambda: _silent_ranks(store, rank, size))
        if silent:
            raise RanksMissing(
                f"{_named(silent)} reached {_where()} but took no part in the first collective: {text}", ranks=silent
            ) from error
        raise RendezvousFailed(
            f"{rank_name(os.environ, rank)}: every rank reached {_where()}, but not each other: {text}. Between the "
            f"nodes another network may be needed: {_other_network()}",
            rank=rank,
        ) from error
    _asked(lambda: store.set(f"talked/{rank}", ""))


def _other_network() -> str:
    if "SLURM_JOB_ID" in os.environ:
        return "cluster.environment={GLOO_SOCKET_IFNAME: eth0, NCCL_SOCKET_IFNAME: eth0}"
    return "export GLOO_SOCKET_IFNAME=eth0 NCCL_SOCKET_IFNAME=eth0 on each machine before the start"


def _connect(rank: int, size: int, deadline: float, limit_s: float) -> Store:
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    # torchrun's agent holds the store itself, and keeps it when it starts the ranks anew.
    of_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    hosts_it = rank == 0 and not of_agent
    if not hosts_it:
        _await_port(host, port, deadline, limit_s)
    try:
        store = TCPStore(
            host, port, size, hosts_it, timeout=timedelta(seconds=max(limit_s, 1.0)), wait_for_workers=False
        )
    except (dist.DistError, RuntimeError, OSError) as error:
        raise RendezvousFailed(
            f"rank {rank} of {size} could not meet the others at {_where()}: {error}", rank=rank
        ) from error
    return PrefixStore(f"launcher/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _await_port(host: str, port: int, deadline: float, limit_s: float) -> None:
    """Waits until somebody listens there. By hand: inside torch's own waiting a stop signal would go unnoticed."""
    stop_by, why = float("inf"), ""
    while True:
        try:
            socket.create_connection((host, port), timeout=2.0).close()
            return
        except OSError as error:
            why = str(error)
        now = time.monotonic()
        if STOP.requested:
            stop_by = min(stop_by, now + STOPPED_WAIT_S)
            if now > stop_by:
                raise _preempted()
        if now > deadline:
            raise RanksMissing(
                f"{rank_name(os.environ, 0)} did not answer within {limit_s:.0f} s (rendezvous {_where()}): {why}",
                ranks=[0],
            )
        time.sleep(0.2)


def _decide(store: Store, size: int, deadline: float) -> str:
    """What all ranks do. Ranks: 0."""
    coming = list(range(1, size))
    while True:
        while coming and _is_here(store, coming[0]):
            del coming[0]
        if not coming:
            _asked(lambda: store.set("decision", _GO))
            return _GO
        if STOP.requested or store.check(["stop"]):
            _announce(store, _STOP, listeners=size - 1, wait_s=_LATE_COMERS_S)
            return _STOP
        if time.monotonic() > deadline:
            missing = [rank for rank in coming if not _is_here(store, rank)]
            if missing:
                decision = " ".join([_MISSING, *map(str, missing)])
                _announce(store, decision, listeners=size - 1 - len(missing), wait_s=_LAST_WORDS_S)
                return decision
        time.sleep(0.05)


def _is_here(store: Store, rank: int) -> bool:
    return bool(_asked(lambda: store.check([f"here/{rank}"])))


def _announce(store: Store, decision: str, *, listeners: int, wait_s: float) -> None:
    """Tells the others, and stays until they know: the store goes with this process."""
    store.set("decision", decision)
    until = time.monotonic() + wait_s
    while store.add("told", 0) < listeners and time.monotonic() < until:
        time.sleep(0.05)


def _await_decision(store: Store, rank: int, deadline: float) -> str:
    pause_s, stop_by = 0.02, float("inf")
    while not _asked(lambda: store.check(["decision"])):
        now = time.monotonic()
        if STOP.requested and stop_by == float("inf"):
            stop_by = now + STOPPED_WAIT_S
            _asked(lambda: store.set("stop", ""))
        if now > stop_by:
            raise _preempted()
        if now > deadline:
            raise RanksMissing(
                f"{rank_name(os.environ, 0)}, which says who has come, did not answer (rendezvous {_where()})",
                ranks=[0],
            )
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, 0.5)
    return bytes(_asked(lambda: store.get("decision"))).decode()


def _silent_ranks(store: Store, rank: int, size: int) -> list[int]:
    """Ranks of which the store hears nothing, neither success nor failure, for a while after this one failed."""
    store.set(f"failed/{rank}", "")
    until = time.monotonic() + _LAST_WORDS_S
    silent = [other for other in range(size) if other != rank]
    while silent and time.monotonic() < until:
        silent = [other for other in silent if not _is_heard(store, other)]
        time.sleep(0.1)
    return silent


def _is_heard(store: Store, rank: int) -> bool:
    return store.check([f"failed/{rank}"]) or store.check([f"talked/{rank}"])


def _asked(ask: Callable[[], T]) -> T:
    """A question to the store; when it is gone, so is who holds it."""
    try:
        return ask()
    except (dist.DistError, RuntimeError) as error:
        if STOP.requested:
            raise _preempted() from error
        raise RanksMissing(
            f"{rank_name(os.environ, 0)}, where all ranks meet, is gone (rendezvous {_where()}): "
            f"{str(error).splitlines()[0]}",
            ranks=[0],
        ) from error


def _preempted() -> Preempted:
    return STOP.preempted("while the ranks met; nothing was trained yet in this attempt")


def _named(ranks: list[int]) -> str:
    names = [rank_name(os.environ, rank) for rank in ranks[:_MOST_NAMED]]
    more = len(ranks) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")


def _where() -> str:
    return f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
