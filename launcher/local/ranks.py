"""All ranks of a run on this host: started together, stopped together, never left behind."""

from __future__ import annotations

import ctypes
import logging
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from launcher.config.frozen import load_prepared
from launcher.config.schema import Derived, RunConfig
from launcher.errors import ExitCode, HostLost, RunError
from launcher.files import write_json
from launcher.local.attempt import RankExits, begin_local, end_local
from launcher.local.terminal import RankOutput
from launcher.paths import RunPaths
from launcher.runs.hang_detector import HangDetector
from launcher.runs.jsonl import utc_now
from launcher.runs.network import free_port
from launcher.runs.rank_environment import RankEnvironment, RankNumbers, job_environment, write_names
from launcher.runs.states import StarterProcess
from launcher.runs.stop_requests import RANK_STOP_SIGNALS, StopRequests, noting_stops

logger = logging.getLogger(__name__)

WORKER = (sys.executable, "-m", "launcher.train")
GRACE_S = 15.0
"""How long ranks may take to leave after another one failed, before they are killed."""
DUMPS_S = 1.5
"""How long ranks get to write down their stacks once one of them hangs."""

_TAIL_LINES = 20
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostShare:
    """The ranks that one host starts, and where they meet the others; ranks are dealt out to hosts in blocks."""

    first_rank: int = 0
    num_ranks: int
    master_address: str = "127.0.0.1"
    master_port: int
    interface: str = ""
    """Network interface that leads to the other hosts; empty when there are none."""
    lost: Callable[[], HostLost | None] = lambda: None
    """Asked a few times a second: the other host that has gone."""

    @property
    def leads(self) -> bool:
        """Whether this host keeps the record of the attempt: the first one does."""
        return self.first_rank == 0


def run_local(
    run_dir: Path,
    *,
    attempt: int,
    lock: int | None = None,
    worker: Sequence[str] = WORKER,
    share: HostShare | None = None,
) -> int:
    """Starts every rank of the run as a process here, forwards stop signals, and waits for all. Main thread only.

    The first rank of the host is shown on stderr too.

    Args:
        lock: descriptor of the run's lock; ranks inherit it.
        worker: the command of one rank, before its own arguments.
        share: the ranks to start, in a run on several hosts; left out: all.
    Returns: 0 if all ranks did their work; 75 if they were stopped and saved; 7 if one of them hung; otherwise the code
        of the rank that failed first, 128 + N if signal N ended it; 130 if the user killed them.
    Raises: RunError if the run directory has gone.
    """
    paths = RunPaths(run_dir.resolve())
    config, derived = startable(paths, on_several_hosts=share is not None)
    share = share or HostShare(num_ranks=derived.world_size, master_port=free_port("127.0.0.1"))
    if share.leads:
        record = begin_local(paths, attempt, derived, config.cluster.hosts)
    command = [*worker, "--run", str(paths.root), "--attempt", str(attempt)]
    with noting_stops() as stop:
        ranks = _start_ranks(paths, attempt, derived, share, command, lock)
        watch = HangDetector(paths, attempt, derived.world_size) if share.leads else None
        exits = _follow(ranks, stop, share, watch)
    for rank in ranks:
        if rank.output is not None:
            rank.output.close()
    if not paths.config.is_file():
        raise RunError(f"{run_dir} was removed while it trained; what it had saved there is gone. Start a new run")
    if not share.leads:
        _explain(exits.first_failure, exits, ranks)
        return exits.exit_code
    verdict, code = end_local(paths, record, exits)
    _explain(verdict.summary, exits, ranks)
    return code


def startable(paths: RunPaths, *, on_several_hosts: bool = False) -> tuple[RunConfig, Derived]:
    """Raises: RunError if this host cannot start the run, because it needs several or is not prepared."""
    config, derived = load_prepared(paths.config)
    if config.cluster.nodes > 1 and not on_several_hosts:
        raise RunError(
            f"{paths.root.name} was planned for {config.cluster.nodes} hosts, and this command starts only this one. "
            "Make it with cluster.hosts, or use launcher submit, or torchrun -m launcher.train on each host"
        )
    return config, derived


@dataclass(slots=True)
class _RankProcess:
    number: int
    process: subprocess.Popen[bytes]
    log: Path
    output: RankOutput | None
    code: int | None = None

    def kill(self) -> None:
        """Ends the rank and every process it started: it leads a group of its own."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


def _start_ranks(
    paths: RunPaths, attempt: int, derived: Derived, share: HostShare, command: list[str], lock: int | None
) -> list[_RankProcess]:
    common = RankEnvironment(
        master_address=share.master_address,
        master_port=share.master_port,
        threads=derived.threads_per_process,
        device=derived.device,
        ranks_per_node=share.num_ranks,
        interface=share.interface,
    )
    job = job_environment(os.environ)
    if share.leads:
        write_names(paths.attempt(attempt) / "env.json", common.variables(job))
    ranks = []
    for local_rank in range(share.num_ranks):
        number = share.first_rank + local_rank
        environment = common.variables(job, numbers=RankNumbers(number, local_rank, derived.world_size))
        log = paths.rank_log(attempt, number)
        ranks.append(_start_rank(number, command, environment, log, local_rank == 0, lock))
    if share.leads:
        me = psutil.Process()
        starter = StarterProcess(
            pid=me.pid,
            created=me.create_time(),
            host=socket.gethostname(),
            started=utc_now(),
            ranks=[rank.process.pid for rank in ranks],
        )
        # Not synced to disk: of no use after a restart of this host.
        write_json(paths.process(attempt), starter, indent=None, durable=False)
    return ranks


def _start_rank(
    number: int, command: list[str], environment: dict[str, str], log: Path, show: bool, lock: int | None
) -> _RankProcess:
    output = RankOutput(log) if show else None
    with log.open("ab") as plain:
        sink = output.descriptor if output is not None else plain.fileno()
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            # A session of its own: Ctrl-C in the terminal reaches us only, and we pass it on to every rank once.
            start_new_session=True,
            pass_fds=[] if lock is None else [lock],
            preexec_fn=_die_with(os.getpid()),
        )
    if output is not None:
        output.start()
    return _RankProcess(number, process, log, output)


def _die_with(parent: int) -> Callable[[], None]:
    """A rank first asks the kernel for SIGTERM when its starter dies, so that it saves and leaves.

    Stop signals are held back until the rank can catch them (train/stop.py): none is lost, and none kills it.
    """

    def arrange() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, RANK_STOP_SIGNALS)
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(ExitCode.PREEMPTED)

    return arrange


def _follow(ranks: list[_RankProcess], stop: StopRequests, share: HostShare, watch: HangDetector | None) -> RankExits:
    """Follows the ranks until the last one has gone."""
    left: queue.SimpleQueue[_RankProcess] = queue.SimpleQueue()
    for rank in ranks:
        threading.Thread(target=_report_exit, args=(rank, left), daemon=True).start()
    exits = RankExits()
    kill_at = float("inf")
    while len(exits.exits) < len(ranks):
        with suppress(queue.Empty):
            rank = left.get(timeout=0.1)
            had_failed = exits.first_failed is not None
            exits.add(rank.number, rank.code or 0)
            if rank.code == ExitCode.PREEMPTED:
                # A stop signal that reached this rank alone is for all of them.
                _ask_to_leave(ranks)
            if exits.first_failed is not None and not had_failed:
                # The others cannot continue without it.
                kill_at = time.monotonic() + GRACE_S
                _ask_to_leave(ranks)
        is_running = len(exits.exits) < len(ranks)
        if is_running and not exits.lost and exits.first_failed is None and (lost := share.lost()):
            # Nor can they without the ranks of another host; a collective with those would wait for long.
            exits.lost = lost
            logger.error("%s; leaving", lost)
            kill_at = time.monotonic() + GRACE_S
            _ask_to_leave(ranks)
        if watch is not None and exits.stall is None and (stall := watch.stalled()):
            exits.stall = stall
            logger.error(
                "rank %d has made no progress in phase %s for %.0f s (limit %.0f s); ending the run",
                *(stall.rank, stall.phase, stall.silent_s, stall.limit_s),
            )
            kill_at = time.monotonic() + DUMPS_S
        if stop.names and not exits.stopped_by:
            exits.stopped_by = stop.first
            logger.warning("%s: saving at the next step, then stopping. Once more kills without saving.", stop.first)
            _ask_to_leave(ranks)
        if len(stop.names) >= 2 and not exits.killed:
            exits.killed = True
            logger.warning("killing all ranks; what was not saved is lost")
            kill_at = time.monotonic()
        if time.monotonic() >= kill_at:
            kill_at = float("inf")
            for rank in ranks:
                rank.kill()
    return exits


def _report_exit(rank: _RankProcess, left: queue.SimpleQueue[_RankProcess]) -> None:
    rank.code = rank.process.wait()
    left.put(rank)


def _ask_to_leave(ranks: list[_RankProcess]) -> None:
    for rank in ranks:
        if rank.code is None:
            rank.process.terminate()


def _explain(summary: str, exits: RankExits, ranks: list[_RankProcess]) -> None:
    """Logs why the attempt failed, and the end of the log of the rank that failed first unless it was on the screen."""
    if exits.first_failed is None:
        return
    rank = next(rank for rank in ranks if rank.number == exits.first_failed[0])
    logger.error("%s; log of rank %d: %s", summary, rank.number, rank.log)
    if rank.output is None:
        tail = rank.log.read_text("utf-8", errors="replace").splitlines()[-_TAIL_LINES:]
        if tail:
            logger.error("last lines of rank %d:\n%s", rank.number, "\n".join(f"  | {line}" for line in tail))
