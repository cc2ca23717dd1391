"""Two machines for tests: namespaces with a host name and a network card each, and a cable between them."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

ADDRESSES = ("10.79.0.1", "10.79.0.2")
NAMES = ("boxa", "boxb")
_SPACES = ["unshare", "--uts", "--net", "--ipc"]
# The box says that its namespaces are there, and lives until its standard input ends.
_BOOT = 'hostname "$1" && ip link set lo up && echo ready && read -r _'


def why_not() -> str:
    """Why boxes cannot be made here; empty when they can."""
    if os.geteuid() != 0:
        return "namespaces with a network of their own need root"
    lacking = [program for program in ("unshare", "nsenter", "ip", "hostname") if shutil.which(program) is None]
    if lacking:
        return f"{', '.join(lacking)} is not installed"
    tried = subprocess.run(
        ["unshare", "--net", "ip", "link", "add", "x", "type", "veth"], capture_output=True, text=True
    )
    return "" if tried.returncode == 0 else f"the kernel gives no veth pair here: {tried.stderr.strip()}"


@dataclass
class Boxes:
    """Both machines; they see all files of this one."""

    inits: list[int] = field(default_factory=list)

    def enter(self, box: int) -> list[str]:
        """Words that run the rest of a command on a box."""
        return ["nsenter", f"--target={self.inits[box]}", "--uts", "--net", "--ipc", "--"]

    def start(
        self, box: int, argv: list[str], *, cwd: Path, log: Path, env: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        command = [*self.enter(box), "env", f"--chdir={cwd}", *argv]
        with log.open("ab") as output:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=dict(env))

    def remote_shell(self, folder: Path) -> Path:
        """A program that is to the boxes what ssh is to machines: HOST COMMAND-LINE."""
        cases = [f'  {ADDRESSES[box]}) exec {shlex.join(self.enter(box))} sh -c "$2" ;;' for box in range(2)]
        path = folder / "remote-shell"
        path.write_text("\n".join(["#!/bin/sh", 'case "$1" in', *cases, "esac", 'echo "no $1" >&2; exit 255', ""]))
        path.chmod(0o755)
        return path

    def cut(self) -> None:
        """Unplugs the cable; what runs goes on, and nobody is told."""
        subprocess.run([*self.enter(1), "ip", "link", "set", "eth0", "down"], check=True)

    def plug(self) -> None:
        subprocess.run([*self.enter(1), "ip", "link", "set", "eth0", "up"], check=True)

    def processes(self, box: int) -> list[psutil.Process]:
        """What runs on a box besides the box itself."""
        space = Path(f"/proc/{self.inits[box]}/ns/net").readlink()
        found = []
        for process in psutil.process_iter():
            try:
                if process.pid != self.inits[box] and Path(f"/proc/{process.pid}/ns/net").readlink() == space:
                    found.append(process)
            except OSError:
                continue
        return found


@contextmanager
def two_boxes() -> Iterator[Boxes]:
    boxes = Boxes()
    with ExitStack() as held:
        for name in NAMES:
            starter = subprocess.Popen(
                [*_SPACES, "sh", "-c", _BOOT, "box", name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            held.callback(_switch_off, starter)
            assert starter.stdout is not None and starter.stdout.readline() == "ready\n"
            boxes.inits.append(starter.pid)
            held.callback(_end_all, boxes, len(boxes.inits) - 1)
        first, second = boxes.inits
        ip = ["link", "add", "eth0", "netns", str(first), "type", "veth", "peer", "name", "eth0", "netns", str(second)]
        subprocess.run(["ip", *ip], check=True)
        for box, address in enumerate(ADDRESSES):
            subprocess.run([*boxes.enter(box), "ip", "address", "add", f"{address}/24", "dev", "eth0"], check=True)
            subprocess.run([*boxes.enter(box), "ip", "link", "set", "eth0", "up"], check=True)
        yield boxes


def _end_all(boxes: Boxes, box: int) -> None:
    """What a failed test left on a box."""
    for process in boxes.processes(box):
        process.kill()


def _switch_off(starter: subprocess.Popen[str]) -> None:
    starter.send_signal(signal.SIGKILL)
    starter.wait(timeout=60)
    for pipe in (starter.stdin, starter.stdout):
        if pipe is not None:
            pipe.close()


def wait_until(true: object, timeout_s: float, what: str) -> None:
    """Asks a function until it says yes."""
    assert callable(true)
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s in vain for {what}"
        time.sleep(0.05)
