"""When a run saves and evaluates."""

from __future__ import annotations

from launcher.checkpoint.manifest import TrainState
from launcher.train.run import Run
from tests.unit.train.conftest import OpenRun


def saves_of(run: Run) -> list[int]:
    return [step for step in range(1, run.derived.total_steps + 1) if run.save_due(step)]


def test_without_an_interval_every_epoch_ends_with_a_save(open_run: OpenRun) -> None:
    run = open_run("optim.epochs=2")
    assert saves_of(run) == [run.order.steps_per_epoch, 2 * run.order.steps_per_epoch]


def test_an_interval_replaces_epochs_and_the_last_step_is_always_saved(open_run: OpenRun) -> None:
    run = open_run("optim.epochs=2", "checkpoint.save_every_steps=5")
    total = run.derived.total_steps
    assert total % 5 and saves_of(run) == [*range(5, total, 5), total]


def test_an_interval_of_evaluations_adds_to_the_ends_of_epochs(open_run: OpenRun) -> None:
    run = open_run("optim.epochs=2", "track.eval_every_steps=4")
    steps = range(run.derived.total_steps + 1)
    expected = {step for step in steps if step and (step % 4 == 0 or step % run.order.steps_per_epoch == 0)}
    assert {step for step in steps if run.evaluation_due(TrainState(step=step))} == expected
    assert not any(run.evaluation_due(TrainState(step=step, last_eval_step=step)) for step in steps)
