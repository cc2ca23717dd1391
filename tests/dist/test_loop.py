"""What the loop promises besides exactness: early stopping, evaluation points, retention, the rehearsal's probes."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.checkpoint.commit import committed
from launcher.paths import RunPaths
from launcher.errors import ExitCode
from launcher.runs.events import read_events
from launcher.runs.metrics import read_metrics
from tests.dist.conftest import Ranks
from tests.dist.rig import make_data, make_run, new_attempt
from tests.tiny_model import make_tiny_model

pytestmark = pytest.mark.dist


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("loop") / "model")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("loop") / "data")


def train(ranks: Ranks, root: Path, model: Path, data: Path, *overrides: str) -> RunPaths:
    run = make_run(root, model, data, *overrides)
    ranks("train", run, world_size=1)
    return RunPaths(run)


def test_evaluations_come_at_intervals_after_epochs_and_at_the_end(
    tmp_path: Path, ranks: Ranks, model: Path, data: Path
) -> None:
    paths = train(ranks, tmp_path / "run", model, data, "optim.max_steps=14", "track.eval_every_steps=4")
    evals = read_metrics(paths.metrics).evals
    assert [(e.step, e.epoch_end) for e in evals] == [
        (4, False),
        (6, True),
        (8, False),
        (12, True),
        (14, False),
    ]


def test_early_stopping_ends_a_run_that_gets_no_better(tmp_path: Path, ranks: Ranks, model: Path, data: Path) -> None:
    settings = ["optim.epochs=9", "optim.early_stopping_patience=2", "optim.early_stopping_min_delta=100"]
    paths = train(ranks, tmp_path / "run", model, data, *settings)
    # The first evaluation is the best by definition, the next two are not better.
    assert read_metrics(paths.metrics).steps[-1].step == 18
    assert [e.fields["step"] for e in read_events(paths.events) if e.event == "early_stop"] == [18]
    assert committed(paths)[0].step == 18
    assert [e.fields["state"] for e in read_events(paths.events) if e.event == "state"][-1] == "succeeded"


def test_the_best_checkpoint_outlives_newer_ones(tmp_path: Path, ranks: Ranks, model: Path, data: Path) -> None:
    settings = ["optim.epochs=6", "optim.lr=0.05", "optim.schedule=constant", "checkpoint.keep_last=2"]
    paths = train(ranks, tmp_path / "run", model, data, *settings)
    losses = {e.step: e.loss for e in read_metrics(paths.metrics).evals}
    best = min(losses, key=lambda step: losses[step])
    assert best < 30, "the data must be such that training on overfits, or this test shows nothing"
    assert [c.step for c in committed(paths)] == [36, 30, best]


def test_the_rehearsal_refuses_a_model_that_leaks_between_examples(
    tmp_path: Path, ranks: Ranks, model: Path, data: Path
) -> None:
    run = make_run(tmp_path / "run", model, data)
    (result,) = ranks("train_leaking", run, world_size=1, check=False)
    assert result.rc == ExitCode.USER
    assert "see each other" in str(result.value)
    alone = make_run(tmp_path / "alone", model, data, "batch.micro_sequences=1", "optim.max_steps=2")
    ranks("train_leaking", alone, world_size=1)


def test_a_stop_signal_while_loading_ends_cleanly_and_the_run_goes_on(
    tmp_path: Path, ranks: Ranks, model: Path, data: Path
) -> None:
    run = make_run(tmp_path / "run", model, data, "strategy=zero2", "optim.max_steps=2", world_size=2)
    results = ranks("train_stopped_while_loading", run, check=False)
    assert [r.rc for r in results] == [ExitCode.PREEMPTED] * 2
    ranks("train", run, new_attempt(run))
    assert len(read_metrics(RunPaths(run).metrics).steps) == 2
