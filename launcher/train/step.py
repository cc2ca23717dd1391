"""One optimizer step: this rank's micro-batches forward and backward, one agreement of all ranks, the update."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

import torch

from launcher.config.schema import Precision
from launcher.errors import TIME_LIMIT
from launcher.train.batch import make_micro_batch
from launcher.train.loss import cross_entropy_sum
from launcher.train.recorder import peak_memory_gib
from launcher.train.run import Run
from launcher.train.schedule import lr_at
from launcher.train.stop import STOP
from launcher.train.watchdog import WATCHDOG


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """What all ranks know after a step; equal on every rank."""

    loss: float
    """Mean over the supervised tokens of the whole step."""
    grad_norm: float
    lr: float
    tokens: int
    supervised_tokens: int
    applied: bool
    """False when loss or gradient was not finite: the weights are then as before."""
    stop: bool
    """Some rank received a stop signal, or the job's time runs out."""
    memory_gib: float = field(compare=False)
    """Most memory any one rank held so far; of the machine, not of the training."""
    data_time_s: float = field(compare=False, default=0.0)
    """What this rank waited for its micro-batches."""


def searches_loss_scale(run: Run, outcome: StepOutcome) -> bool:
    """Whether a step was left out only because fp16 gradients overflowed under the present loss scale, which is how
    the scale finds its level."""
    return run.config.strategy.precision is Precision.fp16 and not outcome.applied and math.isfinite(outcome.loss)


def optimizer_step(run: Run, step: int) -> StepOutcome:
    """Runs optimizer step `step` (from 0). Ranks: all."""
    started = time.perf_counter()
    data, world, engine = run.train_data, run.world, run.engine
    packs = run.order.step_packs(step)
    supervised = int(data.pack_supervised[packs].sum())
    shortest = int(min(packs, key=lambda p: int(data.pack_lengths[p])))
    micro_batches = run.slots(step)[world.rank]
    loss_sum = torch.zeros((), dtype=torch.float64, device=world.device)
    data_time_s = 0.0
    for number, mine in enumerate(micro_batches, start=1):
        asked = time.perf_counter()
        batch = make_micro_batch(data, mine, stand_in=shortest, device=world.device)
        data_time_s += time.perf_counter() - asked
        with engine.micro_step(last=number == len(micro_batches)):
            loss = cross_entropy_sum(engine.forward(batch.model_inputs()), batch.labels)
            engine.backward(loss * (batch.weight / max(supervised, 1)))
        loss_sum += loss.detach().double() * batch.weight
        WATCHDOG.beat()
    if world.is_main and run.time_runs_out(step + 1, step_s=time.perf_counter() - started):
        STOP.ask(TIME_LIMIT)
    # The only collective of ours in a step: the loss, with the stop flag and each rank's memory riding along.
    agreed = torch.zeros(2 + world.size, dtype=torch.float64, device=world.device)
    agreed[0] = loss_sum
    agreed[1] = float(STOP.requested)
    agreed[2 + world.rank] = peak_memory_gib(world.device)
    total, stop, *memory_gib = world.sum_(agreed).tolist()
    loss_mean = total / max(supervised, 1)
    lr = lr_at(
        step,
        optim=run.config.optim,
        peak_lr=run.derived.peak_lr,
        warmup_steps=run.derived.warmup_steps,
        total_steps=run.derived.total_steps,
    )
    if math.isfinite(loss_mean):
        result = engine.step(lr)
        grad_norm, applied = result.grad_norm, result.applied
    else:
        engine.discard()
        grad_norm, applied = math.nan, False
    return StepOutcome(
        loss=loss_mean,
        grad_norm=grad_norm,
        lr=lr,
        tokens=int(data.pack_lengths[packs].sum()),
        supervised_tokens=supervised,
        applied=applied,
        stop=stop > 0,
        memory_gib=max(memory_gib),
        data_time_s=data_time_s,
    )
