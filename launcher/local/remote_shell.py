"""Starts the other hosts of a run through a remote shell."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from launcher.errors import HostNotStarted
from launcher.paths import RunPaths

SHELL_VARIABLE = "LAUNCHER_REMOTE_SHELL"
"""Names another remote shell with its options; it is called with the host and one command line."""

_SSH = ("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=15", "-o", "ServerAliveInterval=15")
_TAIL_LINES = 10
_LEAVE_S = 30.0


def join_command(run_dir: Path) -> str:
    """For the user to type on another host."""
    return f"launcher train --join {shlex.quote(str(run_dir))}"


def remote_argv(host: str, run_dir: Path, environ: Mapping[str, str], *, folder: Path, python: str) -> list[str]:
    """The local command that starts `launcher train --join` on a host. Pure.

    A remote shell hands its arguments to the user's shell there as one text. So all of it is quoted for that shell, and
    the host, which the settings restrict to letters of host names, is an argument of its own.
    """
    shell = shlex.split(environ.get(SHELL_VARIABLE, "")) or list(_SSH)
    kept = [f"{name}={environ[name]}" for name in ("LAUNCHER_CACHE", "PYTHONPATH") if environ.get(name)]
    command = shlex.join(["env", *kept, python, "-m", "launcher", "train", "--join", str(run_dir)])
    return [*shell, host, f"cd {shlex.quote(str(folder))} && exec {command}"]


class RemoteShells:
    """The remote shells of an attempt; their output goes to box-NNNN.log in the attempt's folder."""

    def __init__(self, paths: RunPaths, attempt: int, hosts: list[str]) -> None:
        self._hosts = hosts
        self._logs = {index: paths.attempt(attempt) / f"box-{index:04d}.log" for index in range(1, len(hosts))}
        self._run_dir = paths.root
        self._shells: dict[int, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> RemoteShells:
        for index, log in self._logs.items():
            argv = remote_argv(self._hosts[index], self._run_dir, os.environ, folder=Path.cwd(), python=sys.executable)
            with log.open("ab") as output:
                self._shells[index] = subprocess.Popen(
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    # Ctrl-C in the terminal is for us: the ranks agree on it, and a shell that dies would cut them off.
                    start_new_session=True,
                )
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """The hosts leave by themselves when they see our end; a shell that stays is only the wire to them."""
        for shell in self._shells.values():
            try:
                shell.wait(timeout=_LEAVE_S if kind is None else 0)
            except subprocess.TimeoutExpired:
                shell.terminate()

    def refuse_failed(self, missing: list[int]) -> None:
        """Raises: HostNotStarted if the remote shell to a host that has not joined has ended."""
        for index in missing:
            code = self._shells[index].poll()
            if code is not None:
                lines = self._logs[index].read_text("utf-8", errors="replace").splitlines()[-_TAIL_LINES:]
                shown = "\n".join(f"  | {line}" for line in lines)
                raise HostNotStarted(
                    f"{self._hosts[index]} could not be started: the remote shell ended with {code}\n{shown}",
                    node=self._hosts[index],
                    output="\n".join(lines),
                )
