"""The real wandb library, offline and against a server on this machine; losses are compared bit for bit."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import psutil
import pytest

from launcher.config.schema import TrackConfig, WandbMode
from launcher.errors import UserError
from launcher.files import write_json
from launcher.paths import RunPaths
from launcher.runs.events import Event, EventWriter, read_events
from launcher.runs.metrics import MetricsWriter, read_metrics
from launcher.tracking import replay as replay_module
from launcher.tracking import replay_process
from launcher.tracking.replay import Replay, start, tracker_warnings
from launcher.tracking.replay_process import read_cursor
from launcher.tracking.sync import Synced
from launcher.tracking.sync import sync as sync_all
from launcher.tracking.tracker import Cursor
from launcher.tracking.wandb_tracker import WandbTracker, chosen_mode
from tests.unit.report.made_runs import eval_record, make_run, step_record
from tests.unit.tracking.wandb_server import FakeWandb, serve
from tests.wandb_files import history_rows

KEY = "c0ffee5eed" * 4


def loss_of(step: int) -> float:
    return 3.0 / (step + 0.1)


def write_attempt(paths: RunPaths, attempt: int, first: int, last: int) -> None:
    """Steps of an attempt with an evaluation every five, equal for equal steps as exact resume makes them."""
    writer = MetricsWriter(paths.metrics)
    for step in range(first, last + 1):
        writer.write(step_record(step, loss_of(step), attempt=attempt))
        if step % 5 == 0:
            writer.write(eval_record(step, loss_of(step) + 0.125, attempt=attempt))
    writer.close()


def assert_holds_exactly(rows: list[dict[str, object]], paths: RunPaths) -> None:
    """Every step and evaluation of metrics.jsonl once, in order, with the same bits."""
    metrics = read_metrics(paths.metrics)
    train = [(row["train/global_step"], row["train/loss"]) for row in rows if "train/loss" in row]
    evals = [(row["eval/global_step"], row["eval/loss"]) for row in rows if "eval/loss" in row]
    assert train == [(record.step, record.loss) for record in metrics.steps]
    assert evals == [(record.step, record.loss) for record in metrics.evals]


def events_of(paths: RunPaths, kind: str) -> list[Event]:
    return [event for event in read_events(paths.events) if event.event == kind]


def child_of(replay: Replay) -> int:
    (child,) = replay._children.values()
    return child.pid


def wait_for(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def sync(run_dir: Path, *, timeout_s: float) -> Synced:
    (synced,) = sync_all(run_dir, timeout_s=timeout_s)
    return synced


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    return make_run(tmp_path / "demo")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeWandb]:
    with serve() as fake:
        monkeypatch.setenv("WANDB_BASE_URL", fake.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        yield fake


@pytest.fixture
def black_hole(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A server that takes every connection and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{listener.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        yield


def test_offline_files_hold_every_loss_once_over_two_attempts_with_a_rewind(paths: RunPaths) -> None:
    for attempt, (first, last) in enumerate([(1, 17), (11, 23)], start=1):
        replay = start(paths.root, TrackConfig(wandb=WandbMode.offline), attempt=attempt)
        write_attempt(paths, attempt, first, last)
        assert replay.finish(20)
    assert_holds_exactly(list(history_rows(paths.tracker("wandb"))), paths)
    names = {path.name for path in paths.tracker("wandb").glob("offline-run-*/*.wandb")}
    assert names == {"run-abc123.wandb"}


def test_after_a_killed_replay_offline_files_are_made_again_and_nothing_is_lost_or_doubled(paths: RunPaths) -> None:
    write_attempt(paths, 1, 1, 12)
    assert start(paths.root, TrackConfig(wandb=WandbMode.offline), attempt=1).finish(20)
    # What a killed sender leaves: a cursor ahead of what W&B has on disk, not closed.
    write_json(paths.tracker("wandb") / "cursor-offline.json", Cursor(train_step=16, eval_step=15, closed=False))
    write_attempt(paths, 2, 11, 20)
    assert start(paths.root, TrackConfig(wandb=WandbMode.offline), attempt=2).finish(20)
    assert_holds_exactly(list(history_rows(paths.tracker("wandb"))), paths)


def test_the_config_wandb_gets_has_no_secret(
    server: FakeWandb, paths: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_canarycanarycanary")
    text = paths.config.read_text().replace("builtin:next_number", "https://me:pa55word@host/hf_canarycanarycanary")
    paths.config.write_text(text)
    assert start(paths.root, TrackConfig(wandb=WandbMode.online), attempt=1).finish(20)
    sent = server.config["abc123"]
    assert "[secret]@host/[secret]" in sent
    assert b"pa55word" not in server.seen and b"hf_canary" not in server.seen


def test_an_api_key_is_in_no_file(server: FakeWandb, paths: RunPaths) -> None:
    write_attempt(paths, 1, 1, 5)
    assert start(paths.root, TrackConfig(wandb=WandbMode.online), attempt=1).finish(20)
    files = [path for path in paths.root.rglob("*") if path.is_file()]
    assert len(files) > 4
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []


def test_a_server_gets_every_loss_once_over_two_attempts_with_a_rewind(server: FakeWandb, paths: RunPaths) -> None:
    for attempt, (first, last) in enumerate([(1, 12), (11, 20)], start=1):
        replay = start(paths.root, TrackConfig(wandb=WandbMode.online), attempt=attempt)
        write_attempt(paths, attempt, first, last)
        assert replay.finish(20)
    assert list(server.history) == ["abc123"]
    assert_holds_exactly(server.history["abc123"], paths)


def test_after_a_killed_replay_the_server_is_asked(server: FakeWandb, paths: RunPaths) -> None:
    write_attempt(paths, 1, 1, 12)
    assert start(paths.root, TrackConfig(wandb=WandbMode.online), attempt=1).finish(20)
    write_json(paths.tracker("wandb") / "cursor-online.json", Cursor(train_step=18, eval_step=15, closed=False))
    write_attempt(paths, 2, 11, 20)
    assert start(paths.root, TrackConfig(wandb=WandbMode.online), attempt=2).finish(20)
    assert_holds_exactly(server.history["abc123"], paths)


def test_sync_sends_an_offline_run_and_a_second_sync_sends_nothing(server: FakeWandb, paths: RunPaths) -> None:
    write_attempt(paths, 1, 1, 10)
    assert start(paths.root, TrackConfig(wandb=WandbMode.offline), attempt=1).finish(20)
    assert server.history == {}
    assert sync(paths.root, timeout_s=20).rows == 12
    assert sync(paths.root, timeout_s=20).rows == 0
    assert_holds_exactly(server.history["abc123"], paths)


@pytest.mark.slow
def test_sync_fills_in_what_an_outage_kept_back(server: FakeWandb, paths: RunPaths) -> None:
    write_attempt(paths, 1, 1, 10)
    server.is_broken = True
    replay = start(paths.root, TrackConfig(wandb=WandbMode.online), attempt=1)
    assert not replay.finish(2)
    server.is_broken = False
    sync(paths.root, timeout_s=30)
    assert_holds_exactly(server.history["abc123"], paths)


def test_a_silent_server_costs_training_no_more_than_the_time_out(black_hole: None, paths: RunPaths) -> None:
    began = time.monotonic()
    replay = start(paths.root, TrackConfig(wandb=WandbMode.online), attempt=1)
    started_s = time.monotonic() - began
    child = psutil.Process(child_of(replay))
    write_attempt(paths, 1, 1, 5)
    wait_for(lambda: bool(child.children()))
    below = child.children(recursive=True)
    began = time.monotonic()
    assert not replay.finish(1.0)
    assert time.monotonic() - began < 10  # W&B itself would go on for minutes
    assert started_s < 5
    assert all(not process.is_running() or process.status() == psutil.STATUS_ZOMBIE for process in [child, *below])
    (warning,) = events_of(paths, "warning")
    assert "took longer than 1 s" in str(warning.fields["message"])
    assert "launcher sync demo" in str(warning.fields["message"])


@pytest.mark.slow
def test_a_sync_that_meets_silence_says_what_to_check(black_hole: None, paths: RunPaths) -> None:
    write_attempt(paths, 1, 1, 5)
    with pytest.raises(UserError, match=r"took longer than 2 s.*WANDB_API_KEY.*/authorize.*launcher sync demo"):
        sync(paths.root, timeout_s=2)


def test_sync_without_a_key_says_where_to_get_one(
    paths: RunPaths, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"WANDB_API_KEY is not set.*https://wandb\.ai/authorize"):
        sync(paths.root, timeout_s=5)


def test_a_refused_key_becomes_a_warning_and_not_an_error(paths: RunPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "too-short-a-key")
    replay = start(paths.root, TrackConfig(wandb=WandbMode.online), attempt=1)
    wait_for(lambda: bool(events_of(paths, "warning")))
    assert not replay.finish(10)
    (warning,) = events_of(paths, "warning")
    assert "W&B refused the key: WANDB_API_KEY holds no key of" in str(warning.fields["message"])
    assert "too-short-a-key" not in paths.events.read_text()


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (401, r"W&B refused the key \(401\): WANDB_API_KEY holds no key of http://127.*/authorize"),
        (403, r"W&B refused access \(403\): the key in WANDB_API_KEY may not .*track\.wandb_entity"),
    ],
)
def test_a_key_the_server_refuses_is_named_on_the_terminal_of_rank_0_at_the_end(
    server: FakeWandb, paths: RunPaths, status: int, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.refuses = status
    replay = start(paths.root, TrackConfig(wandb=WandbMode.online), attempt=1)
    wait_for(lambda: bool(events_of(paths, "warning")))
    heard: list[str] = []
    monkeypatch.setattr(replay_module.logger, "warning", lambda text, *values: heard.append(text % values))
    assert not replay.finish(10)
    (warning,) = events_of(paths, "warning")
    assert re.search(told, str(warning.fields["message"]))
    (said,) = heard
    assert said.startswith("W&B incomplete: launcher sync demo (W&B refused ")
    everything = said + paths.events.read_text() + (paths.tracker("wandb") / "replay.log").read_text()
    assert KEY not in everything and "training goes on" not in everything


def test_a_key_of_the_public_server_is_got_at_wandb_ai(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    text = WandbTracker.refusal(RuntimeError("Failed to upsert bucket: returned error 401: {}"))
    assert "https://wandb.ai/authorize" in text and "set WANDB_BASE_URL" in text
    assert WandbTracker.refusal(RuntimeError("returned error 500: no run 401")) == ""


def test_sync_with_a_refused_key_says_what_to_do_and_nothing_of_training(server: FakeWandb, paths: RunPaths) -> None:
    write_attempt(paths, 1, 1, 5)
    server.refuses = 401
    with pytest.raises(UserError) as refused:
        sync(paths.root, timeout_s=20)
    assert "W&B refused the key (401)" in str(refused.value) and "/authorize" in str(refused.value)
    assert "training goes on" not in str(refused.value)


def test_a_sync_that_cannot_reach_the_server_says_nothing_of_training(
    paths: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay_process, "Sender", mock.Mock(side_effect=RuntimeError("no route to host")))
    for is_training, told in ((False, "no route to host)"), (True, "no route to host); tried again every 60 s while")):
        events = EventWriter(paths.events, 0, rank=-1)
        parent = mock.Mock()
        assert replay_process._open(paths.root, "wandb", "online", parent, events, is_training=is_training) is None
        assert told in str(events_of(paths, "warning")[-1].fields["message"])
    assert "training" not in str(events_of(paths, "warning")[0].fields["message"])


def test_what_w_and_b_lacks_is_forgotten_once_it_has_everything(paths: RunPaths) -> None:
    events = EventWriter(paths.events, 1, rank=-1)
    events.write("warning", source="wandb", message="W&B did not open")
    events.write("warning", source="data", message="something else")
    assert tracker_warnings(read_events(paths.events)) == {"wandb": "W&B did not open"}
    assert tracker_warnings(read_events(paths.events), attempt=2) == {}
    events.write("wandb", mode="online", complete=True)
    assert tracker_warnings(read_events(paths.events)) == {}


def test_a_run_without_configuration_is_warned_about_and_nothing_raised(tmp_path: Path) -> None:
    replay = start(tmp_path / "empty", TrackConfig(wandb=WandbMode.offline), attempt=1)
    assert not replay.finish(10)
    (warning,) = events_of(RunPaths(tmp_path / "empty"), "warning")
    assert "config.yaml does not exist" in str(warning.fields["message"])


def test_signals_for_the_training_group_do_not_reach_the_replay(paths: RunPaths) -> None:
    replay = start(paths.root, TrackConfig(wandb=WandbMode.offline), attempt=1)
    wait_for(lambda: bool(events_of(paths, "wandb")))
    assert os.getpgid(child_of(replay)) != os.getpgid(0)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        os.kill(child_of(replay), number)
    write_attempt(paths, 1, 1, 5)
    assert replay.finish(20)
    assert_holds_exactly(list(history_rows(paths.tracker("wandb"))), paths)


PARENT = """
import sys, time
from pathlib import Path
from launcher.config.schema import TrackConfig, WandbMode
from launcher.tracking.replay import start
replay = start(Path(sys.argv[1]), TrackConfig(wandb=WandbMode.offline), attempt=1)
print(next(iter(replay._children.values())).pid, flush=True)
time.sleep(60)
"""


def test_the_replay_ends_by_itself_when_training_is_killed_and_keeps_what_was_recorded(paths: RunPaths) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT, str(paths.root)], stdout=subprocess.PIPE) as training:
        assert training.stdout is not None
        child = psutil.Process(int(training.stdout.readline()))
        wait_for(lambda: bool(events_of(paths, "wandb")))
        write_attempt(paths, 1, 1, 12)
        training.kill()
    wait_for(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
    assert_holds_exactly(list(history_rows(paths.tracker("wandb"))), paths)


@pytest.mark.slow
def test_two_senders_of_one_run_do_not_send_twice(paths: RunPaths) -> None:
    write_attempt(paths, 1, 1, 10)
    replays = [start(paths.root, TrackConfig(wandb=WandbMode.offline), attempt=1) for _ in range(2)]
    threads = [threading.Thread(target=replay.finish, args=(30,)) for replay in replays]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert_holds_exactly(list(history_rows(paths.tracker("wandb"))), paths)


@pytest.mark.parametrize(
    ("mode", "environment", "chosen"),
    [
        (WandbMode.auto, {}, WandbMode.offline),
        (WandbMode.auto, {"WANDB_API_KEY": "k"}, WandbMode.online),
        (WandbMode.auto, {"WANDB_API_KEY": "k", "WANDB_MODE": "offline"}, WandbMode.offline),
        (WandbMode.auto, {"WANDB_MODE": "disabled"}, WandbMode.disabled),
        (WandbMode.auto, {"WANDB_MODE": "nonsense"}, WandbMode.offline),
        (WandbMode.online, {"WANDB_MODE": "offline"}, WandbMode.online),
        (WandbMode.disabled, {"WANDB_API_KEY": "k"}, WandbMode.disabled),
    ],
)
def test_auto_follows_the_environment_and_a_named_mode_does_not(
    mode: WandbMode, environment: dict[str, str], chosen: WandbMode
) -> None:
    assert chosen_mode(mode, environment) is chosen


def test_disabled_starts_nothing_and_writes_nothing(paths: RunPaths) -> None:
    assert start(paths.root, TrackConfig(wandb=WandbMode.disabled), attempt=1).finish(0.1)
    assert not paths.tracker("wandb").exists() and not paths.events.exists()


def test_a_cursor_is_trusted_only_if_it_is_whole_and_its_sender_ended_cleanly(tmp_path: Path) -> None:
    path = tmp_path / "cursor-offline.json"
    assert read_cursor(path) is None
    path.write_text("{")
    assert read_cursor(path) is None
    write_json(path, Cursor(3, 2, closed=False))
    assert read_cursor(path) is None
    write_json(path, Cursor(3, 2, closed=True))
    assert read_cursor(path) == Cursor(3, 2, closed=True)
