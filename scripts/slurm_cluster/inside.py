"""Process 1 of a box: gives it a name, mounts and daemons, then only collects the dead."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from .site_files import CONTROLLER, HOME

_DATABASE = ["mariadbd", "--no-defaults", "--user=root", f"--datadir={HOME}/db", f"--socket={HOME}/db/socket"]
_SMALL = ["--skip-networking", "--performance-schema=OFF", "--innodb-buffer-pool-size=32M", "--innodb-log-file-size=8M"]
_READY_S = 60
READY = "ready"
"""File that tells that the controller has its mounts, which nodes inherit, and its daemons."""


def init(folder: Path, name: str) -> None:
    """Never returns: the box lives as long as this process."""
    socket.sethostname(name)
    _mount("-t", "sysfs", "-o", "ro", "sysfs", "/sys")  # else /sys/class/net shows the machine's cards
    _mount("-t", "tmpfs", "-o", "mode=1777", "tmpfs", "/dev/shm")
    if name == CONTROLLER:
        Path(HOME).mkdir(parents=True, exist_ok=True)
        _mount("--bind", str(folder), HOME)
        _mount("--bind", f"{HOME}/etc", "/etc/slurm")
        for file in ("hosts", "passwd", "group"):
            _mount("--bind", f"{HOME}/etc/{file}", f"/etc/{file}")
    if not sys.stdin.readline():
        sys.exit("whoever started this box has gone")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    if name == CONTROLLER:
        _start_controller()
    else:
        Path(f"{HOME}/spool/{name}").mkdir(exist_ok=True)
        subprocess.Popen(slurmd_argv(name))
    while True:
        try:
            os.wait()
        except ChildProcessError:
            time.sleep(0.2)  # all daemons are down; a later one may become ours


def slurmd_argv(name: str) -> list[str]:
    return ["slurmd", "-D", "-N", name]


def slurmctld_argv() -> list[str]:
    """Takes up the state it finds, as after a restart of the controller."""
    return ["slurmctld", "-D"]


def _start_controller() -> None:
    munge = f"{HOME}/munge"
    files = [f"--{what}={munge}/munged.{what.partition('-')[0]}" for what in ("pid-file", "log-file", "seed-file")]
    # --force: its own folders are ours, and it wants them under /var or /run.
    subprocess.Popen(
        ["munged", "--foreground", "--force", f"--key-file={munge}/key", f"--socket={munge}/munge.socket", *files]
    )
    _wait_until(Path(f"{munge}/munge.socket").is_socket, "munged")
    if Path("/etc/slurm/slurmdbd.conf").exists():
        _start_accounting()
    subprocess.Popen(slurmctld_argv())
    Path(f"{HOME}/pid/{READY}").touch()


def _start_accounting() -> None:
    """A database of our own on a socket, and slurmdbd before it, with the users it is to know."""
    database, prepared = Path(f"{HOME}/db"), Path(f"{HOME}/db.empty")
    if not prepared.exists():
        making = Path(f"{HOME}/db.making")
        shutil.rmtree(making, ignore_errors=True)
        _run("mariadb-install-db", "--no-defaults", "--user=root", f"--datadir={making}", "--skip-test-db")
        making.rename(prepared)
    shutil.copytree(prepared, database, symlinks=True)
    # slurmdbd asks for the first; the second saves seconds, and nobody needs these books after a power cut.
    settings = ["--innodb-lock-wait-timeout=900", "--innodb-flush-log-at-trx-commit=0"]
    with Path(f"{HOME}/log/mariadb.log").open("ab") as log:
        subprocess.Popen([*_DATABASE, *_SMALL, *settings], stderr=log)
    ping = ["mariadb-admin", "--no-defaults", f"--socket={database}/socket", "ping"]
    _wait_until(lambda: _succeeds(ping), "mariadbd")
    subprocess.Popen(["slurmdbd", "-D"], env={**os.environ, "MYSQL_UNIX_PORT": f"{database}/socket"})
    _wait_until(lambda: _succeeds(["sacctmgr", "--noheader", "list", "cluster"]), "slurmdbd")
    _run("sacctmgr", "-i", "add", "cluster", "rehearsal")
    _run("sacctmgr", "-i", "add", "account", "lab", "Cluster=rehearsal")
    for user in ("alice", "bob"):
        _run("sacctmgr", "-i", "add", "user", user, "Account=lab")


def _mount(*arguments: str) -> None:
    _run("mount", *arguments)


def _run(*argv: str) -> None:
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, stdout=sys.stderr)


def _succeeds(argv: list[str]) -> bool:
    quiet = subprocess.DEVNULL
    try:
        return subprocess.run(argv, stdin=quiet, stdout=quiet, stderr=quiet, timeout=10).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def _wait_until(ready: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + _READY_S
    while not ready():
        if time.monotonic() > end:
            sys.exit(f"{what} was not ready after {_READY_S} s")
        time.sleep(0.02)
