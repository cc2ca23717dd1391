"""One optimizer step: its loss, its rate, and what happens when a number is not finite."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import launcher.train.objective as objective_module
from launcher.checkpoint.manifest import TrainState
from launcher.config.schema import Precision
from launcher.runs.metrics import read_metrics
from launcher.tracking.tracker import values_of
from launcher.train.engines.replicated import ReplicatedEngine
from launcher.train.loop import handle_nonfinite, record
from launcher.train.loss import cross_entropy_sum
from launcher.train.micro_batch import MicroBatch, make_micro_batch
from launcher.train.objective import BatchLoss, Forward, SupervisedCrossEntropy
from launcher.train.preflight import rehearse
from launcher.train.run import Run
from launcher.train.schedule import lr_at
from launcher.train.step import optimizer_step
from launcher.train.stop import STOP
from tests.unit.train.conftest import OpenRun
from tests.unit.train.engine_state import same, weights_of


def test_the_loss_is_the_mean_over_the_supervised_tokens_of_the_step(open_run: OpenRun) -> None:
    run = open_run("batch.micro_sequences=1")
    packs = run.order.step_packs(2).tolist()
    whole = make_micro_batch(run.train_data, packs, stand_in=0, device=run.world.device)
    with torch.no_grad():
        total = cross_entropy_sum(run.engine.forward(whole.model_inputs()), whole.labels)
    outcome = optimizer_step(run, 2)
    assert outcome.supervised_tokens == len(whole.labels) == run.train_data.pack_supervised[packs].sum()
    assert outcome.tokens == whole.input_ids.shape[1]
    assert outcome.loss == pytest.approx(total.item() / len(whole.labels), rel=1e-5)
    assert outcome.applied and 0 < outcome.grad_norm < math.inf and not outcome.stop


def test_every_step_gets_the_rate_of_the_schedule(open_run: OpenRun) -> None:
    run = open_run("optim.warmup_steps=2", "optim.schedule=linear")
    derived = run.derived
    for step in (0, 1, 2, 3):
        wanted = lr_at(
            step,
            run.config.optim,
            derived.peak_lr,
            warmup_steps=derived.warmup_steps,
            total_steps=derived.total_steps,
        )
        before = weights_of(run)
        assert optimizer_step(run, step).lr == wanted
        largest = max((weights_of(run)[name] - before[name]).abs().max().item() for name in before)
        if step == 0:  # the first step of Adam moves each weight by the rate itself
            assert largest == pytest.approx(wanted, rel=1e-3)


def test_clipping_bounds_what_reaches_the_optimizer(open_run: OpenRun) -> None:
    run = open_run("optim.grad_clip=0.01")
    outcome = optimizer_step(run, 0)
    assert outcome.grad_norm > 0.01  # told as it was
    assert isinstance(run.engine, ReplicatedEngine)
    states = run.engine._optimizer.state.values()
    clipped = math.sqrt(sum((state["exp_avg"] / 0.1).square().sum().item() for state in states))
    assert clipped == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_a_number_that_is_not_finite_changes_no_weight(
    open_run: OpenRun, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    run = open_run()
    optimizer_step(run, 0)
    before = weights_of(run)

    def poisoned(logits: Tensor, labels: Tensor) -> Tensor:
        if kind == "gradient":
            logits.register_hook(lambda gradient: gradient * math.inf)
        return cross_entropy_sum(logits, labels) * (math.nan if kind == "loss" else 1.0)

    with monkeypatch.context() as patch:
        patch.setattr(objective_module, "cross_entropy_sum", poisoned)
        outcome = optimizer_step(run, 1)
    assert not outcome.applied and not math.isfinite(outcome.grad_norm)
    assert same(weights_of(run), before)
    # Nor does anything of it linger: the step after is the step that would have been.
    clean = open_run()
    optimizer_step(clean, 0)
    assert optimizer_step(clean, 2).loss == optimizer_step(run, 2).loss
    assert same(weights_of(run), weights_of(clean))


def test_a_stop_signal_is_told_after_the_step(open_run: OpenRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run = open_run()
    monkeypatch.setattr(STOP, "reason", "SIGTERM")
    outcome = optimizer_step(run, 0)
    assert outcome.stop and outcome.applied


def overflowing(open_run: OpenRun) -> Run:
    """A run in fp16 whose loss scale is far too large, as it is when training begins."""
    run = open_run()
    run.config.strategy.precision = Precision.fp16
    engine = run.engine
    assert isinstance(engine, ReplicatedEngine)
    engine._precision = Precision.fp16
    engine._scaler = torch.amp.GradScaler("cpu", init_scale=2.0**34)
    return run


def test_fp16_finds_its_loss_scale_and_then_trains(open_run: OpenRun) -> None:
    run = overflowing(open_run)
    before = weights_of(run)
    outcomes = []
    for row in range(1, 30):
        outcomes.append(optimizer_step(run, 0))
        if outcomes[-1].applied:
            break
        assert same(weights_of(run), before)
        handle_nonfinite(run, 0, outcomes[-1], row)
    assert len(outcomes) > 3 and outcomes[-1].applied
    assert not same(weights_of(run), before)


def test_a_rehearsal_lets_fp16_search_its_loss_scale(open_run: OpenRun) -> None:
    run = overflowing(open_run)
    before = weights_of(run)
    rehearse(run)
    assert same(weights_of(run), before)


class CountingObjective(SupervisedCrossEntropy):
    """Also reports how long its rows are."""

    metrics = ("row_tokens",)

    def loss(self, forward: Forward, batch: MicroBatch) -> BatchLoss:
        loss = super().loss(forward, batch)
        return replace(loss, metrics={"row_tokens": torch.tensor(float(batch.input_ids.shape[1]))})


def test_a_metric_of_the_objective_needs_no_other_code_to_reach_the_record_and_the_trackers(open_run: OpenRun) -> None:
    run = open_run("batch.micro_sequences=1")
    expected = optimizer_step(run, 0)
    counting = replace(open_run("batch.micro_sequences=1"), objective=CountingObjective())
    outcome = optimizer_step(counting, 0)
    assert outcome.loss == expected.loss and outcome.grad_norm == expected.grad_norm and expected.metrics == {}
    assert outcome.metrics == {"row_tokens": outcome.tokens / outcome.supervised_tokens}
    record(counting, TrainState(step=1), outcome, step_time_s=1.0)
    [step] = read_metrics(counting.paths.metrics).steps
    assert step.metrics == outcome.metrics
    assert values_of(step)["train/row_tokens"] == outcome.metrics["row_tokens"]
    assert b'"metrics"' in counting.paths.metrics.read_bytes()


def test_without_metrics_of_the_objective_lines_are_as_before(open_run: OpenRun) -> None:
    run = open_run()
    record(run, TrainState(step=1), optimizer_step(run, 0), step_time_s=1.0)
    assert b'"metrics"' not in run.paths.metrics.read_bytes()
