"""The ranks find each other before anything large is loaded; a rank that does not come is named with its node.

All ranks register in a store that rank 0 holds. Rank 0 alone decides: all ranks are here, some are missing, or a stop
signal came meanwhile. So all ranks come to the same end, and none waits for one that has left.
"""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from launcher.errors import Preempted, RanksMissing, RendezvousFailed
from launcher.runs.rank_environment import rank_label
from launcher.train.stop import STOP

STOPPED_WAIT_S = 20.0
"""How long a rank waits for the others after a stop signal, so that all leave together."""

_MOST_NAMED = 8
_PATIENCE_S = 15.0
"""Ranks other than 0 wait this much longer: rank 0 may have started later, and knows which ranks are missing."""
_SHORT_WAIT_S = 3.0
# Ranks that come later still find no store, but get a signal from their starter, which sees the first ones leave.
_STOP_WAIT_S = 5.0
_GO, _STOP, _MISSING = "go", "stop", "missing"


def find_all(rank: int, size: int, *, limit_s: float) -> Store:
    """A store to which all ranks are connected. Ranks: all, more than one.

    Raises: RanksMissing naming the ranks that did not come within `limit_s`; Preempted when any rank received a stop
    signal meanwhile.
    """
    deadline = time.monotonic() + limit_s
    store = _connect(rank, size, deadline, limit_s)
    with _store_of_rank_0():
        store.set(f"here/{rank}", socket.gethostname())
        if rank == 0:
            decision = _decide(store, size, deadline)
        else:
            decision = _await_decision(store, deadline + _PATIENCE_S)
            store.add("told", 1)
    if decision == _STOP:
        raise _preempted()
    if decision != _GO:
        missing = [int(number) for number in decision.split()[1:]]
        raise _missing(missing, f" did not answer within {limit_s:.0f} s (rendezvous {_where()})")
    return store


def first_collective(store: Store, rank: int, size: int, collective: Callable[[], None]) -> None:
    """Runs what connects the ranks directly, under a short time limit of its own. Ranks: all.

    Raises: RanksMissing naming the ranks that did not take part; RendezvousFailed.
    """
    try:
        collective()
    except (dist.DistError, RuntimeError) as error:
        text = str(error).splitlines()[0]
        with _store_of_rank_0():
            silent = _silent_ranks(store, rank, size)
        if silent:
            why = f" reached {_where()} but took no part in the first collective: {text}"
            raise _missing(silent, why) from error
        raise RendezvousFailed(
            f"{rank_label(os.environ, rank)}: every rank reached {_where()}, but not each other: {text}. Between the "
            f"nodes another network may be needed: {_other_network()}",
            rank=rank,
        ) from error
    with _store_of_rank_0():
        store.set(f"talked/{rank}", "")


def _other_network() -> str:
    if "SLURM_JOB_ID" in os.environ:
        return "cluster.environment={GLOO_SOCKET_IFNAME: eth0, NCCL_SOCKET_IFNAME: eth0}"
    return "export GLOO_SOCKET_IFNAME=eth0 NCCL_SOCKET_IFNAME=eth0 on each host before the start"


def _connect(rank: int, size: int, deadline: float, limit_s: float) -> Store:
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    # torchrun's agent holds the store itself, and keeps it when it starts the ranks again.
    is_agents = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    holds_it = rank == 0 and not is_agents
    if not holds_it:
        _await_port(host, port, deadline, limit_s)
    timeout = timedelta(seconds=max(limit_s, 1.0))
    try:
        store = TCPStore(host, port, size, holds_it, timeout=timeout, wait_for_workers=False)
    except (dist.DistError, RuntimeError, OSError) as error:
        why = f"rank {rank} of {size} could not meet the others at {_where()}: {error}"
        raise RendezvousFailed(why, rank=rank) from error
    return PrefixStore(f"launcher/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _await_port(host: str, port: int, deadline: float, limit_s: float) -> None:
    """Waits until something listens there. Not left to torch: while it waits, Python handles no signal."""
    why = ""

    def listens() -> bool:
        nonlocal why
        try:
            socket.create_connection((host, port), timeout=2.0).close()
        except OSError as error:
            why = str(error)
            return False
        return True

    if not _wait_for(listens, deadline):
        raise _missing([0], f" did not answer within {limit_s:.0f} s (rendezvous {_where()}): {why}")


def _wait_for(happened: Callable[[], bool], deadline: float, *, on_stop: Callable[[], None] = lambda: None) -> bool:
    """False after the deadline. A stop signal calls `on_stop` once; some time after it this raises Preempted."""
    pause_s, leave_at = 0.02, math.inf
    while not happened():
        now = time.monotonic()
        if STOP.requested and leave_at == math.inf:
            leave_at = now + STOPPED_WAIT_S
            on_stop()
        if now > leave_at:
            raise _preempted()
        if now > deadline:
            return False
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, 0.5)
    return True


def _decide(store: Store, size: int, deadline: float) -> str:
    """The decision for all ranks. Ranks: 0."""
    coming = list(range(1, size))
    while True:
        while coming and store.check([f"here/{coming[0]}"]):
            del coming[0]
        if not coming:
            store.set("decision", _GO)
            return _GO
        if STOP.requested or store.check(["stop"]):
            _announce(store, _STOP, listeners=size - 1, wait_s=_STOP_WAIT_S)
            return _STOP
        if time.monotonic() > deadline:
            missing = [rank for rank in coming if not store.check([f"here/{rank}"])]
            if missing:
                decision = " ".join([_MISSING, *map(str, missing)])
                _announce(store, decision, listeners=size - 1 - len(missing), wait_s=_SHORT_WAIT_S)
                return decision
        time.sleep(0.05)


def _announce(store: Store, decision: str, *, listeners: int, wait_s: float) -> None:
    """Publishes the decision, and stays until the others have read it: the store ends with this process."""
    store.set("decision", decision)
    until = time.monotonic() + wait_s
    while store.add("told", 0) < listeners and time.monotonic() < until:
        time.sleep(0.05)


def _await_decision(store: Store, deadline: float) -> str:
    if not _wait_for(lambda: store.check(["decision"]), deadline, on_stop=lambda: store.set("stop", "")):
        raise _missing([0], f", which knows the other ranks, did not answer (rendezvous {_where()})")
    return bytes(store.get("decision")).decode()


def _silent_ranks(store: Store, rank: int, size: int) -> list[int]:
    """Ranks that report neither success nor failure to the store for a while after this one failed."""
    store.set(f"failed/{rank}", "")
    until = time.monotonic() + _SHORT_WAIT_S
    silent = [other for other in range(size) if other != rank]
    while silent and time.monotonic() < until:
        silent = [r for r in silent if not (store.check([f"failed/{r}"]) or store.check([f"talked/{r}"]))]
        time.sleep(0.1)
    return silent


@contextmanager
def _store_of_rank_0() -> Iterator[None]:
    """Around every use of the store: it is gone when the rank that holds it is."""
    try:
        yield
    except (dist.DistError, RuntimeError) as error:
        if STOP.requested:
            raise _preempted() from error
        why = f", where all ranks meet, is gone (rendezvous {_where()}): {str(error).splitlines()[0]}"
        raise _missing([0], why) from error


def _preempted() -> Preempted:
    return STOP.preempted("while the ranks met; nothing was trained yet in this attempt")


def _missing(ranks: list[int], why: str) -> RanksMissing:
    names = [rank_label(os.environ, rank) for rank in ranks[:_MOST_NAMED]]
    more = f" and {len(ranks) - len(names)} more" if len(ranks) > len(names) else ""
    return RanksMissing(f"{', '.join(names)}{more}{why}", ranks=ranks)


def _where() -> str:
    return f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
