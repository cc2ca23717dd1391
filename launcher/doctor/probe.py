"""One node of a doctor's job: reports its hardware and software, and measures the links to all other nodes. No torch.

python -m launcher.doctor.probe FOLDER TOKEN    one task on each node, started by launcher.doctor.job

Prints one JSON object. The nodes find each other by their names and by ports that follow from the job's number, so that
a node without the shared folder still answers.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import struct
import sys
import threading
import time
from contextlib import suppress
from itertools import islice
from pathlib import Path

from launcher.config.devices import host_memory_gib, query_gpus, usable_cores, visible_gpus
from launcher.doctor.reports import Link, NodeReport
from launcher.files import as_json
from launcher.runs.run_dir import versions
from launcher.slurm.job.allocation import read_allocation
from launcher.slurm.job.rendezvous import meeting_ports

START_S = 30.0
"""How long a node may take to start after another one."""
REACH_S = 8.0
"""How long to try a node that does not answer at all."""
_PORTS_TRIED = 3
_CALL_S = 4.0
_PINGS = 20
_PAYLOAD = bytes(1 << 20)
_PAYLOADS = 16
_CLOCK = struct.Struct("!d")


def main(argv: list[str]) -> int:
    """Exit code 0 even if something is wrong: the reader of the report judges it."""
    folder, token = Path(argv[0]), argv[1]
    job = read_allocation(os.environ)
    me = os.environ.get("SLURMD_NODENAME") or job.nodes[int(os.environ.get("SLURM_NODEID", "0"))]
    ports = list(islice(meeting_ports(job.job_id, job.restart, 0), _PORTS_TRIED))
    server = _Server(ports, token, expected=len(job.nodes) - 1)
    report = node_report(me, folder, token)
    report.links = [measure(peer, ports, token) for peer in job.nodes if peer != me]
    server.wait(sum(not link.error for link in report.links), timeout_s=START_S)
    report.sees = sorted(path.name.removeprefix("seen-") for path in folder.glob("seen-*"))
    print(json.dumps(as_json(report)), flush=True)
    # Threads of the server may still be blocked on a dead connection.
    os._exit(0)


def node_report(node: str, folder: Path, token: str) -> NodeReport:
    """This node without its links; leaves its mark in the shared folder."""
    host = socket.gethostname()
    try:
        seen = (folder / "token").read_text("utf-8") == token
        (folder / f"seen-{host}").touch()
        folder_error = "" if seen else "the folder holds something else"
    except OSError as error:
        seen, folder_error = False, str(error)
    return NodeReport(
        node=node,
        host=host,
        sees_folder=seen,
        folder_error=folder_error,
        versions=versions(),
        driver=next(iter(query_gpus("driver_version")), ""),
        gpus=[gpu.name for gpu in visible_gpus()],
        cores=usable_cores(),
        memory_gib=round(host_memory_gib(), 1),
        shm_gib=_free_shm_gib(),
    )


def _free_shm_gib() -> float | None:
    with suppress(OSError):
        return round(shutil.disk_usage("/dev/shm").free / 2**30, 1)
    return None


class _Server:
    """Answers the other nodes: greets them, sends its clock, and receives the data they measure the network with."""

    def __init__(self, ports: list[int], token: str, *, expected: int) -> None:
        self._greeting = f"launcher-doctor {token}\n".encode()
        self._done = threading.Semaphore(0)
        self._socket = _listen(ports, backlog=max(8, expected))
        threading.Thread(target=self._accept, daemon=True).start()

    def wait(self, count: int, *, timeout_s: float) -> None:
        """Waits until so many of the others have finished measuring."""
        deadline = time.monotonic() + timeout_s
        for _ in range(count):
            if not self._done.acquire(timeout=max(0.0, deadline - time.monotonic())):
                return

    def _accept(self) -> None:
        while True:
            connection, _ = self._socket.accept()
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError), connection, connection.makefile("rb") as incoming:
            connection.sendall(self._greeting)
            if incoming.readline() != self._greeting:  # a stranger's connection to this port
                return
            while command := incoming.read(1):
                if command == b"t":
                    connection.sendall(_CLOCK.pack(time.time()))
                elif command == b"d":
                    for _ in range(_PAYLOADS):
                        incoming.read(len(_PAYLOAD))
                    connection.sendall(b"k")
                else:
                    self._done.release()


def _listen(ports: list[int], *, backlog: int) -> socket.socket:
    for port in ports:
        with suppress(OSError):
            return socket.create_server(("", port), backlog=backlog)
    sys.exit(f"ports {', '.join(map(str, ports))} are all in use on {socket.gethostname()}")


def measure(peer: str, ports: list[int], token: str) -> Link:
    """The link to another node, or why there is none."""
    started = time.monotonic()
    last = ""
    while True:
        for port in ports:
            try:
                return _measure(peer, port, f"launcher-doctor {token}\n".encode())
            except ConnectionRefusedError:
                last, limit_s = f"nobody answers at port {port}", START_S
            except OSError as error:
                last, limit_s = f"{type(error).__name__} at port {port}: {error}", REACH_S
                break
        if time.monotonic() - started > limit_s:
            return Link(peer=peer, error=last)
        time.sleep(0.2)


def _measure(peer: str, port: int, greeting: bytes) -> Link:
    with socket.create_connection((peer, port), timeout=_CALL_S) as connection, connection.makefile("rb") as incoming:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if incoming.readline() != greeting:
            raise ConnectionRefusedError
        connection.sendall(greeting)
        best_s, ahead_s = float("inf"), 0.0
        for _ in range(_PINGS):
            asked, began = time.time(), time.perf_counter()
            connection.sendall(b"t")
            (theirs,) = _CLOCK.unpack(incoming.read(_CLOCK.size))
            took_s = time.perf_counter() - began
            if took_s < best_s:
                best_s, ahead_s = took_s, theirs - (asked + took_s / 2)
        connection.settimeout(10 * _CALL_S)
        began = time.perf_counter()
        connection.sendall(b"d")
        for _ in range(_PAYLOADS):
            connection.sendall(_PAYLOAD)
        if incoming.read(1) != b"k":
            raise ConnectionAbortedError("the connection broke while data was sent")
        sent_s = time.perf_counter() - began
        connection.sendall(b"q")
    mib = _PAYLOADS * len(_PAYLOAD) / 2**20
    return Link(
        peer=peer,
        port=port,
        round_trip_ms=round(1000 * best_s, 3),
        clock_ahead_s=round(ahead_s, 4),
        mib_per_s=round(mib / sent_s, 1),
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
