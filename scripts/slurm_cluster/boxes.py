"""A box is a set of Linux namespaces with a process 1 of its own: the controller, or a node inside the controller's.

Boxes are found by looking at /proc, not by files that hold process ids: nothing goes stale, and no process that has got
an old id is hit.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from .site_files import CONTROLLER_ADDRESS, HOME, USERS

SCRIPT = Path(__file__).resolve().parents[1] / "slurm-cluster"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_Answer = TypeVar("_Answer")
NEW_SPACES = ["unshare", "--mount", "--uts", "--net", "--ipc", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"]


class ClusterError(Exception):
    """What is wrong and what to do, for the user."""


@dataclass(frozen=True)
class Process:
    """A process as seen from outside; start_ticks tells it from a later one with the same id."""

    pid: int
    start_ticks: int
    state: str
    command: str
    argv: tuple[str, ...]


def processes() -> list[Process]:
    """All processes of the machine that are not zombies."""
    found = (_look(int(entry.name)) for entry in Path("/proc").glob("[0-9]*"))
    return [process for process in found if process is not None]


def _look(pid: int) -> Process | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        argv = Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "surrogateescape").split("\0")[:-1]
    except OSError:
        return None  # it has ended
    # The name in parentheses may hold spaces and parentheses itself.
    command, _, rest = stat.partition("(")[2].rpartition(")")
    fields = rest.split()
    return None if fields[0] == "Z" else Process(pid, int(fields[19]), fields[0], command, tuple(argv))


def find_box(folder: Path, name: str, among: list[Process] | None = None) -> Process | None:
    """Process 1 of a box, or None when the box is off."""
    wanted = _init_argv(folder, name)[1:]
    return next((p for p in among or processes() if list(p.argv[1:]) == wanted), None)


def inhabitants(init: Process, among: list[Process] | None = None) -> list[Process]:
    """Processes of a box besides process 1."""
    space = _pid_space(init.pid)
    return [p for p in among or processes() if p.pid != init.pid and space and _pid_space(p.pid) == space]


def _pid_space(pid: int) -> str | None:
    try:
        return str(Path(f"/proc/{pid}/ns/pid").readlink())
    except OSError:
        return None


def boot(folder: Path, name: str, *, inside: Process | None, wire: Callable[[Process], None]) -> Process:
    """Starts a box, a node's inside the controller's; `wire` gives it its network before its daemons start."""
    argv = [*NEW_SPACES, *_init_argv(folder, name)]
    if inside is not None:
        argv = [*_enter(inside), *argv]
    with (folder / "log" / f"{name}.boot.log").open("ab") as log:
        starter = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            cwd="/",
            env={"PATH": PATH, "LANG": "C.UTF-8"},
            start_new_session=True,
        )
    assert starter.stdin is not None
    # Process 1 reads a line first; end of file instead tells it that we have given up.
    with starter.stdin as ready:
        init = wait_for(lambda: find_box(folder, name) or _fail_if_over(starter, folder, name), 30, f"box {name}")
        wire(init)
        ready.write(b"go\n")
    return init


def _fail_if_over(starter: subprocess.Popen[bytes], folder: Path, name: str) -> Process | None:
    if starter.poll() is not None:
        log = folder / "log" / f"{name}.boot.log"
        raise ClusterError(f"{name} did not start (exit {starter.returncode}):\n{tail(log)}")
    return None


def _init_argv(folder: Path, name: str) -> list[str]:
    return [sys.executable, str(SCRIPT), "_init", str(folder), name]


def _enter(box: Process) -> list[str]:
    return ["nsenter", f"--target={box.pid}", "--mount", "--uts", "--net", "--ipc", "--pid", "--"]


def command_in(box: Process, argv: list[str], *, user: str | None = None, directory: str | None = None) -> list[str]:
    """argv that runs `argv` in a box; it is killed with its caller, so that nothing stays behind."""
    become = ["setpriv", "--pdeathsig=KILL"]
    if user is not None:
        become += [f"--reuid={user}", f"--regid={user}", "--init-groups"]
    place = ["env", f"--chdir={directory}"] if directory else []
    return [*_enter(box), *become, *place, *argv]


def user_environment(user: str | None, environment: dict[str, str]) -> dict[str, str]:
    """The caller's environment without another Slurm's traces; alice and bob have homes of their own."""
    kept = {k: v for k, v in environment.items() if not k.startswith("SLURM_") or k == "SLURM_CLUSTER_DIR"}
    kept["PATH"] = ":".join(dict.fromkeys([*kept.get("PATH", "").split(":"), *PATH.split(":")])).strip(":")
    if user is not None and user in USERS:
        kept |= {"USER": user, "LOGNAME": user, "HOME": f"{HOME}/home/{user}", "SHELL": "/bin/bash"}
    return kept


def call_in(box: Process, argv: list[str], *, timeout_s: float = 30) -> subprocess.CompletedProcess[str]:
    """Runs a command of ours in a box as root and returns what it said; never raises for its exit code."""
    return subprocess.run(
        command_in(box, argv),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env={"PATH": PATH, "LANG": "C.UTF-8"},
        cwd="/",
    )


def start_in(box: Process, argv: list[str], log: Path) -> None:
    """Starts a daemon in a box; process 1 of the box inherits it."""
    with log.open("ab") as output:
        subprocess.run(
            [*_enter(box), "setsid", "--fork", *argv],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            check=True,
            env={"PATH": PATH, "LANG": "C.UTF-8"},
            cwd="/",
        )


def network(box: Process, *commands: str) -> None:
    """Runs `ip` commands in a box's network, with this machine's process ids."""
    result = subprocess.run(
        ["nsenter", f"--target={box.pid}", "--net", "--", "ip", "-batch", "-"],
        input="\n".join(commands) + "\n",
        capture_output=True,
        text=True,
        env={"PATH": PATH, "LANG": "C.UTF-8"},
    )
    if result.returncode != 0:
        raise ClusterError(
            f"Cannot set up the network between nodes: {result.stderr.strip()}\n"
            "The kernel must offer bridges and veth pairs, and this shell CAP_NET_ADMIN."
        )


def wire_controller(init: Process) -> None:
    network(
        init,
        "link set lo up",
        "link add br0 type bridge",
        f"address add {CONTROLLER_ADDRESS}/16 dev br0",
        "link set br0 up",
    )


def wire_node(controller: Process, node: Process, name: str, address: str) -> None:
    network(
        controller,
        f"link add {cable(name)} type veth peer name eth0 netns {node.pid}",
        f"link set {cable(name)} master br0 up",
    )
    network(node, "link set lo up", f"address add {address}/16 dev eth0", "link set eth0 up")


def cable(name: str) -> str:
    """The controller's end of a node's cable."""
    return f"to-{name}"


def kill_box(init: Process) -> None:
    """Pulls the plug: the kernel ends everything in the box, boxes inside it too. Returns when nothing is left."""
    kill(init, signal.SIGKILL)
    wait_for(lambda: not is_alive(init), 60, f"the end of process {init.pid}")


def kill(process: Process, number: signal.Signals) -> None:
    """Signals this very process, never another that has got its id."""
    try:
        handle = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    try:
        if is_alive(process):
            signal.pidfd_send_signal(handle, number)
    except ProcessLookupError:
        pass
    finally:
        os.close(handle)


def is_alive(process: Process) -> bool:
    now = _look(process.pid)
    return now is not None and now.start_ticks == process.start_ticks


def wait_for(ask: Callable[[], _Answer | None], timeout_s: float, what: str, *, every_s: float = 0.02) -> _Answer:
    """Asks until the answer is true and returns it; ClusterError names what did not come."""
    end = time.monotonic() + timeout_s
    while not (answer := ask()):
        if time.monotonic() > end:
            raise ClusterError(f"Waited {timeout_s:.0f} s in vain for {what}.")
        time.sleep(every_s)
    return answer


def tail(path: Path, lines: int = 15) -> str:
    try:
        return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
    except OSError:
        return f"({path} is not there)"
