"""A rank's signs of life: limits that learn, phases that end, and a rank that ends itself where nobody watches."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import launcher.train.watchdog as watchdog_module
from launcher.config.cluster_schema import FaultConfig
from launcher.errors import ExitCode
from launcher.files import find_record
from launcher.paths import RunPaths
from launcher.runs.heartbeat import Beat, Phase
from launcher.runs.rank_end import RankEnd
from launcher.train.watchdog import SHORTEST_STEP_LIMIT_S, Watchdog


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    found = RunPaths(tmp_path)
    found.attempt(1).mkdir(parents=True)
    return found


@pytest.fixture
def pulse(paths: RunPaths, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watchdog]:
    monkeypatch.setenv("LAUNCHER_WATCHED", "1")
    # It would end this process, and the tests with it, once the heartbeats have stopped for long enough.
    monkeypatch.setattr(Watchdog, "_guard", lambda *_: None)
    found = Watchdog()
    found.begin(paths, 1, rank=0, fault=FaultConfig(load_limit_s=1000.0, save_limit_s=2000.0, meet_limit_s=100.0))
    yield found
    watchdog_module.faulthandler.cancel_dump_traceback_later()


def beat_of(paths: RunPaths) -> Beat:
    beat = find_record(Beat, paths.heartbeat(1, 0))
    assert beat is not None
    return beat


def test_the_first_step_may_take_as_long_as_loading(pulse: Watchdog) -> None:
    pulse.enter(Phase.step, step=0)
    pulse.beat()
    assert pulse.limit_s == 1000.0
    pulse.beat(step=1)
    assert pulse.limit_s == SHORTEST_STEP_LIMIT_S


def test_the_limit_of_a_step_learns_from_the_slowest(pulse: Watchdog, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    monkeypatch.setattr(watchdog_module.time, "monotonic", lambda: now)
    pulse.enter(Phase.step, step=0)
    for seconds in (1.0, 70.0, 2.0):
        now += seconds
        pulse.beat(step=int(now))
    assert pulse.limit_s == pytest.approx(700.0)
    # What a save takes says nothing about steps.
    with pulse.phase(Phase.save):
        now += 500.0
    assert pulse.limit_s == pytest.approx(700.0)


def test_a_setting_beats_what_was_learned(pulse: Watchdog, paths: RunPaths) -> None:
    pulse.begin(paths, 1, rank=0, fault=FaultConfig(step_limit_s=7.0))
    pulse.enter(Phase.step, step=0)
    pulse.beat(step=1)
    assert pulse.limit_s == 7.0


def test_a_phase_ends_with_the_one_before_also_after_an_error(pulse: Watchdog, paths: RunPaths) -> None:
    pulse.enter(Phase.step, step=4)
    with pytest.raises(OSError), pulse.phase(Phase.save):
        assert (beat_of(paths).phase, beat_of(paths).limit_s) == ("save", 2000.0)
        raise OSError
    assert (beat_of(paths).phase, beat_of(paths).step) == ("step", 4)


def test_before_it_begins_nothing_happens() -> None:
    idle = Watchdog()
    idle.enter(Phase.step, step=3)
    idle.beat(step=4)
    with idle.phase(Phase.save):
        pass


HANG = """
import sys, time
from pathlib import Path
from launcher.config.cluster_schema import FaultConfig
from launcher.paths import RunPaths
import launcher.train.watchdog as pulse
pulse._LEAVE_AFTER_S = 1.0
pulse._LEAVE_UNREACHED_AFTER_S = float(sys.argv[2])
pulse.WATCHDOG.begin(RunPaths(Path(sys.argv[1])), 1, rank=3, fault=FaultConfig(load_limit_s=1.0))
time.sleep(600)
"""


def hang(paths: RunPaths, watched: str, *, unreached_after_s: float = 600.0) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "LAUNCHER_WATCHED": watched}
    command = [sys.executable, "-c", HANG, str(paths.root), str(unreached_after_s)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)


def test_a_rank_that_nobody_watches_writes_its_stack_and_ends_itself(paths: RunPaths) -> None:
    assert hang(paths, "").wait(timeout=120) == ExitCode.HANG
    end = find_record(RankEnd, paths.rank_end(1, 3))
    assert end is not None and end.exit_code == ExitCode.HANG
    assert "in phase start (limit 1 s)" in end.message
    assert "Timeout (" in paths.stacks(1, 3).read_text()


def test_a_rank_that_is_watched_leaves_that_to_the_watcher(paths: RunPaths) -> None:
    process = hang(paths, "1")
    try:
        until = time.monotonic() + 60
        stacks = paths.stacks(1, 3)
        while not (stacks.is_file() and stacks.stat().st_size) and time.monotonic() < until:
            time.sleep(0.05)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=4)
    finally:
        process.kill()
        process.wait()
    assert not paths.rank_end(1, 3).exists()


def test_a_rank_its_watcher_cannot_reach_leaves_by_itself_in_the_end(paths: RunPaths) -> None:
    process = hang(paths, "1", unreached_after_s=2.0)
    assert process.wait(timeout=60) == ExitCode.HANG
    end = find_record(RankEnd, paths.rank_end(1, 3))
    assert end is not None and end.error == "Hang"


def test_it_loads_no_torch() -> None:
    code = "import sys, launcher.train.watchdog, launcher.worker; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
