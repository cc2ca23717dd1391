"""The properties that every tracker keeps, with the real packages: what was sent is read back and compared."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from launcher.config.compose import compose_with_problems
from launcher.config.schema import TrackConfig, TrackerName, WandbMode
from launcher.errors import UserError
from launcher.paths import RunPaths
from launcher.runs.events import read_events
from launcher.runs.metrics import MetricsWriter, read_metrics
from launcher.tracking.replay import Replay, incomplete_note, start, tracker_warnings
from launcher.tracking.sync import sync
from launcher.tracking.tracker import load_tracker
from tests.unit.report.made_runs import eval_record, make_run, step_record
from tests.wandb_files import history_rows

Points = list[tuple[int, float]]
NAMES = [name.value for name in TrackerName]


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunPaths:
    for variable in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(variable, raising=False)
    return make_run(tmp_path / "demo")


def write_attempt(paths: RunPaths, attempt: int, first: int, last: int) -> None:
    writer = MetricsWriter(paths.metrics)
    for step in range(first, last + 1):
        writer.write(step_record(step, 3.0 / (step + 0.1), attempt=attempt))
        if step % 5 == 0:
            writer.write(eval_record(step, 3.0 / step, attempt=attempt))
    writer.close()


def begin(paths: RunPaths, name: str, attempt: int) -> Replay:
    return start(paths.root, TrackConfig(trackers=[TrackerName(name)], wandb=WandbMode.offline), attempt=attempt)


def wandb_points(paths: RunPaths, tag: str) -> Points:
    axis = f"{tag.split('/')[0]}/global_step"
    rows = list(history_rows(paths.tracker("wandb")))
    return [(int(str(row[axis])), float(str(row[tag]))) for row in rows if tag in row]


def tensorboard_points(paths: RunPaths, tag: str) -> Points:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(paths.tracker("tensorboard")), size_guidance={"scalars": 0})
    accumulator.Reload()
    return [(event.step, event.value) for event in accumulator.Scalars(tag)]


def mlflow_points(paths: RunPaths, tag: str) -> Points:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{paths.tracker('mlflow') / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("launcher")
    (run,) = client.search_runs([experiment.experiment_id])
    points = client.get_metric_history(run.info.run_id, tag)
    return sorted((point.step, point.value) for point in points)


READERS: dict[str, Callable[[RunPaths, str], Points]] = {
    "wandb": wandb_points,
    "tensorboard": tensorboard_points,
    "mlflow": mlflow_points,
}


def assert_holds_exactly(paths: RunPaths, name: str) -> None:
    """Every step and evaluation once, with the recorded value; TensorBoard keeps 32 bits of it."""
    shown = np.float32 if name == "tensorboard" else np.float64
    metrics = read_metrics(paths.metrics)
    for tag, records in (("train/loss", metrics.steps), ("eval/loss", metrics.evals)):
        assert READERS[name](paths, tag) == [(record.step, float(shown(record.loss))) for record in records]


def wait_for(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("name", NAMES)
def test_two_attempts_with_a_rewind_are_one_run_with_every_loss_once(paths: RunPaths, name: str) -> None:
    for attempt, (first, last) in enumerate([(1, 17), (11, 23)], start=1):
        replay = begin(paths, name, attempt)
        write_attempt(paths, attempt, first, last)
        assert replay.finish(60)
    assert_holds_exactly(paths, name)


@pytest.mark.parametrize("name", NAMES)
def test_a_child_killed_in_the_middle_leaves_no_gap_and_no_duplicate(paths: RunPaths, name: str) -> None:
    replay = begin(paths, name, 1)
    write_attempt(paths, 1, 1, 12)
    cursors = paths.tracker(name)
    wait_for(lambda: any('"train_step": 12' in path.read_text() for path in cursors.glob("cursor-*.json")))
    os.kill(next(iter(replay._children.values())).pid, signal.SIGKILL)
    assert not replay.finish(10)
    # A cursor that is behind, as after a kill between sending and noting.
    (cursor,) = cursors.glob("cursor-*.json")
    cursor.write_text('{"train_step":7,"eval_step":5,"closed":false}')
    replay = begin(paths, name, 2)
    write_attempt(paths, 2, 11, 20)
    assert replay.finish(60)
    assert_holds_exactly(paths, name)


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_sync_sends_the_whole_run_once(paths: RunPaths, name: str) -> None:
    write_attempt(paths, 1, 1, 10)
    text = paths.config.read_text()
    assert "trackers: null" in text
    paths.config.write_text(text.replace("trackers: null", f"trackers: [{name}]"))
    assert [one.rows for one in sync(paths.root, timeout_s=60)] == [12]
    assert [one.rows for one in sync(paths.root, timeout_s=60)] == [0]
    assert_holds_exactly(paths, name)


def test_several_trackers_share_the_time_out_and_each_says_what_it_lacks(
    paths: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("WANDB_BASE_URL", address)
        monkeypatch.setenv("WANDB_API_KEY", "c0ffee5eed" * 4)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        names = [TrackerName.wandb, TrackerName.mlflow]
        replay = start(paths.root, TrackConfig(trackers=names, wandb=WandbMode.online), attempt=1)
        write_attempt(paths, 1, 1, 5)
        began = time.monotonic()
        assert not replay.finish(4.0)
        assert time.monotonic() - began < 7.5  # one after the other: 8 s
    warnings = tracker_warnings(read_events(paths.events))
    assert sorted(warnings) == ["mlflow", "wandb"]
    assert incomplete_note("demo", "mlflow", "why") == "MLflow incomplete: launcher sync demo (why)"


@pytest.mark.parametrize("name", NAMES)
def test_a_named_tracker_without_its_package_is_a_problem_that_names_the_extra(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None if package == name else find_spec(package))
    settings = ["data=next_number", f"track.trackers=[{name}]"]
    problems = [str(problem) for problem in compose_with_problems(settings)[1] if problem.key == "track.trackers"]
    assert len(problems) == 1 and f"pip install 'tunelaunch[{name}]'" in problems[0]


def test_a_misspelt_tracker_gets_the_nearest_name() -> None:
    problems = compose_with_problems(["track.trackers=[tensorbord]"])[1]
    assert any("track.trackers" in problem.key and "tensorboard" in str(problem) for problem in problems)


def test_settings_reach_mlflow_and_tensorboard_without_secrets(
    paths: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_canarycanarycanary")
    paths.config.write_text(paths.config.read_text().replace("builtin:next_number", "x_hf_canarycanarycanary"))
    names = [TrackerName.tensorboard, TrackerName.mlflow]
    assert start(paths.root, TrackConfig(trackers=names), attempt=1).finish(60)
    for folder in ("tensorboard", "mlflow"):
        held = b"".join(path.read_bytes() for path in (paths.root / folder).iterdir() if path.is_file())
        assert b"x_[secret]" in held and b"hf_canary" not in held


def test_the_login_of_an_mlflow_server_is_in_no_file_name_and_no_address() -> None:
    tracker = load_tracker("mlflow")
    name = tracker.destination(TrackConfig(), {"MLFLOW_TRACKING_URI": "https://me:pa55word@host/"})
    assert name is not None and name.isalnum() and "pa55word" not in name


def test_sync_of_wandb_without_a_login_is_refused(
    paths: RunPaths, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    with pytest.raises(UserError, match="WANDB_API_KEY is not set"):
        sync(paths.root, timeout_s=5)
