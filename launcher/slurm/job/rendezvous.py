"""Where the ranks of a job meet: a port on the first node, and an interface that leads to the others."""

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
    """Ports to try, in order. Pure: jobs that run at the same time begin far apart, and so do attempts of one job.

    A predecessor that is still dying on this node thus never holds the port its successor wants.
    """
    start = int(job_id) * 197 + restart * 31 + attempt * 7
    for turn in range(_TRIES):
        yield _FIRST_PORT + (start + turn * 1009) % _NUM_PORTS


def free_meeting_port(job_id: str, restart: int, attempt: int) -> int:
    """The first of `meeting_ports` that nobody on this machine holds. To be asked on the first node of the job.

    Raises:
        WorldError: none is free.
    """
    for port in meeting_ports(job_id, restart, attempt):
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("", port))
            return port
    raise WorldError(f"none of {_TRIES} ports between {_FIRST_PORT} and {_FIRST_PORT + _NUM_PORTS - 1} is free here")


def interface_to(nodes: Sequence[str]) -> str:
    """The interface that leads to the job's other nodes; empty where ranks find it by themselves.

    They ask for the address of their own host name, which on some systems is the loopback: then each rank would tell
    the others to reach it at 127.0.0.1.
    """
    if len(nodes) < 2 or not _is_loopback(socket.gethostname()):
        return ""
    with suppress(UserError):
        return network.interface_to(nodes[1])
    return ""


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(socket.gethostbyname(host)).is_loopback
    except (OSError, ValueError):
        return False
