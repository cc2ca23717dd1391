"""W&B beside training: a separate process replays metrics.jsonl, so that nothing W&B does can slow or stop a step."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

import launcher
from launcher.config.schema import WandbMode
from launcher.paths import RunPaths
from launcher.runs.events import Event, EventWriter, read_events

logger = logging.getLogger(__name__)

# The child is one process, not a rank: it must not find the variables by which ranks find each other.
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")


class Replay:
    """A running replay, or none (`process` is None)."""

    def __init__(self, run_dir: Path, attempt: int, process: subprocess.Popen[bytes] | None, pipe_fd: int) -> None:
        self._run_dir = run_dir
        self._attempt = attempt
        self._process = process
        self._pipe_fd = pipe_fd

    def finish(self, timeout_s: float = 10.0) -> bool:
        """Whether W&B has everything. Returns within the time-out and never raises; what W&B still lacks stays in
        metrics.jsonl for `launcher sync RUN`, and beside training that is said. May be called twice."""
        process, self._process = self._process, None
        if process is None:
            return True
        try:
            is_complete = self._end(process, timeout_s)
        except Exception:
            logger.warning("W&B could not be ended", exc_info=True)
            is_complete = False
        # `launcher sync` says itself how it went.
        if not is_complete and self._attempt:
            self._tell()
        return is_complete

    def _tell(self) -> None:
        """Why W&B lacks something, for the person watching: until now it stood in files only."""
        try:
            why = wandb_warning(read_events(RunPaths(self._run_dir).events), attempt=self._attempt)
        except OSError:
            why = ""
        logger.warning("W&B incomplete: launcher sync %s%s", self._run_dir.name, f" ({why})" if why else "")

    def _end(self, process: subprocess.Popen[bytes], timeout_s: float) -> bool:
        # A child that is gone already has said why in events.jsonl.
        with contextlib.suppress(BrokenPipeError):
            os.write(self._pipe_fd, b"finish\n")
        try:
            return process.wait(timeout_s) == 0
        except subprocess.TimeoutExpired:
            _kill_tree(process)
            _record(
                self._run_dir,
                self._attempt,
                f"W&B took longer than {timeout_s:g} s to end; `launcher sync {self._run_dir.name}` sends the rest",
            )
            return False
        finally:
            os.close(self._pipe_fd)


def start(run_dir: Path, mode: WandbMode, *, attempt: int = 0) -> Replay:
    """Starts the replay and returns at once; whatever goes wrong becomes a `warning` event. Ranks: 0 only."""
    chosen = chosen_mode(mode, os.environ)
    if chosen is WandbMode.disabled or (mode is WandbMode.auto and importlib.util.find_spec("wandb") is None):
        return Replay(run_dir, attempt, None, -1)
    try:
        process, pipe_fd = _spawn(run_dir.absolute(), chosen, attempt)
    except OSError as error:
        _warn(run_dir, attempt, f"W&B did not start: {error}; `launcher sync {run_dir.name}` sends the run later")
        return Replay(run_dir, attempt, None, -1)
    return Replay(run_dir, attempt, process, pipe_fd)


def chosen_mode(mode: WandbMode, environment: Mapping[str, str]) -> WandbMode:
    """What `auto` means here: WANDB_MODE where it is set, else online with WANDB_API_KEY, else offline."""
    if mode is not WandbMode.auto:
        return mode
    asked = environment.get("WANDB_MODE")
    if asked in ("online", "offline", "disabled"):
        return WandbMode(asked)
    return WandbMode.online if environment.get("WANDB_API_KEY") else WandbMode.offline


def _spawn(run_dir: Path, mode: WandbMode, attempt: int) -> tuple[subprocess.Popen[bytes], int]:
    # A plain process and not multiprocessing: that would import the training script, and torch, into the child.
    paths = RunPaths(run_dir)
    paths.wandb.mkdir(parents=True, exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if name not in RANK_VARIABLES}
    package_root = str(Path(launcher.__file__).parent.parent)
    # Nobody agreed to crash reports to a third party.
    environment["WANDB_ERROR_REPORTING"] = "false"
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
    read_fd, write_fd = os.pipe()
    try:
        with (paths.wandb / "replay.log").open("ab") as log:
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "launcher.tracking.wandb_child",
                    str(run_dir),
                    mode.value,
                    str(attempt),
                    str(read_fd),
                ],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=(read_fd,),
                # Its own session: Ctrl-C at the terminal is meant for training.
                start_new_session=True,
            )
    except BaseException:
        os.close(write_fd)
        raise
    finally:
        os.close(read_fd)
    return process, write_fd


def _kill_tree(process: subprocess.Popen[bytes]) -> None:
    """Ends the child and W&B's own service below it, which runs in a session of its own."""
    try:
        below = psutil.Process(process.pid).children(recursive=True)
    except psutil.Error:
        below = []
    process.kill()
    for service in below:
        try:
            service.kill()
        except psutil.Error:
            continue
    process.wait()


def wandb_warning(events: Sequence[Event], *, attempt: int | None = None) -> str:
    """Why W&B may lack something: the newest warning about it, unless it was complete after that; else empty."""
    said = ""
    for event in events:
        if attempt is not None and event.attempt != attempt:
            continue
        if event.event == "warning" and event.fields.get("source") == "wandb":
            said = str(event.fields.get("message") or "")
        elif event.event == "wandb" and event.fields.get("complete") is True:
            said = ""
    return said


def _warn(run_dir: Path, attempt: int, message: str) -> None:
    logger.warning("%s", message)
    _record(run_dir, attempt, message)


def _record(run_dir: Path, attempt: int, message: str) -> None:
    try:
        writer = EventWriter(RunPaths(run_dir).events, attempt, rank=0)
        writer.write("warning", source="wandb", message=message)
        writer.close()
    except OSError:
        logger.warning("the event could not be written", exc_info=True)
