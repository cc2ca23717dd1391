"""Losses of a run after each epoch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from launcher.runs.metrics import EvalRecord, Metrics, StepRecord


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One epoch; the last one may be incomplete."""

    epoch: float
    """Epochs done at its end: 1.0, 2.0, ...; a fraction where the run ends inside one."""
    step: int
    """Its last optimizer step."""
    train_loss: float
    """Mean over its supervised tokens, each seen before it was trained on in this epoch."""
    validation_loss: float | None = field(metadata={"json": "heldout_loss"})
    """Of the last evaluation inside it."""
    time: str


def snapshots(metrics: Metrics) -> list[Snapshot]:
    """One per epoch that has steps, in order; a running epoch counts as it stands."""
    epochs: dict[int, list[StepRecord]] = {}
    for record in metrics.steps:
        epochs.setdefault(_epoch_of(record), []).append(record)
    found = []
    first_step = 0
    for records in epochs.values():
        last = records[-1]
        inside = [record for record in metrics.evals if first_step < record.step <= last.step]
        found.append(
            Snapshot(
                epoch=round(last.epoch, 6),
                step=last.step,
                train_loss=_mean_loss(records),
                validation_loss=inside[-1].loss if inside else None,
                time=last.time,
            )
        )
        first_step = last.step
    return found


def _mean_loss(records: list[StepRecord]) -> float:
    """Loss of several steps as if they were one: weighted by supervised tokens."""
    tokens = sum(record.supervised_tokens for record in records)
    if tokens == 0:
        return math.nan
    return sum(record.loss * record.supervised_tokens for record in records) / tokens


def best_eval(metrics: Metrics) -> EvalRecord | None:
    """The evaluation with the lowest validation loss, the first of equals; None without a finite one."""
    finite = [record for record in metrics.evals if math.isfinite(record.loss)]
    return min(finite, key=lambda record: (record.loss, record.step), default=None)


def _epoch_of(record: StepRecord) -> int:
    # The step that ends epoch 1 carries 1.0, up to rounding, and belongs to epoch 1.
    return max(1, math.ceil(record.epoch - 1e-6))
