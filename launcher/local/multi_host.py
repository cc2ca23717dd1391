"""A run on several hosts without Slurm: cluster.hosts names them, and they share the folder of the run.

The first host makes the attempt and waits (`lead`). On every other one the user, or a remote shell, starts
`launcher train --join RUN` (`join`). When all have joined, each starts its own ranks as a run on one host does.
"""

from __future__ import annotations

import logging
import secrets
import socket
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from launcher.config.devices import visible_gpus
from launcher.config.frozen import load_prepared
from launcher.config.path_checks import machine_problems
from launcher.config.schema import Derived, RunConfig
from launcher.errors import ConfigErrors, LauncherError, RunError, WorldError
from launcher.files import find_record
from launcher.local.attempt import RankExits, begin_local, end_local
from launcher.local.host_status import SILENT_S, HostState, HostStatus, OtherHosts, OwnStatus
from launcher.local.ranks import HostShare, run_local
from launcher.local.remote_shell import RemoteShells, join_command
from launcher.paths import RunPaths
from launcher.runs.network import free_port, interface_to, own_index
from launcher.runs.run_dir import last_attempt, versions

logger = logging.getLogger(__name__)

_POLL_S = 0.1
_MUST_AGREE = ("launcher", "python", "torch", "accelerate", "deepspeed", "transformers", "peft")
_NOT_SHARED = "If that was done, the folder is not the same on both: the hosts of a run need a shared file system"


@dataclass(frozen=True, slots=True)
class _MultiHostRun:
    """A run on several hosts, as seen from one of them."""

    paths: RunPaths
    config: RunConfig
    derived: Derived
    index: int
    """Of this host in `hosts`."""

    @property
    def hosts(self) -> list[str]:
        return self.config.cluster.hosts

    @property
    def host(self) -> str:
        return self.hosts[self.index]

    def run_ranks(self, attempt: int, leader: HostStatus, own: OwnStatus, *, lock: int | None = None) -> int:
        """Runs the ranks of this host, which meet where the first host says. Returns: as run_local."""
        own.report(state=HostState.running)
        per_host = self.derived.devices_per_node
        share = HostShare(
            first_rank=self.index * per_host,
            num_ranks=per_host,
            master_address=leader.master_address,
            master_port=leader.master_port,
            interface=interface_to(self.hosts[1] if self.index == 0 else self.hosts[0]),
            lost=OtherHosts(self.paths, attempt, self.hosts, self.index).lost,
        )
        code = run_local(self.paths.root, attempt=attempt, lock=lock, share=share)
        own.end(code)
        return code


def check_leader(run_dir: Path) -> None:
    """Raises: RunError if this host is not the first of the run's."""
    run = _open(run_dir)
    if run.index != 0:
        raise RunError(
            f"this host is {run.host}, number {run.index + 1} of {run_dir.name}; the run is started on the first, "
            f"{run.hosts[0]}. Here: {join_command(run_dir)}"
        )


def lead(run_dir: Path, *, attempt: int, lock: int | None, remote: bool) -> int:
    """Runs an attempt from the first host: waits for the others, then starts the ranks of this one.

    Args:
        remote: start the others through a remote shell; otherwise the user does.
    Returns: as run_local.
    Raises: WorldError if a host does not join within fault.meet_limit_s, or cannot take part.
    """
    run = _open(run_dir)
    status = HostStatus(
        index=0,
        host=socket.gethostname(),
        state=HostState.waiting,
        token=secrets.token_hex(16),
        master_address=run.hosts[0],
        master_port=free_port(),
        versions=_versions(),
    )
    with ExitStack() as held:
        own = held.enter_context(OwnStatus(run.paths.host_status(attempt, 0), status))
        shells = held.enter_context(RemoteShells(run.paths, attempt, run.hosts)) if remote else None
        if shells is None:
            others = ", ".join(run.hosts[1:])
            logger.warning("waiting for %s; start there: %s", others, join_command(run.paths.root))
        try:
            _wait_for_others(run, attempt, status.token, shells)
        except WorldError as error:
            record = begin_local(run.paths, attempt, run.derived, run.hosts)
            end_local(run.paths, record, RankExits(lost=error))
            raise
        return run.run_ranks(attempt, status, own, lock=lock)


def _wait_for_others(run: _MultiHostRun, attempt: int, token: str, shells: RemoteShells | None) -> None:
    others = OtherHosts(run.paths, attempt, run.hosts, run.index)
    limit_s = run.config.fault.meet_limit_s
    deadline = time.monotonic() + limit_s
    missing = list(range(1, len(run.hosts)))
    while missing:
        for index in list(missing):
            status = others.status(index)
            if status is None or status.token != token:
                continue
            if status.error:
                raise WorldError(f"{run.hosts[index]} cannot take part: {status.error}")
            logger.info("%s has joined", run.hosts[index])
            missing.remove(index)
        if shells is not None:
            shells.refuse_failed(missing)
        if missing and time.monotonic() > deadline:
            names = ", ".join(run.hosts[index] for index in missing)
            raise WorldError(
                f"{names} did not join within {limit_s:g} s (fault.meet_limit_s). Start there: "
                f"{join_command(run.paths.root)} . {_NOT_SHARED}"
            )
        time.sleep(_POLL_S)


def join(run_dir: Path) -> int:
    """Takes part in a run that the first host of cluster.hosts has started or is about to start.

    Returns: as run_local, for the ranks of this host.
    Raises: RunError if this host has no part in the run or lacks something; WorldError if the first does not answer.
    """
    run = _open(run_dir)
    if run.index == 0:
        raise RunError(f"this host is {run.host}, the first of {run_dir.name}: start it with launcher train --run")
    attempt, leader = _waiting_attempt(run)
    status = HostStatus(
        index=run.index, host=socket.gethostname(), state=HostState.joined, token=leader.token, versions=_versions()
    )
    lacking = _lacking(run, leader, status.versions)
    with OwnStatus(run.paths.host_status(attempt, run.index), status) as own:
        if lacking is not None:
            own.end(lacking.exit_code, error=str(lacking))
            raise lacking
        _wait_for_start(run, attempt)
        return run.run_ranks(attempt, leader, own)


def _waiting_attempt(run: _MultiHostRun) -> tuple[int, HostStatus]:
    """The attempt whose leader waits for this host, seen to be alive: its file changes while we look."""
    limit_s = run.config.fault.meet_limit_s
    deadline = time.monotonic() + limit_s
    first_beat: dict[int, int] = {}
    logger.info("waiting for %s to start %s", run.hosts[0], run.paths.root.name)
    while time.monotonic() < deadline:
        attempt = last_attempt(run.paths.root)
        leader = find_record(HostStatus, run.paths.host_status(attempt, 0)) if attempt else None
        is_open = leader is not None and leader.state is not HostState.ended
        if leader is not None and is_open and leader.beat != first_beat.setdefault(attempt, leader.beat):
            if leader.state is HostState.waiting:
                return attempt, leader
            raise RunError(
                f"{run.paths.root.name} is running already, and this host cannot join it any more; stop it on "
                f"{run.hosts[0]} (launcher cancel) before you start it again"
            )
        time.sleep(_POLL_S)
    raise WorldError(
        f"no attempt of {run.paths.root} by {run.hosts[0]} was seen here within {limit_s:g} s (fault.meet_limit_s). "
        f"Start it there: launcher train --run {run.paths.root} . {_NOT_SHARED}"
    )


def _lacking(run: _MultiHostRun, leader: HostStatus, mine: dict[str, str | None]) -> LauncherError | None:
    """Why this host cannot take part."""
    if problems := machine_problems(run.config, visible_gpus()):
        return ConfigErrors(problems)
    for name, folder in (("data", run.derived.data_dir), ("model", run.derived.model_dir)):
        if not Path(folder).is_dir():
            return RunError(
                f"the {name} folder {folder} is not there on {run.host}; set LAUNCHER_CACHE to a folder that all "
                "hosts share, and make the run again"
            )
    theirs = leader.versions
    other = [f"{key} {mine[key]} here, {theirs.get(key)} there" for key in mine if mine[key] != theirs.get(key)]
    if other:
        return RunError(f"{run.host} and {run.hosts[0]} differ: {'; '.join(other)}. Install the same on both")
    return None


def _wait_for_start(run: _MultiHostRun, attempt: int) -> None:
    others = OtherHosts(run.paths, attempt, [run.hosts[0], ""], 1)
    while True:
        leader = others.status(0)
        if leader is not None and leader.state is HostState.running:
            return
        if leader is not None and leader.state is HostState.ended:
            raise WorldError(f"{run.hosts[0]} gave up before the run began: {leader.error or 'interrupted'}")
        if lost := others.lost():
            raise WorldError(f"{lost} ({SILENT_S:g} s is the limit); the run did not begin")
        time.sleep(_POLL_S)


def _open(run_dir: Path) -> _MultiHostRun:
    paths = RunPaths(run_dir.resolve())
    config, derived = load_prepared(paths.config)
    if len(config.cluster.hosts) < 2:
        raise RunError(f"{run_dir.name} is a run on one host: it was made without cluster.hosts")
    return _MultiHostRun(paths, config, derived, own_index(config.cluster.hosts))


def _versions() -> dict[str, str | None]:
    found = versions()
    return {name: found.get(name) for name in _MUST_AGREE}
