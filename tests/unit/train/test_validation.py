"""The validation loss: a mean over tokens that leaves no trace, and what it decides."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import launcher.train.validation as validation
from launcher.checkpoint.manifest import TrainState
from launcher.errors import NonFiniteError
from launcher.runs.metrics import read_metrics
from launcher.train.loss import cross_entropy_sum
from launcher.train.micro_batch import make_micro_batch
from launcher.train.validation import evaluate, validation_loss
from tests.tiny_model import make_tiny_model
from tests.unit.train.conftest import OpenRun
from tests.unit.train.engine_state import module_of


@pytest.mark.parametrize("micro_sequences", [1, 2, 3])
def test_it_is_the_mean_over_all_supervised_tokens(open_run: OpenRun, micro_sequences: int) -> None:
    run = open_run(f"batch.micro_sequences={micro_sequences}")
    data = run.validation_data
    assert data is not None
    with torch.no_grad():
        losses = [
            cross_entropy_sum(run.engine.forward(batch.model_inputs()), batch.labels).item()
            for batch in (make_micro_batch(data, [p], stand_in=0, device=run.world.device) for p in range(7))
        ]
    loss, tokens = validation_loss(run)
    assert tokens == data.pack_supervised.sum()
    assert loss == pytest.approx(sum(losses) / tokens, rel=1e-5)


def test_dropout_is_off_and_no_generator_moves(open_run: OpenRun, tmp_path: Path) -> None:
    run = open_run(model=make_tiny_model(tmp_path / "dropout", dropout=0.5))
    before = (torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate())
    assert validation_loss(run) == validation_loss(run)
    assert (torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()) == before
    assert all(module.training for module in module_of(run).modules())


def test_an_evaluation_is_recorded(open_run: OpenRun) -> None:
    run = open_run()
    state = evaluate(run, TrainState(step=6))
    (record,) = read_metrics(run.paths.metrics).evals
    assert (record.step, record.loss, record.epoch_end) == (6, state.last_eval_loss, True)
    assert state.last_eval_step == state.best_step == 6


@pytest.mark.parametrize(
    ("losses", "min_delta", "best_step", "stops_after"),
    [
        ([3.0, 2.0, 1.0, 0.5], 0.0, 4, None),
        ([3.0, 2.0, 2.5, 2.0], 0.0, 2, 4),  # equal is not better
        ([3.0, 2.0, 1.95, 1.92, 1.91], 0.1, 2, 4),  # better, but by too little
        ([3.0, 2.0, 2.5, 1.0, 1.5], 0.0, 4, None),  # a better one starts the count afresh
    ],
)
def test_early_stopping_counts_evaluations_without_a_better_loss(
    open_run: OpenRun,
    monkeypatch: pytest.MonkeyPatch,
    losses: list[float],
    min_delta: float,
    best_step: int,
    stops_after: int | None,
) -> None:
    run = open_run("optim.early_stopping_patience=2", f"optim.early_stopping_min_delta={min_delta}")
    state, stopped = TrainState(step=0), None
    for step, loss in enumerate(losses, start=1):
        monkeypatch.setattr(validation, "validation_loss", lambda run, loss=loss: (loss, 10))
        state = evaluate(run, replace(state, step=step))
        if state.stopped_early:
            stopped = step
            break
    assert (state.best_step, stopped) == (best_step, stops_after)


def test_a_loss_that_is_not_finite_is_never_called_the_best(open_run: OpenRun) -> None:
    run = open_run()
    with torch.no_grad():
        next(iter(module_of(run).parameters())).fill_(math.nan)
    with pytest.raises(NonFiniteError, match="validation loss after step 3 is nan"):
        evaluate(run, TrainState(step=3))
    assert read_metrics(run.paths.metrics).evals == []
