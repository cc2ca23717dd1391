"""One optimizer step: this rank's micro-batches forward and backward, one agreement of all ranks, the update."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from launcher.config.schema import Precision
from launcher.errors import TIME_LIMIT
from launcher.train.engines.base import StepResult
from launcher.train.micro_batch import make_micro_batch
from launcher.train.recorder import peak_memory_gib
from launcher.train.run import Run
from launcher.train.schedule import lr_at
from launcher.train.stop import STOP
from launcher.train.watchdog import WATCHDOG


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """The result of a step; equal on every rank."""

    loss: float
    """Mean over the supervised tokens of the whole step."""
    grad_norm: float
    lr: float
    tokens: int
    supervised_tokens: int
    applied: bool
    """False when loss or gradient was not finite; the weights are unchanged then."""
    stop: bool
    """Some rank received a stop signal, or the job's time runs out."""
    memory_gib: float = field(compare=False)
    """The most memory that any one rank has held so far."""
    data_time_s: float = field(compare=False, default=0.0)
    """How long this rank waited for its micro-batches."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Means of the objective's metrics."""


def searches_loss_scale(run: Run, outcome: StepOutcome) -> bool:
    """Whether a step was skipped only because gradients overflowed under the current loss scale of fp16."""
    return run.config.strategy.precision is Precision.fp16 and not outcome.applied and math.isfinite(outcome.loss)


def optimizer_step(run: Run, step: int) -> StepOutcome:
    """Runs optimizer step `step`, counted from 0. Ranks: all."""
    started = time.perf_counter()
    data, world, derived, packs = run.train_data, run.world, run.derived, run.order.step_packs(step)
    weight = max(run.objective.step_weight(data, packs), 1)
    sums, data_time_s = _forward_backward(run, step, weight)
    if world.is_main and run.time_runs_out(step + 1, step_s=time.perf_counter() - started):
        STOP.ask(TIME_LIMIT)
    # The only collective of ours in a step: loss and metrics, with the stop flag and each rank's memory riding along.
    agreed = torch.cat([sums, sums.new_zeros(1 + world.size)])
    agreed[len(sums)] = float(STOP.requested)
    agreed[len(sums) + 1 + world.rank] = peak_memory_gib(world.device)
    numbers = world.sum_(agreed).tolist()
    loss, *means = [number / weight for number in numbers[: len(sums)]]
    stop, *memory_gib = numbers[len(sums) :]
    lr = lr_at(
        step, run.config.optim, derived.peak_lr, warmup_steps=derived.warmup_steps, total_steps=derived.total_steps
    )
    if math.isfinite(loss):
        result = run.engine.step(lr)
    else:
        run.engine.discard()
        result = StepResult(grad_norm=math.nan, applied=False)
    return StepOutcome(
        loss=loss,
        grad_norm=result.grad_norm,
        lr=lr,
        tokens=int(data.pack_lengths[packs].sum()),
        supervised_tokens=int(data.pack_supervised[packs].sum()),
        applied=result.applied,
        stop=stop > 0,
        memory_gib=max(memory_gib),
        data_time_s=data_time_s,
        metrics=dict(zip(run.objective.metrics, means, strict=True)),
    )


def _forward_backward(run: Run, step: int, weight: int) -> tuple[Tensor, float]:
    """Runs this rank's micro-batches; `weight` is that of the whole step, and divides the gradients.

    Returns: loss and metrics of the objective, summed in float64; seconds spent waiting for data.
    """
    data, device, engine, objective = run.train_data, run.world.device, run.engine, run.objective
    packs = run.order.step_packs(step)
    shortest = int(min(packs, key=lambda p: int(data.pack_lengths[p])))
    micro_batches = run.slots(step)[run.world.rank]
    sums = torch.zeros(1 + len(objective.metrics), dtype=torch.float64, device=device)
    data_time_s = 0.0
    for number, mine in enumerate(micro_batches, start=1):
        wait_started = time.perf_counter()
        batch = make_micro_batch(data, mine, stand_in=shortest, device=device)
        data_time_s += time.perf_counter() - wait_started
        with engine.micro_step(last=number == len(micro_batches)):
            loss = objective.loss(engine.forward, batch)
            engine.backward(loss.total * (batch.weight / weight))
        values = [loss.total.detach(), *(loss.metrics[name] for name in objective.metrics)]
        sums += torch.stack([value.double() for value in values]) * batch.weight
        WATCHDOG.beat()
    return sums, data_time_s
