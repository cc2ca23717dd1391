"""Everything rank 0 records while training: metrics, events, status, progress."""

from __future__ import annotations

import os
import resource
import socket
import time
from dataclasses import replace

import torch

from launcher.config.schema import Derived
from launcher.paths import RunPaths
from launcher.runs.events import EventWriter
from launcher.runs.jsonl import utc_now
from launcher.runs.metrics import EvalRecord, MetricsWriter, Record, StepRecord
from launcher.runs.progress import Progress
from launcher.runs.status import Status, write_status

STATUS_EVERY_S = 1.0


def peak_memory_gib(device: torch.device) -> float:
    """The most memory this rank has held so far: on its GPU, or resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


class Recorder:
    """The record of one attempt. Ranks: all have one, but only that of rank 0, which is `enabled`, writes."""

    def __init__(self, paths: RunPaths, derived: Derived, *, attempt: int, enabled: bool = True) -> None:
        self._paths = paths
        self._attempt = attempt
        self._metrics = MetricsWriter(paths.metrics) if enabled else None
        self._events = EventWriter(paths.events, attempt, 0) if enabled else None
        self._progress = Progress(derived.total_steps, enabled=enabled)
        self._status = Status(
            name=paths.root.name,
            state="running",
            of=derived.total_steps,
            attempt=attempt,
            pid=os.getpid(),
            host=socket.gethostname(),
            job_id=os.environ.get("SLURM_JOB_ID"),
        )
        self._status_written = 0.0

    def event(self, event: str, **fields: object) -> None:
        """Appends to events.jsonl."""
        if self._events is not None:
            self._events.write(event, **fields)

    def state(self, state: str, **fields: object) -> None:
        """Records a change of the run's state, in events and status."""
        self.event("state", state=state, **fields)
        self.status(state=state, reason=str(fields.get("reason", "")))
        self.flush_status()

    def step(self, record: StepRecord) -> None:
        self._write(record)
        self._progress.update(record)
        self.status(
            step=record.step,
            epoch=record.epoch,
            loss=record.loss,
            tokens_per_s=record.tokens_per_s,
            eta_s=self._progress.eta_s,
        )

    def evaluation(self, record: EvalRecord) -> None:
        self._write(record)
        self._progress.evaluated(record)
        self.status(eval_loss=record.loss)

    def note(self, text: str) -> None:
        """A line for the terminal."""
        self._progress.note(text)

    def _write(self, record: Record) -> None:
        if self._metrics is not None:
            self._metrics.write(record)

    def status(self, **changes: object) -> None:
        """Changes fields of the `Status`; the file follows within a second or so."""
        self._status = replace(self._status, updated=utc_now(), **changes)  # type: ignore[arg-type]
        if time.monotonic() - self._status_written >= STATUS_EVERY_S:
            self.flush_status()

    def flush_status(self) -> None:
        # Not when this attempt was stopped and continued after a newer one had begun.
        if self._events is not None and self._paths.newest_attempt() <= self._attempt:
            write_status(self._paths.status, self._status)
        self._status_written = time.monotonic()

    def close(self) -> None:
        self._progress.close()
        self.flush_status()
        for writer in (self._metrics, self._events):
            if writer is not None:
                writer.close()
