"""The process that sends a run to one tracker.

`python -m launcher.tracking.replay_process RUN_DIR TRACKER DESTINATION ATTEMPT`, with a pipe from its parent as stdin

It shares only files with training: training may be killed, or a tracker may hang, without affecting the other. Every
record of metrics.jsonl is sent once, over any number of attempts. Records are identified by optimizer step, not by
position in the file, so steps that an attempt repeats after a rewind are sent once.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from launcher.config.frozen import load_prepared
from launcher.errors import RunError
from launcher.files import as_json, find_record, write_json
from launcher.paths import RunPaths
from launcher.runs import jsonl
from launcher.runs.events import EventWriter, last_state
from launcher.runs.metrics import EvalRecord, History, Record, parse_line
from launcher.runs.redact import redacted
from launcher.tracking.tracker import Cursor, TrackedRun, Tracker, group_of, load_tracker

POLL_S = 1.0
RETRY_S = 60.0
ORPHAN_GRACE_S = 10.0
# Longer than the grace in which the sender of a killed attempt still ends.
LOCK_WAIT_S = 12.0
# MLflow takes at most 1000 values at once.
RECORDS_AT_ONCE = 50
GROUP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

logger = logging.getLogger(__name__)


class Parent:
    """Watches the process that started this one: it asks for the end through the pipe, or dies."""

    def __init__(self) -> None:
        self.pid = os.getppid()
        self.wants_end = threading.Event()
        self._pipe = os.dup(0)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # trackers, and processes they start, must not read from it
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while os.getppid() == self.pid:
            if select.select([self._pipe], [], [], POLL_S)[0]:
                if not os.read(self._pipe, 64):
                    break
                # From here on the parent waits, and kills this process after a while.
                self.wants_end.set()
        self.wants_end.set()
        time.sleep(ORPHAN_GRACE_S)
        os._exit(1)


class Sender:
    """One open run of a tracker, and how far metrics.jsonl has been sent to it."""

    def __init__(self, run_dir: Path, name: str, destination: str, training_pid: int | None = None) -> None:
        """Raises: ImportError without the package, RunError without config.yaml, and any error of the tracker."""
        self._paths = RunPaths(run_dir)
        self._offset = 0
        self._attempt = 0
        self.rows = 0
        """Records sent so far."""
        config, derived = load_prepared(self._paths.config)
        settings = redacted({**as_json(config), "derived": as_json(derived)})
        folder = self._paths.tracker(name)
        self._cursor_path = folder / f"cursor-{destination}.json"
        self._lock = _lock(folder / "sender.lock", load_tracker(name).title)
        self.tracker: Tracker = load_tracker(name)(
            TrackedRun(
                paths=self._paths,
                folder=folder,
                run_id=derived.run_id,
                track=config.track,
                settings=settings,
                destination=destination,
                training_pid=training_pid,
            )
        )
        self._cursor = Cursor() if self.tracker.is_new else read_cursor(self._cursor_path) or self.tracker.recover()
        self._note(closed=False)

    def push(self) -> None:
        """Sends what is new in metrics.jsonl since the last call."""
        lines, self._offset = jsonl.read_lines(self._paths.metrics, self._offset)
        records = self._unsent(parse_line(line) for line in lines)
        for first in range(0, len(records), RECORDS_AT_ONCE):
            chunk = records[first : first + RECORDS_AT_ONCE]
            self.tracker.log(chunk)
            newest = {group_of(record): record.step for record in chunk}
            self._cursor.train_step = newest.get("train", self._cursor.train_step)
            self._cursor.eval_step = newest.get("eval", self._cursor.eval_step)
            self.rows += len(chunk)
            self._note(closed=False)

    def close(self, *, failed: bool = False) -> None:
        """Sends the rest and waits until the tracker has it; only then the cursor can be trusted."""
        self.push()
        self.tracker.close(evaluation_scores(self._paths), failed=failed)
        self._note(closed=True)
        self._lock.release()

    def _note(self, *, closed: bool) -> None:
        self._cursor.closed = closed
        write_json(self._cursor_path, self._cursor, indent=None)

    def _unsent(self, found: Iterable[Record | None]) -> list[Record]:
        """Records that the tracker lacks, by step; an evaluation after the step it followed."""
        history = History()
        for record in found:
            if record is not None and record.attempt >= self._attempt:
                self._attempt = record.attempt
                history.add(record)
        metrics = history.metrics()
        steps: list[Record] = [record for record in metrics.steps if record.step > self._cursor.train_step]
        evals: list[Record] = [record for record in metrics.evals if record.step > self._cursor.eval_step]
        return sorted(steps + evals, key=lambda record: (record.step, isinstance(record, EvalRecord)))


def read_cursor(path: Path) -> Cursor | None:
    """A cursor that can be trusted; None if there is none, it is damaged, or its sender did not end cleanly."""
    cursor = find_record(Cursor, path)
    return cursor if cursor is not None and cursor.closed else None


@dataclass(frozen=True, slots=True)
class _Evaluation:
    """The part of eval.json that trackers show."""

    conditions: dict[str, dict[str, object]]


def evaluation_scores(paths: RunPaths) -> dict[str, float]:
    """Scores of eval.json; empty before `launcher eval`."""
    evaluation = find_record(_Evaluation, paths.eval) or _Evaluation({})
    return {
        f"scores/{condition}/{name}": float(value)
        for condition, values in evaluation.conditions.items()
        for name in ("exact_match", "token_f1")
        if isinstance(value := values.get(name), int | float)
    }


def main(argv: list[str]) -> int:
    """Replays until the parent asks for the end or dies; 0 when the tracker has everything."""
    for number in GROUP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    run_dir, name, destination, attempt = Path(argv[0]), argv[1], argv[2], int(argv[3])
    parent = Parent()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    os.nice(10)
    events = EventWriter(RunPaths(run_dir).events, attempt, rank=-1)
    # Attempt 0 is `launcher sync`: no training, so no load to measure.
    sender = _open(run_dir, name, destination, parent, events, is_training=attempt > 0)
    if sender is None:
        return 1
    tracker = sender.tracker
    try:
        while not parent.wants_end.wait(POLL_S):
            sender.push()
        sender.close(failed=last_state(RunPaths(run_dir).events) == "failed")
    except Exception as error:
        logger.exception("%s stopped", tracker.title)
        refusal = tracker.refusal(error)
        why = refusal or f"{tracker.title} stopped ({_brief(error)})"
        _warn(events, name, f"{why}; `launcher sync {run_dir.name}` sends the rest", key_refused=bool(refusal))
        return 1
    events.write(name, mode=destination, url=tracker.url, rows=sender.rows, complete=True)
    return 0


def _open(
    run_dir: Path, name: str, destination: str, parent: Parent, events: EventWriter, *, is_training: bool
) -> Sender | None:
    """The open run; during training it keeps trying, because a server may come back."""
    tracker = load_tracker(name)
    is_warned = False
    while True:
        try:
            sender = Sender(run_dir, name, destination, parent.pid if is_training else None)
        except ImportError as error:
            why = f"no {tracker.title} record: {_brief(error)}"
            _warn(events, name, f"{why}; install it with: pip install 'tunelaunch[{name}]'")
            return None
        except Exception as error:
            logger.exception("%s did not open", tracker.title)
            refusal = tracker.refusal(error)
            if refusal:
                # This process keeps its key, so another try would be refused as well.
                _warn(events, name, refusal, key_refused=True)
                return None
            if not is_warned:
                again = f"; tried again every {RETRY_S:.0f} s while training goes on" if is_training else ""
                _warn(events, name, f"{tracker.title} did not open ({_brief(error)}){again}")
            is_warned = True
        else:
            events.write(name, mode=destination, url=sender.tracker.url, complete=False)
            return sender
        if parent.wants_end.wait(RETRY_S):
            return None


def _lock(path: Path, title: str) -> FileLock:
    """Held until the process ends, because two senders would send every record twice."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=LOCK_WAIT_S)
    except Timeout:
        raise RunError(f"{path.parent.parent}: another process is sending this run to {title}") from None
    except (OSError, NotImplementedError):
        # Some network file systems have no locks.
        logger.warning("no lock at %s", path)
    return lock


def _warn(events: EventWriter, source: str, message: str, **fields: object) -> None:
    text = redacted(message)
    logger.warning("%s", text)
    events.write("warning", source=source, message=text, **fields)


def _brief(error: Exception) -> str:
    first_line = (str(error).strip() or "no text").splitlines()[0]
    return f"{type(error).__name__}: {first_line[:200]}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
