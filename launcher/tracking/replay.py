"""Sends a run to its trackers from separate processes, so that no tracker can slow or stop a training step."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

import launcher
from launcher.config.schema import TrackConfig, TrackerName
from launcher.paths import RunPaths
from launcher.runs.events import Event, EventWriter, read_events
from launcher.runs.rank_environment import RANK_VARIABLES
from launcher.tracking.tracker import chosen_trackers, load_tracker

logger = logging.getLogger(__name__)

# Without these, the packages report to their makers.
NO_TELEMETRY = {"WANDB_ERROR_REPORTING": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}


class Replay:
    """The processes that send a run to its trackers: one attempt, or all of it for `launcher sync` (attempt 0)."""

    def __init__(self, run_dir: Path, attempt: int) -> None:
        self._run_dir = run_dir
        self._attempt = attempt
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def add(self, name: str, destination: str) -> None:
        """Starts the process of one tracker; a failure becomes a `warning` event."""
        try:
            self._children[name] = _spawn(self._run_dir.absolute(), name, destination, self._attempt)
        except OSError as error:
            self._warn(name, f"did not start: {error}")

    def finish(self, timeout_s: float = 10.0) -> bool:
        """Ends the processes, within a time-out that all share. True if the trackers have everything.

        Never raises. What a tracker lacks stays in metrics.jsonl for `launcher sync RUN`. May be called twice.
        """
        children, self._children = self._children, {}
        deadline = time.monotonic() + timeout_s
        for child in children.values():
            assert child.stdin is not None
            with suppress(OSError):  # a child that has ended has recorded why
                child.stdin.write(b"finish\n")
        incomplete = [name for name, child in children.items() if not self._end(name, child, deadline, timeout_s)]
        if incomplete and self._attempt:  # `launcher sync` reports the result itself
            try:
                reasons = tracker_warnings(read_events(RunPaths(self._run_dir).events), attempt=self._attempt)
            except OSError:
                reasons = {}
            for name in incomplete:
                logger.warning("%s", incomplete_note(self._run_dir.name, name, reasons.get(name, "")))
        return not incomplete

    def _end(self, name: str, child: subprocess.Popen[bytes], deadline: float, timeout_s: float) -> bool:
        try:
            return child.wait(max(0.0, deadline - time.monotonic())) == 0
        except subprocess.TimeoutExpired:
            _kill_tree(child)
            self._warn(name, f"took longer than {timeout_s:g} s to end")
        except Exception:
            logger.warning("%s could not be ended", name, exc_info=True)
        finally:
            assert child.stdin is not None
            child.stdin.close()
        return False

    def _warn(self, name: str, why: str) -> None:
        message = f"{load_tracker(name).title} {why}; `launcher sync {self._run_dir.name}` sends the rest"
        try:
            writer = EventWriter(RunPaths(self._run_dir).events, self._attempt, rank=0)
            writer.write("warning", source=name, message=message)
            writer.close()
        except OSError:
            logger.warning("the event could not be written", exc_info=True)


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


def _spawn(run_dir: Path, name: str, destination: str, attempt: int) -> subprocess.Popen[bytes]:
    # A plain process, because multiprocessing would import the training script, and torch, into the child.
    folder = RunPaths(run_dir).tracker(name)
    folder.mkdir(parents=True, exist_ok=True)
    environment = {key: value for key, value in os.environ.items() if key not in RANK_VARIABLES} | NO_TELEMETRY
    package_root = str(Path(launcher.__file__).parent.parent)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
    arguments = [str(run_dir), name, destination, str(attempt)]
    with (folder / "replay.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "launcher.tracking.replay_process", *arguments],
            bufsize=0,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            # Its own session: Ctrl-C at the terminal is meant for training.
            start_new_session=True,
        )


def _kill_tree(process: subprocess.Popen[bytes]) -> None:
    """Kills the child and its services, and returns when they are gone: that of W&B runs in a session of its own."""
    tree: list[psutil.Process] = []
    with suppress(psutil.Error):
        tree.append(psutil.Process(process.pid))
    for member in tree:  # grows; a stopped process starts no more of them
        with suppress(psutil.Error):
            member.suspend()
            tree += member.children()
    for member in tree:
        with suppress(psutil.Error):
            member.kill()
    process.wait()
    psutil.wait_procs(tree, timeout=1.0)


def tracker_warnings(events: Sequence[Event], *, attempt: int | None = None) -> dict[str, str]:
    """The newest warning of each tracker that has not been complete since."""
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
    """One line for the terminal."""
    return f"{load_tracker(tracker).title} incomplete: launcher sync {run_name}{f' ({why})' if why else ''}"
