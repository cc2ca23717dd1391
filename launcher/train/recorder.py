"""Everything rank 0 writes down while training: metrics, events, status, progress."""

from __future__ import annotations

import os
import resource
import socket
import time
from dataclasses import replace

import torch

from launcher.checkpoint.commit import is_superseded
from launcher.config.schema import Derived
from launcher.paths import RunPaths
from launcher.runs.events import EventWriter
from launcher.runs.jsonl import utc_now
from launcher.runs.metrics import EvalRecord, MetricsWriter, StepRecord
from launcher.runs.progress import Progress
from launcher.runs.status import Status, write_status

STATUS_EVERY_S = 1.0


def peak_memory_gib(device: torch.device) -> float:
    """Most memory this rank held so far: on its GPU, or resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


class Recorder:
    """The record of one attempt. Ranks: 0 makes and uses one; the others have none."""

    def __init__(self, paths: RunPaths, derived: Derived, *, attempt: int) -> None:
        self.attempt = attempt
        self._paths = paths
        self._metrics = MetricsWriter(paths.metrics)
        self._events = EventWriter(paths.events, attempt, 0)
        self.progress = Progress(derived.total_steps, enabled=True)
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
        self._events.write(event, **fields)

    def state(self, state: str, **fields: object) -> None:
        """Records a change of the run's state, in events and status."""
        self.event("state", state=state, **fields)
        self._set(state=state, reason=str(fields.get("reason", "")))
        self.flush_status()

    def step(self, record: StepRecord) -> None:
        self._metrics.write(record)
        self.progress.update(record)
        self._set(
            step=record.step,
            epoch=record.epoch,
            loss=record.loss,
            tokens_per_s=record.tokens_per_s,
            eta_s=self.progress.eta_s,
        )

    def evaluation(self, record: EvalRecord) -> None:
        self._metrics.write(record)
        self.progress.evaluated(record)
        self._set(eval_loss=record.loss)

    def checkpoint(self, step: int) -> None:
        self._set(last_checkpoint_step=step, last_checkpoint_time=utc_now())

    def resumed(self, step: int, epoch: float) -> None:
        self._set(step=step, epoch=epoch, last_checkpoint_step=step)

    def note(self, text: str) -> None:
        """A line for the person watching."""
        self.progress.note(text)

    def _set(self, **changes: object) -> None:
        self._status = replace(self._status, updated=utc_now(), **changes)  # type: ignore[arg-type]
        if time.monotonic() - self._status_written >= STATUS_EVERY_S:
            self.flush_status()

    def flush_status(self) -> None:
        # An attempt that comes back to life beside its successor has no say in what the run is.
        if not is_superseded(self._paths, self.attempt):
            write_status(self._paths.status, self._status)
        self._status_written = time.monotonic()

    def close(self) -> None:
        self.progress.close()
        self.flush_status()
        self._metrics.close()
        self._events.close()
