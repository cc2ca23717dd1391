"""Runs the ranks of an attempt as one job step: starts srun, passes on stop signals, kills the ranks if they hang."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from launcher.errors import SlurmError
from launcher.paths import RunPaths
from launcher.runs.attempts import AttemptRecord
from launcher.runs.hang_detector import HangDetector, Stall
from launcher.runs.run_dir import last_attempt
from launcher.runs.stop_requests import StopRequests
from launcher.slurm.client.query import Slurm

logger = logging.getLogger(__name__)

_POLL_S = 0.5
_DUMPS_S = 3.0
"""How long ranks may take to dump their stacks once one of them hangs."""
_KILL_S = 20.0
"""How long srun may take to exit once its ranks are killed."""


def run_step(
    argv: Sequence[str], environment: Mapping[str, str], paths: RunPaths, record: AttemptRecord, stop: StopRequests
) -> tuple[int, Stall | None]:
    """Starts the ranks and waits until the last has exited. Main thread only.

    Returns: srun's exit code (the largest of the ranks', 128 + N for signal N, -N if srun itself was killed), and the
        hang because of which the ranks were killed.
    """
    watch = HangDetector(paths, record.attempt, record.world_size)
    process = subprocess.Popen(
        argv,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        # In its own session, so that a signal to our process group reaches srun only through us, once.
        start_new_session=True,
    )
    assert process.stdout is not None
    reader = threading.Thread(target=_copy, args=(process.stdout, paths.job_log(record.attempt)), daemon=True)
    reader.start()
    passed_on, stall = 0, None
    while not _has_ended(process):
        if len(stop.names) > passed_on:
            passed_on = len(stop.names)
            _pass_on(process, paths, record, stop)
        stall = watch.stalled()
        if stall is not None:
            logger.error(
                "rank %d on %s has made no progress in %r for %.0f s (limit %.0f s); ending the attempt",
                *(stall.rank, stall.host, stall.phase, stall.silent_s, stall.limit_s),
            )
            _await_dumps(paths, record)
            _kill(process, paths, record)
            break
    code = process.wait()
    reader.join(timeout=5)
    return code, stall


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=_POLL_S)
    return process.returncode is not None


def _copy(source: BinaryIO, log: Path) -> None:
    """Copies srun's output to the attempt's job.log and the job's own output.

    A full disk may lose lines, but must not stop the copying: srun would block on a full pipe.
    """
    with log.open("ab", buffering=0) as file:
        for line in source:
            with suppress(OSError):
                file.write(line)
            with suppress(OSError):
                os.write(sys.stderr.fileno(), line)


def _pass_on(process: subprocess.Popen[bytes], paths: RunPaths, record: AttemptRecord, stop: StopRequests) -> None:
    name = stop.names[-1]
    if len(stop.names) > 1 and paths.cancel.exists():
        logger.warning("%s again, and the run is cancelled: killing the ranks; unsaved steps are lost", name)
        _kill(process, paths, record)
        return
    logger.warning("%s: the ranks save at their next step, then stop", name)
    # Slurm may have signalled only us; a second signal does the ranks no harm. Always USR2, which srun forwards: on
    # TERM or INT it would end the step itself.
    with suppress(ProcessLookupError):
        process.send_signal(signal.SIGUSR2)


def _await_dumps(paths: RunPaths, record: AttemptRecord) -> None:
    files = [paths.stacks(record.attempt, rank) for rank in range(record.world_size)]
    deadline = time.monotonic() + _DUMPS_S
    while time.monotonic() < deadline and not all(_is_written(file) for file in files):
        time.sleep(0.1)
    time.sleep(0.1)  # the last one may be incomplete


def _is_written(file: Path) -> bool:
    with suppress(OSError):
        return file.stat().st_size > 0
    return False


def _kill(process: subprocess.Popen[bytes], paths: RunPaths, record: AttemptRecord) -> None:
    """Kills all ranks at once; if Slurm does not do so, they end with the job.

    If the job was restarted elsewhere while this node was suspended or cut off, it kept its id, and Slurm would kill
    the ranks of the newer attempt: then only srun is killed.
    """
    if last_attempt(paths.root) > record.attempt:
        process.kill()
        return
    try:
        Slurm(retry_s=10.0).signal_steps(record.job_id, "KILL")
        process.wait(timeout=_KILL_S)
    except (SlurmError, subprocess.TimeoutExpired) as error:
        logger.warning("the ranks could not be ended through Slurm (%s); they end with the job", error)
        process.kill()
