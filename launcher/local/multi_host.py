"""A run over several machines without Slurm: cluster.hosts names them, and they share the folder of the run.

The first machine makes the attempt and waits (`lead`). On every other one the user, or a remote shell, starts
`launcher train --join RUN` (`join`). When all have come, each starts its own ranks as a run on one machine does.
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
from launcher.diagnose.local_attempt import begin_attempt, end_attempt
from launcher.diagnose.outcome import Outcome
from launcher.errors import ConfigErrors, LauncherError, RunError, WorldError
from launcher.local.host_status import SILENT_S, BoxNote, BoxState, OtherBoxes, OwnNote, read_note
from launcher.local.ranks import run_local
from launcher.local.remote_shell import RemoteBoxes, join_words
from launcher.paths import RunPaths
from launcher.runs.machine_ranks import Place
from launcher.runs.network import free_port_for_others, interface_to, own_box
from launcher.runs.run_dir import last_attempt, versions

logger = logging.getLogger(__name__)

_POLL_S = 0.1
_MUST_AGREE = ("launcher", "python", "torch", "accelerate", "deepspeed", "transformers", "peft")


@dataclass(frozen=True, slots=True)
class _Part:
    """This machine's part of a run over several."""

    paths: RunPaths
    config: RunConfig
    derived: Derived
    box: int

    @property
    def hosts(self) -> list[str]:
        return self.config.cluster.hosts

    @property
    def host(self) -> str:
        return self.hosts[self.box]

    def place(self, attempt: int, *, address: str, port: int) -> Place:
        per_box = self.derived.devices_per_node
        others = OtherBoxes(self.paths, attempt, self.hosts, self.box)
        return Place(
            first_rank=self.box * per_box,
            num_ranks=per_box,
            master_address=address,
            master_port=port,
            interface=interface_to(self.hosts[1] if self.box == 0 else self.hosts[0]),
            lost=others.lost,
        )


def check_leader(run_dir: Path) -> None:
    """Raises: RunError if this machine is not the first of the run's."""
    part = _part(run_dir)
    if part.box != 0:
        raise RunError(
            f"this machine is {part.host}, number {part.box + 1} of {run_dir.name}; the run is started on the first, "
            f"{part.hosts[0]}. Here: {' '.join(join_words(run_dir))}"
        )


def lead(run_dir: Path, *, attempt: int, console: bool, lock: int | None, remote: bool) -> int:
    """Runs an attempt from the first machine: waits for the others, then starts the ranks of this one.

    Args:
        remote: start the others through a remote shell; else the user does.
    Returns: as run_local.
    Raises: WorldError if a machine does not come within fault.meet_limit_s, or cannot take part.
    """
    part = _part(run_dir)
    address, port = part.hosts[0], free_port_for_others()
    note = BoxNote(
        box=0,
        host=socket.gethostname(),
        state=BoxState.waiting,
        token=secrets.token_hex(16),
        master_address=address,
        master_port=port,
        versions=_versions(),
    )
    with ExitStack() as held:
        own = held.enter_context(OwnNote(part.paths.host_status(attempt, 0), note))
        started = held.enter_context(RemoteBoxes(part.paths, attempt, part.hosts)) if remote else None
        if started is None:
            words = " ".join(join_words(run_dir.resolve()))
            logger.warning("waiting for %s; start there: %s", ", ".join(part.hosts[1:]), words)
        try:
            _wait_for_others(part, attempt, note.token, started)
        except WorldError as error:
            outcome = Outcome(lost=error)
            end_attempt(part.paths.root, begin_attempt(part.paths.root, attempt, part.derived), outcome)
            raise
        own.move_to(BoxState.running)
        code = run_local(
            run_dir,
            attempt=attempt,
            console=console,
            lock=lock,
            place=part.place(attempt, address=address, port=port),
        )
        own.end(code)
    return code


def _wait_for_others(part: _Part, attempt: int, token: str, started: RemoteBoxes | None) -> None:
    others = OtherBoxes(part.paths, attempt, part.hosts, part.box)
    limit_s = part.config.fault.meet_limit_s
    deadline = time.monotonic() + limit_s
    missing = list(range(1, len(part.hosts)))
    while missing:
        for box in list(missing):
            note = others.note(box)
            if note is None or note.token != token:
                continue
            if note.error:
                raise WorldError(f"{part.hosts[box]} cannot take part: {note.error}")
            logger.info("%s has joined", part.hosts[box])
            missing.remove(box)
        if started is not None:
            started.refuse_failed(missing)
        if missing and time.monotonic() > deadline:
            names = ", ".join(part.hosts[box] for box in missing)
            raise WorldError(
                f"{names} did not join within {limit_s:g} s (fault.meet_limit_s). Start there: "
                f"{' '.join(join_words(part.paths.root))} . If that was done, the folder is not the same on both: "
                "the machines of a run need a shared file system"
            )
        time.sleep(_POLL_S)


def join(run_dir: Path, *, console: bool = True) -> int:
    """Takes part in a run that the first machine of cluster.hosts has started or is about to start.

    Returns: as run_local, for the ranks of this machine.
    Raises: RunError if this machine has no part in it or lacks something; WorldError if the first one does not answer.
    """
    part = _part(run_dir)
    if part.box == 0:
        raise RunError(f"this machine is {part.host}, the first of {run_dir.name}: start it with launcher train --run")
    attempt, leader = _open_attempt(part)
    lacking = _lacking(part, leader)
    note = BoxNote(
        box=part.box, host=socket.gethostname(), state=BoxState.joined, token=leader.token, versions=_versions()
    )
    with OwnNote(part.paths.host_status(attempt, part.box), note) as own:
        if lacking is not None:
            own.end(lacking.exit_code, error=str(lacking))
            raise lacking
        _wait_for_start(part, attempt)
        own.move_to(BoxState.running)
        place = part.place(attempt, address=leader.master_address, port=leader.master_port)
        code = run_local(run_dir, attempt=attempt, console=console, place=place)
        own.end(code)
    return code


def _open_attempt(part: _Part) -> tuple[int, BoxNote]:
    """The attempt that waits for this machine, seen to be alive: its file changes while we look."""
    limit_s = part.config.fault.meet_limit_s
    deadline = time.monotonic() + limit_s
    first: dict[int, int] = {}
    told = False
    while time.monotonic() < deadline:
        attempt = last_attempt(part.paths.root)
        note = read_note(part.paths.host_status(attempt, 0)) if attempt else None
        if note is not None and note.state is not BoxState.ended and note.beat != first.setdefault(attempt, note.beat):
            if note.state is BoxState.waiting:
                return attempt, note
            raise RunError(
                f"{part.paths.root.name} runs already, without this machine joining anew; stop it on {part.hosts[0]} "
                "(launcher cancel) before you start it again"
            )
        if not told and len(first) == 0:
            logger.info("waiting for %s to start %s", part.hosts[0], part.paths.root.name)
            told = True
        time.sleep(_POLL_S)
    raise WorldError(
        f"no attempt of {part.paths.root} by {part.hosts[0]} was seen here within {limit_s:g} s (fault.meet_limit_s). "
        f"Start it there: launcher train --run {part.paths.root} . If that was done, the folder is not the "
        "same on both: the machines of a run need a shared file system"
    )


def _lacking(part: _Part, leader: BoxNote) -> LauncherError | None:
    """Why this machine cannot take part."""
    if problems := machine_problems(part.config, visible_gpus()):
        return ConfigErrors(problems)
    for name, folder in (("data", part.derived.data_dir), ("model", part.derived.model_dir)):
        if not Path(folder).is_dir():
            return RunError(
                f"the {name} folder {folder} is not there on {part.host}; set LAUNCHER_CACHE to a folder that all "
                "machines share, and make the run again"
            )
    mine = _versions()
    other = [
        f"{key} {mine[key]} here, {leader.versions.get(key)} there"
        for key in mine
        if mine[key] != leader.versions.get(key)
    ]
    if other:
        return RunError(f"{part.host} and {part.hosts[0]} differ: {'; '.join(other)}. Install the same on both")
    return None


def _wait_for_start(part: _Part, attempt: int) -> None:
    others = OtherBoxes(part.paths, attempt, [part.hosts[0], ""], 1)
    while True:
        note = others.note(0)
        if note is not None and note.state is BoxState.running:
            return
        if note is not None and note.state is BoxState.ended:
            raise WorldError(f"{part.hosts[0]} gave up before the run began: {note.error or 'interrupted'}")
        if lost := others.lost():
            raise WorldError(f"{lost} ({SILENT_S:g} s is the limit); the run did not begin")
        time.sleep(_POLL_S)


def _part(run_dir: Path) -> _Part:
    paths = RunPaths(run_dir.resolve())
    config, derived = load_prepared(paths.config)
    hosts = config.cluster.hosts
    if len(hosts) < 2:
        raise RunError(f"{run_dir.name} is a run on one machine: it was made without cluster.hosts")
    return _Part(paths, config, derived, own_box(hosts))


def _versions() -> dict[str, str | None]:
    found = versions()
    return {name: found.get(name) for name in _MUST_AGREE}
