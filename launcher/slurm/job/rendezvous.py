"""The rendezvous of a job's ranks: a port on the first node, and the network interface to the others."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator, Sequence
from contextlib import suppress

from launcher.errors import UserError, WorldError
from launcher.runs import network

# Below the range from which Linux takes ports for outgoing connections.
_FIRST_PORT, _NUM_PORTS = 10_000, 22_000
_TRIES = 200


def meeting_ports(job_id: str, restart: int, attempt: int) -> Iterator[int]:
    """Ports to try, in order. Pure. Concurrent jobs, and attempts of one job, start at ports far apart.

    So an attempt never waits for the port of a predecessor that is still exiting on this node.
    """
    start = int(job_id) * 197 + restart * 31 + attempt * 7
    for turn in range(_TRIES):
        yield _FIRST_PORT + (start + turn * 1009) % _NUM_PORTS


def free_meeting_port(job_id: str, restart: int, attempt: int) -> int:
    """The first free port of `meeting_ports`. Call it on the first node of the job.

    Raises:
        WorldError: none is free.
    """
    for port in meeting_ports(job_id, restart, attempt):
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("", port))
            return port
    raise WorldError(f"none of {_TRIES} ports between {_FIRST_PORT} and {_FIRST_PORT + _NUM_PORTS - 1} is free here")


def rank_interface(nodes: Sequence[str]) -> str:
    """The interface to the job's other nodes if ranks must be given one, otherwise empty.

    Ranks publish the address of their host name. On some systems that is 127.0.0.1, where no other node reaches them.
    """
    if len(nodes) < 2:
        return ""
    with suppress(OSError, ValueError, UserError):
        mine = ipaddress.ip_address(socket.gethostbyname(socket.gethostname()))
        return network.interface_to(nodes[1]) if mine.is_loopback else ""
    return ""
