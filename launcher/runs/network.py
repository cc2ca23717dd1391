"""Which of the hosts of a run this one is, and how it reaches the others."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable, Sequence
from contextlib import suppress

import psutil

from launcher.errors import RunError, UserError


def own_index(hosts: Sequence[str]) -> int:
    """The index of this host in a list of host names or addresses.

    Raises: RunError: it is not in the list, or more than once.
    """
    names, addresses = own_names(), own_addresses()
    found = [index for index, host in enumerate(hosts) if is_this_host(host, names, addresses)]
    if len(found) == 1:
        return found[0]
    me = f"this host ({', '.join(sorted(names))}; {', '.join(sorted(addresses)) or 'no address'})"
    if not found:
        raise RunError(f"{me} is not among cluster.hosts = {list(hosts)}; make the run with the names its hosts have")
    twice = ", ".join(hosts[index] for index in found)
    raise RunError(f"{me} is in cluster.hosts more than once: {twice}; name every host once")


def is_this_host(host: str, names: set[str], addresses: set[str]) -> bool:
    """Whether a host of the list is the one with these names and addresses."""
    return host.lower() in names or bool(_resolved(host) & addresses)


def own_names() -> set[str]:
    """Name of this host, in full and short, in lower case."""
    name = socket.gethostname().lower()
    return {name, name.partition(".")[0]}


def own_addresses() -> set[str]:
    """Addresses by which others may know this host, without those of loopback."""
    found = (address.address for interface in psutil.net_if_addrs().values() for address in interface)
    return _usable(found)


def _resolved(host: str) -> set[str]:
    try:
        return _usable(str(entry[4][0]) for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM))
    except (OSError, UnicodeError):
        return set()


def _usable(texts: Iterable[str]) -> set[str]:
    usable = set()
    for text in texts:
        with suppress(ValueError):
            address = ipaddress.ip_address(text.partition("%")[0])
            if not address.is_loopback:
                usable.add(str(address))
    return usable


def interface_to(host: str) -> str:
    """The network interface that leads to a host; ranks must use it, whatever their own host name resolves to.

    Raises: UserError: the host has no address, or there is no way to it.
    """
    try:
        family, _, _, _, target = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(target)  # sends nothing: it only chooses a route
            mine = str(probe.getsockname()[0]).partition("%")[0]
    except (OSError, UnicodeError) as error:
        message = f"{host} cannot be reached from {socket.gethostname()}: {error}; check cluster.hosts"
        raise UserError(message) from error
    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address.partition("%")[0] == mine for address in addresses):
            return str(name)
    return ""


def free_port(address: str = "") -> int:
    """A free TCP port of this host, at an address or at all of its own."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])
