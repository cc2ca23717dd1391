"""Sends what metrics.jsonl holds to one W&B run, each row once, over any number of attempts.

A cursor in the run directory says what W&B has. Rows are identified by their optimizer step, not by their place in the
file: the steps an attempt repeats after a rewind carry the same values, because resume is exact, and are sent once.
Where the last sender did not end cleanly the cursor is not trusted: offline, W&B's own files are counted; online, the
server is asked.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.config.build import plain
from launcher.config.frozen import load_config
from launcher.config.schema import FrozenRun
from launcher.errors import RunError
from launcher.paths import RunPaths
from launcher.runs import jsonl
from launcher.runs.metrics import EvalRecord, History, Record, StepRecord, parse_record
from launcher.runs.redact import redacted
from launcher.tracking.wandb_files import history_rows

if TYPE_CHECKING:
    import wandb

TRAIN_AXIS = "train/global_step"
EVAL_AXIS = "eval/global_step"
NOT_LOGGED = ("step", "attempt", "time", "epoch_end")
# Longer than the grace in which the sender of a killed attempt still ends.
LOCK_WAIT_S = 12.0


@dataclass(slots=True)
class Cursor:
    """What one W&B destination (online or offline) has of this run."""

    train_step: int = 0
    eval_step: int = 0
    closed: bool = True
    """False while a sender is at work, and ever after if it was killed."""


def read_cursor(paths: RunPaths, mode: str) -> Cursor:
    """The cursor of `online` or `offline`; at the start where nothing was sent."""
    try:
        found = json.loads(cursor_path(paths, mode).read_text("utf-8"))
        return Cursor(int(found["train_step"]), int(found["eval_step"]), found["closed"] is True)
    except FileNotFoundError:
        return Cursor()
    except (OSError, ValueError, KeyError, TypeError):
        return Cursor(closed=False)


def write_cursor(paths: RunPaths, mode: str, cursor: Cursor) -> None:
    path = cursor_path(paths, mode)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_bytes(jsonl.encode(asdict(cursor)) + b"\n")
    draft.replace(path)


def cursor_path(paths: RunPaths, mode: str) -> Path:
    return paths.wandb / f"cursor-{mode}.json"


class Pusher:
    """One open W&B run and how far metrics.jsonl has been sent to it."""

    def __init__(self, run_dir: Path, mode: str, *, init_timeout_s: float = 60.0, stats_pid: int | None = None) -> None:
        """Opens the W&B run: the same one for every attempt.

        Args:
            mode: `online` or `offline`.
            stats_pid: process whose use of CPU, memory and GPU is recorded; None records none.
        Raises: ImportError without wandb, RunError without config.yaml, and whatever wandb.init raises.
        """
        self._paths = RunPaths(run_dir)
        self._mode = mode
        self._offset = 0
        self._attempt = 0
        self.rows = 0
        """Rows sent so far."""
        frozen = load_config(self._paths.config)
        self._lock_fd = _lock(self._paths.wandb / "sender.lock")
        self._run = _open_run(self._paths, frozen, mode, init_timeout_s, stats_pid)
        self._cursor = self._found_cursor(read_cursor(self._paths, mode))
        self._cursor.closed = False
        write_cursor(self._paths, mode, self._cursor)

    @property
    def url(self) -> str | None:
        """Address of the run's page; None offline."""
        return str(self._run.url) if self._mode == "online" else None

    def push(self) -> None:
        """Sends the rows that are new in metrics.jsonl since the last call."""
        lines, self._offset = jsonl.read_lines(self._paths.metrics, self._offset)
        records = self._new(parse_record(line) for line in lines)
        for record in records:
            self._run.log(row(record))
            if isinstance(record, StepRecord):
                self._cursor.train_step = record.step
            else:
                self._cursor.eval_step = record.step
        if records:
            self.rows += len(records)
            write_cursor(self._paths, self._mode, self._cursor)

    def close(self, *, failed: bool = False) -> None:
        """Sends the rest, waits until W&B has everything (offline: its file), and marks the cursor as true."""
        self.push()
        self._run.summary.update(outcome(self._paths))
        self._run.finish(exit_code=1 if failed else 0)
        self._cursor.closed = True
        write_cursor(self._paths, self._mode, self._cursor)
        os.close(self._lock_fd)

    def _new(self, found: Iterable[Record | None]) -> list[Record]:
        """Records W&B lacks, by step; an evaluation after the step it followed."""
        history = History()
        for record in found:
            if record is not None and record.attempt >= self._attempt:
                self._attempt = record.attempt
                history.add(record)
        metrics = history.metrics()
        steps: list[Record] = [record for record in metrics.steps if record.step > self._cursor.train_step]
        evals: list[Record] = [record for record in metrics.evals if record.step > self._cursor.eval_step]
        return sorted(steps + evals, key=lambda record: (record.step, isinstance(record, EvalRecord)))

    def _found_cursor(self, kept: Cursor) -> Cursor:
        if self._mode == "offline":
            return kept if kept.closed else counted_cursor(self._paths.wandb)
        if not self._run.resumed:
            return Cursor()
        if kept.closed and kept.train_step:
            return kept
        return Cursor(_whole(self._run.summary.get(TRAIN_AXIS)), _whole(self._run.summary.get(EVAL_AXIS)))


def counted_cursor(wandb_dir: Path) -> Cursor:
    """How far W&B's offline files go. They are written in order, so the newest step says it all."""
    cursor = Cursor()
    for found in history_rows(wandb_dir):
        cursor.train_step = max(cursor.train_step, _whole(found.get(TRAIN_AXIS)) if "train/loss" in found else 0)
        cursor.eval_step = max(cursor.eval_step, _whole(found.get(EVAL_AXIS)))
    return cursor


def row(record: Record) -> dict[str, object]:
    """What W&B shows of a record, on the axis of optimizer steps."""
    group = "train" if isinstance(record, StepRecord) else "eval"
    values = {f"{group}/{name}": value for name, value in asdict(record).items() if name not in NOT_LOGGED}
    axes = {TRAIN_AXIS: record.step} if group == "train" else {TRAIN_AXIS: record.step, EVAL_AXIS: record.step}
    return {**axes, **values}


def outcome(paths: RunPaths) -> dict[str, float]:
    """Scores of eval.json, for W&B's summary; empty before `launcher eval`."""
    try:
        result = json.loads(paths.eval.read_text("utf-8"))
        conditions = result["conditions"]
        return {
            f"scores/{condition}/{name}": float(scores[name])
            for condition, scores in conditions.items()
            for name in ("exact_match", "token_f1")
            if isinstance(scores.get(name), int | float)
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _open_run(paths: RunPaths, frozen: FrozenRun, mode: str, init_timeout_s: float, stats_pid: int | None) -> wandb.Run:
    import wandb

    if frozen.derived is None:
        raise RunError(f"{paths.config}: the derived values are missing, so the run has no W&B id")
    track = frozen.config.track
    config = redacted({**plain(frozen.config), "derived": plain(frozen.derived)}, os.environ)
    settings = wandb.Settings(
        console="off",
        silent=True,
        disable_git=True,
        disable_code=True,
        save_code=False,
        x_save_requirements=False,
        init_timeout=init_timeout_s,
        x_disable_stats=stats_pid is None,
        x_disable_machine_info=stats_pid is None,
    )
    if stats_pid is not None:
        settings.x_stats_pid = stats_pid
    paths.wandb.mkdir(parents=True, exist_ok=True)
    run = wandb.init(
        id=frozen.derived.run_id,
        resume="allow",
        mode="online" if mode == "online" else "offline",
        project=track.wandb_project,
        entity=track.wandb_entity,
        name=paths.root.name,
        tags=track.tags,
        config=config if isinstance(config, dict) else {},
        dir=paths.root,
        settings=settings,
    )
    run.define_metric(TRAIN_AXIS)
    run.define_metric("train/*", step_metric=TRAIN_AXIS)
    run.define_metric("eval/*", step_metric=TRAIN_AXIS)
    run.define_metric("eval/loss", step_metric=TRAIN_AXIS, summary="min")
    return run


def _lock(path: Path) -> int:
    """Holds the file until the process ends: two senders would send every row twice."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock_fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    deadline = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock_fd
        except BlockingIOError:
            if time.monotonic() < deadline:
                time.sleep(0.2)
                continue
            os.close(lock_fd)
            raise RunError(f"{path.parent.parent}: another process is sending this run to W&B") from None
        except OSError:
            # Some network file systems have no locks; go on without.
            return lock_fd


def _whole(value: object) -> int:
    return int(value) if isinstance(value, int | float) else 0
