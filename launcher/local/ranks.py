"""All ranks of a run on this machine: started together, stopped together, never left behind."""

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
from launcher.config.schema import Derived
from launcher.diagnose.local_attempt import begin_attempt, end_attempt
from launcher.diagnose.outcome import Outcome
from launcher.errors import ExitCode, RunError
from launcher.files import write_json
from launcher.local.terminal import RankOutput
from launcher.paths import RunPaths
from launcher.runs.hang_detector import Watch
from launcher.runs.jsonl import utc_now
from launcher.runs.machine_ranks import Place
from launcher.runs.rank_environment import RankEnvironment, RankNumbers, job_environment, write_names
from launcher.runs.stop_requests import StopRequests

logger = logging.getLogger(__name__)

WORKER = (sys.executable, "-m", "launcher.train")
GRACE_S = 15.0
"""How long ranks may take to leave after another one failed, before they are killed."""
DUMPS_S = 1.5
"""How long ranks get to write down their stacks once one of them hangs."""

_TAIL_LINES = 20
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


def run_local(
    run_dir: Path,
    *,
    attempt: int,
    console: bool = True,
    lock: int | None = None,
    worker: Sequence[str] = WORKER,
    grace_s: float = GRACE_S,
    place: Place | None = None,
) -> int:
    """Starts every rank of the run as a process here, forwards stop signals, and waits for all. Main thread only.

    Args:
        console: show rank 0 on stderr too.
        lock: descriptor of the run's lock; ranks inherit it.
        worker: the command of one rank, before its own arguments.
        place: which ranks to start, and where they meet those of other machines; left out: all, here.
    Returns: 0 if all ranks did their work; 75 if they were stopped and saved; 7 if one of them hung; else the code of
        the rank that failed first, 128 + N if signal N ended it; 130 if the user killed them.
    Raises: RunError if the run directory has gone.
    """
    paths = RunPaths(run_dir.resolve())
    derived = startable(paths, place)
    job = job_environment(os.environ)
    place = place or Place(num_ranks=derived.world_size, master_port=free_port())
    told = RankEnvironment(
        master_address=place.master_address,
        master_port=place.master_port,
        threads=derived.threads_per_process,
        device=derived.device,
        ranks_per_node=place.num_ranks,
        interface=place.interface,
    )
    if place.leads:
        write_names(paths.attempt(attempt) / "env.json", told.variables(job))
        record = begin_attempt(paths.root, attempt, derived)
    command = [*worker, "--run", str(paths.root), "--attempt", str(attempt)]
    with StopRequests() as stop:
        ranks: list[_Rank] = []
        for number in place.ranks():
            numbers = RankNumbers(number, number - place.first_rank, derived.world_size)
            environment = told.variables(job, numbers=numbers)
            show = console and number == place.first_rank
            ranks.append(_start_rank(number, command, environment, paths.rank_log(attempt, number), show, lock))
        if place.leads:
            _write_process(paths.process(attempt), ranks)
        watch = Watch(paths, attempt, derived.world_size) if place.leads else None
        outcome = _wait(ranks, stop, grace_s, place, watch)
    for rank in ranks:
        if rank.output is not None:
            rank.output.close()
    if not paths.config.is_file():
        raise RunError(f"{run_dir} was removed while it trained; what it had saved there is gone. Start a new run")
    summary = end_attempt(paths.root, record, outcome).summary if place.leads else outcome.first_failure
    _explain(summary, outcome, ranks)
    return outcome.exit_code


def free_port() -> int:
    """A TCP port nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def startable(paths: RunPaths, place: Place | None) -> Derived:
    """What was derived for a run that this host can start.

    Raises: RunError if it was never planned, or was planned for several hosts and has no `place` among them.
    """
    config, derived = load_prepared(paths.config)
    if place is None and config.cluster.nodes > 1:
        raise RunError(
            f"{paths.root.name} was planned for {config.cluster.nodes} machines, and this command starts only "
            "this one. Make it with cluster.hosts, or use launcher submit, or torchrun -m launcher.train on each"
        )
    return derived


@dataclass(slots=True)
class _Rank:
    number: int
    process: subprocess.Popen[bytes]
    log: Path
    output: RankOutput | None
    code: int | None = None

    def send(self, number: signal.Signals) -> None:
        if self.code is None:
            self.process.send_signal(number)

    def kill(self) -> None:
        """Ends the rank and every process it started: it leads a group of its own."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


def _start_rank(
    number: int, command: list[str], environment: dict[str, str], log: Path, show: bool, lock: int | None
) -> _Rank:
    output = RankOutput(log) if show else None
    with log.open("ab") as plain:
        sink = output.descriptor if output is not None else plain.fileno()
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            # A session of its own: Ctrl-C in the terminal reaches us only, and we tell every rank once.
            start_new_session=True,
            pass_fds=[] if lock is None else [lock],
            preexec_fn=_die_with(os.getpid()),
        )
    if output is not None:
        output.start()
    return _Rank(number, process, log, output)


def _die_with(parent: int) -> Callable[[], None]:
    """What a rank does first: ask the kernel for SIGTERM when its starter dies, so that it saves and leaves.

    Stop signals are held back until the rank can catch them (train/stop.py): none is lost, and none kills it.
    """

    def arrange() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2))
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(ExitCode.PREEMPTED)

    return arrange


def _write_process(path: Path, ranks: list[_Rank]) -> None:
    """Who runs this attempt; start times tell these processes from later ones with the same numbers."""
    me = psutil.Process()
    document = {
        "pid": me.pid,
        "created": me.create_time(),
        "host": socket.gethostname(),
        "started": utc_now(),
        "ranks": [rank.process.pid for rank in ranks],
    }
    write_json(path, document, indent=None, durable=False)  # of no use after a restart of this machine


def _wait(ranks: list[_Rank], stop: StopRequests, grace_s: float, place: Place, watch: Watch | None = None) -> Outcome:
    """Follows the ranks until the last one has gone."""
    exits: queue.SimpleQueue[_Rank] = queue.SimpleQueue()
    for rank in ranks:
        threading.Thread(target=_report_exit, args=(rank, exits), daemon=True).start()
    outcome = Outcome()
    running = len(ranks)
    kill_at = float("inf")
    while running:
        try:
            rank = exits.get(timeout=0.1)
        except queue.Empty:
            pass
        else:
            running -= 1
            outcome.add_exit(rank.number, rank.code or 0, stopping=bool(outcome.stopped_by or outcome.lost))
            if rank.code == ExitCode.PREEMPTED:
                # A stop signal that reached this rank alone is for all of them.
                _send_all(ranks, signal.SIGTERM)
            if outcome.failed_rank == rank.number:
                # The others cannot go on without it: ask them to leave, then make them.
                kill_at = time.monotonic() + grace_s
                _send_all(ranks, signal.SIGTERM)
        if running and not outcome.lost and outcome.failed_rank is None and (lost := place.lost()):
            # Nor can they without the ranks of another machine; a collective with those would wait for long.
            outcome.lost = lost
            logger.error("%s; leaving", lost)
            kill_at = time.monotonic() + grace_s
            _send_all(ranks, signal.SIGTERM)
        if watch is not None and outcome.stall is None and (stall := watch.stalled()):
            outcome.stall = stall
            logger.error(
                "rank %d has made no progress in phase %s for %.0f s (limit %.0f s); ending the run",
                *(stall.rank, stall.phase, stall.silent_s, stall.limit_s),
            )
            kill_at = time.monotonic() + DUMPS_S
        if stop.count >= 1 and not outcome.stopped_by:
            outcome.stopped_by = stop.first
            logger.warning("%s: saving at the next step, then stopping. Once more kills without saving.", stop.first)
            _send_all(ranks, signal.SIGTERM)
        if stop.count >= 2 and not outcome.killed:
            outcome.killed = True
            logger.warning("killing all ranks; what was not saved is lost")
            kill_at = time.monotonic()
        if time.monotonic() >= kill_at:
            kill_at = float("inf")
            for other in ranks:
                other.kill()
    return outcome


def _report_exit(rank: _Rank, exits: queue.SimpleQueue[_Rank]) -> None:
    rank.code = rank.process.wait()
    exits.put(rank)


def _send_all(ranks: list[_Rank], number: signal.Signals) -> None:
    for rank in ranks:
        rank.send(number)


def _explain(summary: str, outcome: Outcome, ranks: list[_Rank]) -> None:
    """Logs why the attempt failed, and the end of the log of the rank that failed first unless it was on the screen."""
    if outcome.failed_rank is None:
        return
    rank = next(rank for rank in ranks if rank.number == outcome.failed_rank)
    logger.error("%s; log of rank %d: %s", summary, rank.number, rank.log)
    if rank.output is None:
        tail = rank.log.read_text("utf-8", errors="replace").splitlines()[-_TAIL_LINES:]
        if tail:
            logger.error("last lines of rank %d:\n%s", rank.number, "\n".join(f"  | {line}" for line in tail))
