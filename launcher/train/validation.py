"""Validation loss: the mean over all supervised tokens of the validation set, for any number of ranks."""

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
from launcher.train.micro_batch import make_micro_batch
from launcher.train.run import Run
from launcher.train.stop import STOP
from launcher.train.watchdog import WATCHDOG

STOP_CHECK_EVERY_S = 2.0
_STOP_CHECK_EVERY_BATCHES = 64


def evaluate(run: Run, state: TrainState) -> TrainState:
    """Measures and records the validation loss, and counts towards early stopping. Ranks: all.

    Raises: NonFiniteError: a model whose validation loss is not finite must not be saved, let alone be called the best.
    Preempted, with nothing recorded, when a stop signal came meanwhile.
    """
    started = time.perf_counter()
    with WATCHDOG.phase(Phase.evaluate):
        loss, tokens = validation_loss(run)
    seconds = time.perf_counter() - started
    run.deadline.evaluations_s.append(seconds)
    if not math.isfinite(loss):
        raise NonFiniteError(
            f"validation loss after step {state.step} is {loss}; the weights are damaged or the precision overflows. "
            "Lower optim.lr, or use strategy.precision=bf16 or fp32",
            step=state.step,
            sample_ids=[],
        )
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
    state = replace(state, last_eval_step=state.step, last_eval_loss=loss)
    optim = run.config.optim
    if state.best_eval_loss is None or loss < state.best_eval_loss - optim.early_stopping_min_delta:
        return replace(state, best_eval_loss=loss, best_step=state.step, evals_since_best=0, stopped_early=False)
    misses = state.evals_since_best + 1
    stops = 0 < optim.early_stopping_patience <= misses
    return replace(state, evals_since_best=misses, stopped_early=stops)


def validation_loss(run: Run) -> tuple[float, int]:
    """(mean loss, supervised tokens) of the validation set. Dropout is off and no generator advances. Ranks: all.

    Raises: Preempted, on all ranks, when one of them received a stop signal: the model is unchanged.
    """
    data, world, size = run.validation_data, run.world, run.derived.micro_sequences
    assert data is not None
    # Longest first: packs of similar length share a row, and memory runs out at once if at all.
    by_length = sorted(range(data.num_packs), key=lambda p: -int(data.pack_lengths[p]))
    rows = [by_length[i : i + size] for i in range(0, len(by_length), size)]
    totals = torch.zeros(2, dtype=torch.float64, device=world.device)
    run.engine.set_training(False)
    started, check_at = time.perf_counter(), 0
    with torch.no_grad():
        for number, first in enumerate(range(0, len(rows), world.size)):
            if number == check_at:
                check_at += check_for_stop(run, batches_s=time.perf_counter() - started, batches=number)
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


def check_for_stop(run: Run, *, batches_s: float, batches: int) -> int:
    """The number of batches until the next check, the same on all ranks. Ranks: all.

    Raises: Preempted.
    """
    if run.world.is_main and run.deadline.leaves_only_a_save():
        STOP.ask(TIME_LIMIT)
    per_batch_s = batches_s / batches if batches and run.world.is_main else 0.0
    agreed = torch.tensor([float(STOP.requested), per_batch_s], dtype=torch.float64, device=run.world.device)
    stop, per_batch_s = run.world.sum_(agreed).tolist()
    if stop:
        run.engine.set_training(True)
        raise STOP.preempted("during an evaluation; it is done again")
    return min(max(1, int(STOP_CHECK_EVERY_S / per_batch_s)), _STOP_CHECK_EVERY_BATCHES) if per_batch_s else 1
