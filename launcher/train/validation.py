"""Held-out loss: the mean over all supervised held-out tokens, whatever the number of ranks."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import torch

from launcher.checkpoint.manifest import TrainState
from launcher.errors import TIME_LIMIT, NonFiniteError
from launcher.runs.heartbeat import Phase
from launcher.runs.jsonl import utc_now
from launcher.runs.metrics import EvalRecord
from launcher.train.batch import make_micro_batch
from launcher.train.run import Run
from launcher.train.stop import STOP
from launcher.train.watchdog import WATCHDOG

ASK_EVERY_S = 2.0
_ASK_EVERY_BATCHES = 64


def heldout_loss(run: Run) -> tuple[float, int]:
    """(mean loss, supervised tokens) over the held-out examples. Dropout is off and no generator moves. Ranks: all.

    Raises: Preempted, on all ranks, when one of them was told to stop: the model is as it was before.
    """
    data, world, size = run.heldout_data, run.world, run.derived.micro_sequences
    assert data is not None
    # Longest first: packs of like length share a row, and what might run out of memory does so at once.
    by_length = sorted(range(data.num_packs), key=lambda p: -int(data.pack_lengths[p]))
    rows = [by_length[i : i + size] for i in range(0, len(by_length), size)]
    totals = torch.zeros(2, dtype=torch.float64, device=world.device)
    run.engine.set_training(False)
    started, ask_at = time.perf_counter(), 0
    with torch.no_grad():
        for number, first in enumerate(range(0, len(rows), world.size)):
            if number == ask_at:
                ask_at += leave_or_go_on(run, batches_s=time.perf_counter() - started, batches=number)
            WATCHDOG.beat()
            index = first + world.rank
            packs = rows[index] if index < len(rows) else []
            batch = make_micro_batch(data, packs, stand_in=by_length[-1], device=world.device)
            loss = run.objective.loss(run.engine.forward, batch)
            if batch.weight:
                totals += torch.stack([loss.total.double(), torch.tensor(float(loss.weight), device=world.device)])
    run.engine.set_training(True)
    total, tokens = world.sum_(totals).tolist()
    return total / max(tokens, 1.0), int(tokens)


def leave_or_go_on(run: Run, *, batches_s: float, batches: int) -> int:
    """How many batches later to ask again, so that all ranks ask at the same one. Ranks: all.

    Raises: Preempted.
    """
    if run.world.is_main and run.deadline.leaves_only_a_save():
        STOP.ask(TIME_LIMIT)
    per_batch_s = batches_s / batches if batches and run.world.is_main else 0.0
    asked = torch.tensor([float(STOP.requested), per_batch_s], dtype=torch.float64, device=run.world.device)
    stop, per_batch_s = run.world.sum_(asked).tolist()
    if stop:
        run.engine.set_training(True)
        raise STOP.preempted("during an evaluation; it is done again")
    return min(max(1, int(ASK_EVERY_S / per_batch_s)), _ASK_EVERY_BATCHES) if per_batch_s else 1


def evaluate(run: Run, state: TrainState) -> TrainState:
    """Measures and records the held-out loss, and counts towards early stopping. Ranks: all.

    Raises: NonFiniteError: a model whose held-out loss is not finite must not be saved, far less be called the best.
    Preempted, nothing recorded, when a stop signal came meanwhile.
    """
    started = time.perf_counter()
    with WATCHDOG.phase(Phase.evaluate):
        loss, tokens = heldout_loss(run)
    seconds = time.perf_counter() - started
    run.deadline.evaluated(seconds)
    if not math.isfinite(loss):
        raise NonFiniteError(
            f"held-out loss after step {state.step} is {loss}; the weights are damaged or the precision overflows. "
            "Lower optim.lr, or use strategy.precision=bf16 or fp32",
            step=state.step,
            sample_ids=[],
        )
    if run.recorder is not None:
        run.recorder.evaluation(
            EvalRecord(
                step=state.step,
                epoch=run.order.epoch_of(state.step),
                loss=loss,
                tokens=tokens,
                eval_time_s=seconds,
                epoch_end=run.order.ends_epoch(state.step),
                attempt=run.attempt,
                time=utc_now(),
            )
        )
    optim = run.config.optim
    better = state.best_eval_loss is None or loss < state.best_eval_loss - optim.early_stopping_min_delta
    misses = 0 if better else state.evals_since_best + 1
    return replace(
        state,
        last_eval_step=state.step,
        last_eval_loss=loss,
        best_eval_loss=loss if better else state.best_eval_loss,
        best_step=state.step if better else state.best_step,
        evals_since_best=misses,
        stopped_early=optim.early_stopping_patience > 0 and misses >= optim.early_stopping_patience,
    )
