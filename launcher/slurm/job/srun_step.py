"""The ranks of an attempt, as one step of the job: started with srun, watched, told to stop, ended when they hang."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from launcher.errors import SlurmError
from launcher.paths import RunPaths
from launcher.runs.hang_detector import Stall, Watch
from launcher.runs.run_dir import last_attempt
from launcher.runs.stop_requests import StopRequests
from launcher.slurm.client.query import Slurm

logger = logging.getLogger(__name__)

_POLL_S = 0.5
_DUMPS_S = 3.0
"""How long ranks get to write their stacks once one of them hangs."""
_KILL_S = 20.0
"""How long srun gets to see its ranks killed."""


@dataclass(frozen=True, slots=True)
class StepEnd:
    """What came of it."""

    exit_code: int
    """Of srun: the largest of the ranks', 128 + N for signal N; -N when srun itself was killed."""
    stall: Stall | None = None
    """The ranks were ended because of it."""


def run_step(
    words: Sequence[str],
    environment: dict[str, str],
    *,
    paths: RunPaths,
    attempt: int,
    world_size: int,
    job_id: str,
    stop: StopRequests,
) -> StepEnd:
    """Starts the ranks and follows them until the last has gone. Main thread only."""
    watch = Watch(paths, attempt, world_size)
    process = subprocess.Popen(
        words,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        # A session of its own: what is sent to our group is for us to pass on, once.
        start_new_session=True,
    )
    assert process.stdout is not None
    reader = threading.Thread(target=_copy, args=(process.stdout, paths.job_log(attempt)), daemon=True)
    reader.start()
    told, stall = 0, None
    while not _has_ended(process):
        if len(stop.names) > told:
            told = len(stop.names)
            _pass_on(process, paths, attempt, stop, job_id)
        stall = watch.stalled()
        if stall is not None:
            logger.error(
                "rank %d on %s has made no progress in %r for %.0f s (limit %.0f s); ending the attempt",
                *(stall.rank, stall.host, stall.phase, stall.silent_s, stall.limit_s),
            )
            _await_dumps(paths, attempt, world_size)
            _kill(process, paths, attempt, job_id)
            break
    code = process.wait()
    reader.join(timeout=5)
    return StepEnd(code, stall)


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=_POLL_S)
    return process.returncode is not None


def _copy(source: BinaryIO, log: Path) -> None:
    """What srun says, into the attempt's job.log and the job's own output.

    A full disk may swallow lines; srun, whose output nobody would read any more, must not wait for it.
    """
    with log.open("ab", buffering=0) as file:
        for line in source:
            with suppress(OSError):
                file.write(line)
            with suppress(OSError):
                os.write(sys.stderr.fileno(), line)


def _pass_on(process: subprocess.Popen[bytes], paths: RunPaths, attempt: int, stop: StopRequests, job_id: str) -> None:
    name = stop.names[-1]
    if len(stop.names) > 1 and paths.cancel.exists():
        logger.warning("%s again, and the run is cancelled: killing the ranks; what was not saved is lost", name)
        _kill(process, paths, attempt, job_id)
        return
    logger.warning("%s: the ranks save at their next step, then stop", name)
    # Mostly they have it from Slurm already, and once more changes nothing; but it may have been sent to us alone.
    # Always USR2, which srun hands on: on TERM or INT it would end the step by itself.
    with suppress(ProcessLookupError):
        process.send_signal(signal.SIGUSR2)


def _await_dumps(paths: RunPaths, attempt: int, world_size: int) -> None:
    files = [paths.stacks(attempt, rank) for rank in range(world_size)]
    deadline = time.monotonic() + _DUMPS_S
    while time.monotonic() < deadline and not all(_is_written(file) for file in files):
        time.sleep(0.1)
    time.sleep(0.1)  # the last of them may not be whole yet


def _is_written(file: Path) -> bool:
    with suppress(OSError):
        return file.stat().st_size > 0
    return False


def _kill(process: subprocess.Popen[bytes], paths: RunPaths, attempt: int, job_id: str) -> None:
    """Ends all ranks at once; where nobody does that for us they die with the job.

    Not when the job went on elsewhere while this node was suspended or cut off: it has the same number there, and the
    ranks that Slurm would end are those of the newer attempt.
    """
    if last_attempt(paths.root) > attempt:
        process.kill()
        return
    try:
        Slurm(retry_s=10.0).signal_steps(job_id, "KILL")
        process.wait(timeout=_KILL_S)
    except (SlurmError, subprocess.TimeoutExpired) as error:
        logger.warning("the ranks could not be ended through Slurm (%s); they end with the job", error)
        process.kill()
