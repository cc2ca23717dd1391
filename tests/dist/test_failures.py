"""What must not happen silently: NaN, the wrong world, another configuration, a damaged checkpoint, a full disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.checkpoint.commit import committed, newest_verified
from launcher.paths import RunPaths
from launcher.errors import CheckpointError, ExitCode
from launcher.runs.events import read_events
from launcher.runs.metrics import read_metrics
from tests.dist.conftest import Ranks
from tests.dist.rig import make_data, make_run, new_attempt
from tests.tiny_model import make_tiny_model

pytestmark = pytest.mark.dist

STRATEGIES = [(1, "single"), (2, "ddp"), (2, "zero1"), (2, "zero2"), (2, "zero3")]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("failures") / "model")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("failures") / "data")


@pytest.mark.parametrize("kind", ["loss", "gradient"])
@pytest.mark.parametrize(("world_size", "strategy"), STRATEGIES)
def test_a_nonfinite_value_on_one_rank_stops_all_before_the_step(
    tmp_path: Path, ranks: Ranks, model: Path, data: Path, world_size: int, strategy: str, kind: str
) -> None:
    run = make_run(tmp_path / "run", model, data, f"strategy={strategy}", world_size=world_size)
    results = ranks("train_poisoned", run, kind, 3, world_size - 1, world_size=world_size, check=False)
    assert [r.rc for r in results] == [ExitCode.NON_FINITE] * world_size
    assert "random:" in str(results[0].value)  # file and line of the examples
    event = next(e for e in read_events(RunPaths(run).events) if e.event == "nonfinite")
    assert len(event.fields["sample_ids"]) == 4 and event.fields["step"] == 3  # type: ignore[arg-type]
    # Nothing that is not finite was published.
    assert [c.step for c in committed(RunPaths(run))] == [0]


@pytest.mark.parametrize("kind", ["loss", "gradient"])
@pytest.mark.parametrize(("world_size", "strategy"), STRATEGIES)
def test_skipping_leaves_the_weights_as_they_were(
    tmp_path: Path, ranks: Ranks, model: Path, data: Path, world_size: int, strategy: str, kind: str
) -> None:
    settings = [f"strategy={strategy}", "optim.on_nonfinite=skip", "optim.epochs=1"]
    run = make_run(tmp_path / "run", model, data, *settings, world_size=world_size)
    ranks("train_poisoned", run, kind, 3, 0, world_size=world_size)
    metrics = read_metrics(RunPaths(run).metrics)
    assert [r.step for r in metrics.steps] == [1, 2, 3, 4, 5, 6]
    finite = [r.loss for r in metrics.steps if r.step != 3 or kind == "gradient"]
    assert all(0 < loss < 10 for loss in finite)
    assert 0 < metrics.evals[-1].loss < 10


def test_another_number_of_ranks_than_planned_is_refused(tmp_path: Path, ranks: Ranks, model: Path, data: Path) -> None:
    run = make_run(tmp_path / "run", model, data, "strategy=ddp", world_size=2)
    (result,) = ranks("train", run, world_size=1, check=False)
    assert result.rc == ExitCode.WORLD
    assert "1 process started but the run was planned for 2" in str(result.value)


def test_a_changed_configuration_cannot_continue_a_run(tmp_path: Path, ranks: Ranks, model: Path, data: Path) -> None:
    run = make_run(tmp_path / "run", model, data)
    ranks("train", run, 1, 2, world_size=1, check=False)
    config = RunPaths(run).config
    config.write_text(config.read_text().replace("lr: 0.001", "lr: 0.002"))
    (result,) = ranks("train", run, new_attempt(run), world_size=1, check=False)
    assert result.rc == ExitCode.CHECKPOINT
    assert "must not change after the start" in str(result.value)


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    tmp_path: Path, ranks: Ranks, model: Path, data: Path
) -> None:
    overrides = ["strategy=zero2", "checkpoint.save_every_steps=2", "optim.epochs=1"]
    golden = make_run(tmp_path / "golden", model, data, *overrides, world_size=2)
    ranks("train", golden)
    run = make_run(tmp_path / "run", model, data, *overrides, world_size=2)
    ranks("train", run, 1, 3, check=False)
    newest = committed(RunPaths(run))[0]
    victim = max(newest.path.rglob("*.pt"), key=lambda p: p.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    ranks("train", run, new_attempt(run))
    resumed = [e.fields["step"] for e in read_events(RunPaths(run).events) if e.event == "resume"]
    assert resumed == [2] and newest.step == 4
    curves = [[r.loss.hex() for r in read_metrics(RunPaths(r).metrics).steps] for r in (run, golden)]
    assert curves[0] == curves[1]


def test_a_planted_checkpoint_is_refused(tmp_path: Path, ranks: Ranks, model: Path, data: Path) -> None:
    run = make_run(tmp_path / "run", model, data, "optim.epochs=1")
    ranks("train", run, 1, 2, world_size=1, check=False)
    manifest = committed(RunPaths(run))[0].path / "manifest.json"
    manifest.write_text(manifest.read_text() + " ")  # still valid JSON, but not what this run wrote
    ranks("train", run, new_attempt(run), world_size=1)
    resumed = [e for e in read_events(RunPaths(run).events) if e.event == "resume"]
    assert resumed == []  # fell back to step 0, which it did write


@pytest.mark.parametrize(("world_size", "strategy"), [(1, "single"), (2, "zero2")])
def test_a_full_disk_loses_no_checkpoint(
    tmp_path: Path, ranks: Ranks, model: Path, data: Path, world_size: int, strategy: str
) -> None:
    """The file size limit makes the kernel refuse writes in the middle of a file, on one rank only."""
    settings = [f"strategy={strategy}", "checkpoint.save_every_steps=2", "optim.epochs=1"]
    run = make_run(tmp_path / "run", model, data, *settings, world_size=world_size)
    ranks("train_on_full_disk", run, 3, 5, world_size=world_size)
    warnings = [e for e in read_events(RunPaths(run).events) if e.event == "warning"]
    assert [w.fields["step"] for w in warnings] == [4]
    assert f"rank {world_size - 1}" in str(warnings[0].fields["why"])
    steps = [c.step for c in committed(RunPaths(run))]
    assert steps == [6, 2]
    assert not list(RunPaths(run).checkpoints.glob(".staging*"))
    assert newest_verified(run) is not None


def test_a_superseded_attempt_cannot_publish(tmp_path: Path, ranks: Ranks, model: Path, data: Path) -> None:
    run = make_run(tmp_path / "run", model, data, "optim.epochs=1", "checkpoint.rehearse=false")
    new_attempt(run)
    (result,) = ranks("train", run, 1, world_size=1, check=False)
    assert result.rc == ExitCode.SUPERSEDED
    assert "superseded by attempt 2" in str(result.value)
    assert committed(RunPaths(run)) == []


def test_checkpoints_that_are_all_damaged_never_mean_a_fresh_start(
    tmp_path: Path, ranks: Ranks, model: Path, data: Path
) -> None:
    run = make_run(tmp_path / "run", model, data, "optim.epochs=1")
    ranks("train", run, 1, 2, world_size=1, check=False)
    for checkpoint in committed(RunPaths(run)):
        next(checkpoint.path.glob("model-*")).write_bytes(b"")
    with pytest.raises(CheckpointError, match="no checkpoint can be trusted"):
        newest_verified(run)
    (result,) = ranks("train", run, new_attempt(run), world_size=1, check=False)
    assert result.rc == ExitCode.CHECKPOINT
