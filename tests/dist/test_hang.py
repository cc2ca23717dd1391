"""A rank that hangs is found by its silence and named; a rank that is only slow is left alone."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from launcher.files import find_record
from launcher.paths import RunPaths
from launcher.errors import ExitCode, VerdictClass
from launcher.diagnose.conclude import explain
from launcher.diagnose.evidence import StarterReport, collect
from launcher.runs.hang_detector import Stall, HangDetector
from launcher.runs.heartbeat import Beat
from launcher.train.watchdog import SHORTEST_STEP_LIMIT_S
from tests.dist.conftest import RankResult, Ranks
from tests.dist.rig import make_data, make_run
from tests.dist.trouble import HUNG_RANK
from tests.tiny_model import make_tiny_model

pytestmark = pytest.mark.dist

LIMIT_S = 4.0
SETTINGS = ["strategy=ddp", "checkpoint.rehearse=false", "optim.max_steps=4", "checkpoint.save_every_steps=2"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("hang") / "model")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("hang") / "data")


class Watched(threading.Thread):
    """Ranks in the background, and what came of them."""

    def __init__(self, ranks: Ranks, *call: object) -> None:
        super().__init__(daemon=True)
        self._ranks, self._call = ranks, call
        self.results: list[RankResult] = []
        self.start()

    def run(self) -> None:
        name, *arguments = self._call
        self.results = self._ranks(name, *arguments, check=False)

    def watch(self, run: Path, *, timeout_s: float) -> Stall | None:
        """What a starter would see."""
        watch = HangDetector(RunPaths(run), 1, 2)
        until = time.monotonic() + timeout_s
        while self.is_alive() and time.monotonic() < until:
            if (stall := watch.stalled()) is not None:
                return stall
            time.sleep(0.2)
        return None


def kill_ranks(paths: RunPaths) -> None:
    for rank in (0, 1):
        beat = find_record(Beat, paths.heartbeat(1, rank))
        assert beat is not None
        os.kill(beat.pid, signal.SIGKILL)


def await_stacks(path: Path) -> str:
    until = time.monotonic() + 30
    while not path.read_text().endswith("\n") and time.monotonic() < until:
        time.sleep(0.1)
    return path.read_text()


@pytest.mark.parametrize("kind", ["stopped", "loop", "gil", "sleep", "save"])
def test_a_hang_is_found_within_two_seconds_of_its_limit_and_its_rank_is_named(
    tmp_path: Path, ranks: Ranks, model: Path, data: Path, kind: str
) -> None:
    limits = [f"fault.step_limit_s={LIMIT_S}", f"fault.save_limit_s={LIMIT_S}"]
    run = make_run(tmp_path / "run", model, data, *SETTINGS, *limits, world_size=2)
    paths = RunPaths(run)
    hung = Watched(ranks, "tests.dist.trouble:hang", run, kind)
    stall = hung.watch(run, timeout_s=240)
    assert stall is not None, hung.results
    assert LIMIT_S + 1 < stall.silent_s <= LIMIT_S + 2
    assert stall.phase == ("save" if kind == "save" else "step")
    waiting = await_stacks(paths.stacks(1, 1 - HUNG_RANK))
    assert "Timeout (" in waiting and "launcher/train/" in waiting
    if kind != "stopped":
        assert "trouble.py" in await_stacks(paths.stacks(1, HUNG_RANK))
    kill_ranks(paths)
    hung.join(timeout=60)
    verdict = explain(collect(run, 1, StarterReport(exit_code=int(ExitCode.HANG), stall=stall)))
    assert (verdict.verdict_class, verdict.rank) == (VerdictClass.hang, HUNG_RANK)
    if kind == "stopped":
        assert paths.stacks(1, HUNG_RANK).read_text() == ""
    else:
        assert "trouble.py" in verdict.place


SLOW = [
    pytest.param(2.0, 6.0, id="short"),
    pytest.param(30.0, 60.0, id="long", marks=pytest.mark.nightly),
]


@pytest.mark.parametrize(("step_s", "save_s"), SLOW)
def test_slow_steps_and_long_saves_are_no_hang(
    tmp_path: Path, ranks: Ranks, model: Path, data: Path, step_s: float, save_s: float
) -> None:
    limits = [f"fault.step_limit_s={10 * step_s}", f"fault.save_limit_s={10 * save_s}"]
    run = make_run(tmp_path / "run", model, data, *SETTINGS, *limits, world_size=2)
    slow = Watched(ranks, "tests.dist.trouble:slow", run, step_s, save_s)
    assert slow.watch(run, timeout_s=60 * step_s + 20 * save_s) is None
    slow.join(timeout=60)
    assert [result.rc for result in slow.results] == [0, 0], slow.results
    assert all(RunPaths(run).stacks(1, rank).read_text() == "" for rank in (0, 1))


def test_without_a_setting_no_step_is_called_hung_before_five_minutes() -> None:
    assert SHORTEST_STEP_LIMIT_S >= 300


def test_a_rank_that_does_not_come_is_named_with_its_node(ranks: Ranks) -> None:
    results = ranks("tests.dist.trouble:meet_some", 3.0, 1, world_size=3, check=False)
    assert [result.rc for result in results] == [ExitCode.WORLD, 0, ExitCode.WORLD]
    for result in (results[0], results[2]):
        assert "rank 1 on n2 did not answer within 3 s (rendezvous 127.0.0.1:" in str(result.value)


def test_a_main_rank_that_does_not_come_is_named_by_all_others(ranks: Ranks) -> None:
    results = ranks("tests.dist.trouble:meet_some", 3.0, 0, world_size=2, check=False)
    assert "rank 0 on n1 did not answer within 3 s" in str(results[1].value)


@pytest.mark.parametrize("stopped", [0, 1])
def test_a_rank_stopped_while_others_are_awaited_takes_all_with_it(ranks: Ranks, stopped: int) -> None:
    began = time.monotonic()
    results = ranks("tests.dist.trouble:meet_some", 300.0, 2, stopped, world_size=3, check=False)
    assert [result.rc for result in results] == [ExitCode.PREEMPTED, ExitCode.PREEMPTED, 0]
    assert time.monotonic() - began < 60
