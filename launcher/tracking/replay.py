"""Sends a run to its trackers from processes of their own, so that nothing a tracker does can slow or stop a step."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

import launcher
from launcher.config.schema import TrackConfig, TrackerName
from launcher.paths import RunPaths
from launcher.runs.events import Event, EventWriter, read_events
from launcher.runs.rank_environment import RANK_VARIABLES
from launcher.tracking.tracker import chosen_trackers, load_tracker

logger = logging.getLogger(__name__)

# Reports about the user's work to third parties that nobody agreed to.
NO_TELEMETRY = {"WANDB_ERROR_REPORTING": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}


@dataclass(frozen=True, slots=True)
class _Child:
    """The process of one tracker."""

    name: str
    process: subprocess.Popen[bytes]
    pipe_fd: int


class Replay:
    """The running children of one attempt, or of a sync (attempt 0)."""

    def __init__(self, run_dir: Path, attempt: int) -> None:
        self._run_dir = run_dir
        self._attempt = attempt
        self._children: list[_Child] = []

    def add(self, name: str, destination: str) -> None:
        """Starts the child of one tracker; a failure becomes a `warning` event."""
        try:
            self._children.append(_spawn(self._run_dir.absolute(), name, destination, self._attempt))
        except OSError as error:
            why = f"{load_tracker(name).title} did not start: {error}"
            _record(self._run_dir, self._attempt, name, f"{why}; `launcher sync {self._run_dir.name}` sends the run")

    def finish(self, timeout_s: float = 10.0) -> bool:
        """Whether the trackers have everything. Returns within the time-out, which all share, and never raises; what a
        tracker lacks stays in metrics.jsonl for `launcher sync RUN`. May be called twice."""
        children, self._children = self._children, []
        deadline = time.monotonic() + timeout_s
        for child in children:
            # A child that is gone already has said why in events.jsonl.
            with contextlib.suppress(OSError):
                os.write(child.pipe_fd, b"finish\n")
        complete = [self._end(child, deadline, timeout_s) for child in children]
        # `launcher sync` says itself how it went.
        if not all(complete) and self._attempt:
            self._report_incomplete([child.name for child, ok in zip(children, complete, strict=True) if not ok])
        return all(complete)

    def _report_incomplete(self, names: list[str]) -> None:
        try:
            whys = tracker_warnings(read_events(RunPaths(self._run_dir).events), attempt=self._attempt)
        except OSError:
            whys = {}
        for name in names:
            logger.warning("%s", incomplete_note(self._run_dir.name, name, whys.get(name, "")))

    def _end(self, child: _Child, deadline: float, timeout_s: float) -> bool:
        try:
            return child.process.wait(max(0.0, deadline - time.monotonic())) == 0
        except subprocess.TimeoutExpired:
            _kill_tree(child.process)
            why = f"{load_tracker(child.name).title} took longer than {timeout_s:g} s to end"
            _record(
                self._run_dir, self._attempt, child.name, f"{why}; `launcher sync {self._run_dir.name}` sends the rest"
            )
        except Exception:
            logger.warning("%s could not be ended", child.name, exc_info=True)
        finally:
            os.close(child.pipe_fd)
        return False


def start(run_dir: Path, track: TrackConfig, *, attempt: int) -> Replay:
    """Starts the replay to the chosen trackers and returns at once; never raises into training. Ranks: 0 only."""
    replay = Replay(run_dir, attempt)
    for name in chosen_trackers(track):
        try:
            destination = load_tracker(name).destination(track, os.environ)
            if destination is not None:
                replay.add(name, destination)
        except Exception:
            logger.warning("%s could not be started", name, exc_info=True)
    return replay


def _spawn(run_dir: Path, name: str, destination: str, attempt: int) -> _Child:
    # A plain process and not multiprocessing: that would import the training script, and torch, into the child.
    folder = RunPaths(run_dir).tracker(name)
    folder.mkdir(parents=True, exist_ok=True)
    environment = {key: value for key, value in os.environ.items() if key not in RANK_VARIABLES} | NO_TELEMETRY
    package_root = str(Path(launcher.__file__).parent.parent)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
    read_fd, write_fd = os.pipe()
    argv = [sys.executable, "-m", "launcher.tracking.replay_process"]
    try:
        with (folder / "replay.log").open("ab") as log:
            process = subprocess.Popen(
                [*argv, str(run_dir), name, destination, str(attempt), str(read_fd)],
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
    return _Child(name, process, write_fd)


def _kill_tree(process: subprocess.Popen[bytes]) -> None:
    """Ends the child and the services below it: W&B's runs in a session of its own."""
    try:
        below = psutil.Process(process.pid).children(recursive=True)
    except psutil.Error:
        below = []
    process.kill()
    for service in below:
        with contextlib.suppress(psutil.Error):
            service.kill()
    process.wait()


def tracker_warnings(events: Sequence[Event], *, attempt: int | None = None) -> dict[str, str]:
    """For each incomplete tracker its newest warning; one that was complete after that is left out."""
    names = {name.value for name in TrackerName}
    warnings: dict[str, str] = {}
    for event in events:
        if attempt is not None and event.attempt != attempt:
            continue
        source = event.fields.get("source")
        if event.event == "warning" and source in names:
            warnings[str(source)] = str(event.fields.get("message") or "")
        elif event.event in names and event.fields.get("complete") is True:
            warnings.pop(event.event, None)
    return warnings


def incomplete_note(run_name: str, tracker: str, why: str) -> str:
    """One line for the person watching."""
    return f"{load_tracker(tracker).title} incomplete: launcher sync {run_name}{f' ({why})' if why else ''}"


def _record(run_dir: Path, attempt: int, source: str, message: str) -> None:
    try:
        writer = EventWriter(RunPaths(run_dir).events, attempt, rank=0)
        writer.write("warning", source=source, message=message)
        writer.close()
    except OSError:
        logger.warning("the event could not be written", exc_info=True)
