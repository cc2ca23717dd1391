"""The watch names the rank that hangs, on its own clock, and never one that goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.config.cluster_schema import FaultConfig
from launcher.config.frozen import load_config, save_config
from launcher.paths import RunPaths
from launcher.runs.hang_detector import HangDetector, Stall
from launcher.runs.heartbeat import Heart
from launcher.runs.rank_end import RankEnd, write_rank_end

LIMIT_S = 10.0


class Scene:
    """A watch over ranks whose clocks and beats the test moves."""

    def __init__(self, run: Path, world_size: int) -> None:
        self.paths = RunPaths(run)
        self.paths.attempt(1).mkdir(parents=True, exist_ok=True)
        self.now = 1000.0
        self.watch = HangDetector(self.paths, 1, world_size, clock=lambda: self.now)
        self.hearts = [
            Heart(self.paths.heartbeat(1, rank), rank=rank, host=f"n{rank + 1}", clock=lambda: self.now)
            for rank in range(world_size)
        ]

    def beat(self, *ranks: int, phase: str = "step", step: int = 3, limit_s: float = LIMIT_S) -> None:
        for rank in ranks:
            self.hearts[rank].beat(phase, step=step, limit_s=limit_s)

    def pass_s(self, seconds: float, *going_on: int, every_s: float = 0.5) -> Stall | None:
        """Lets time pass while the watch looks and some ranks go on; the first stall it reports."""
        until = self.now + seconds
        while self.now < until:
            self.now += every_s
            self.beat(*going_on)
            if (stall := self.watch.stalled()) is not None:
                return stall
        return None


@pytest.fixture
def scene(make_run: Callable[..., Path]) -> Scene:
    return Scene(make_run(world_size=3), 3)


def test_ranks_that_go_on_are_left_alone(scene: Scene) -> None:
    scene.beat(0, 1, 2)
    assert scene.pass_s(100, 0, 1, 2) is None


def test_the_silent_rank_is_named_with_node_and_phase_within_two_seconds_of_its_limit(scene: Scene) -> None:
    scene.beat(0, 1, 2)
    began = scene.now
    stall = scene.pass_s(100, 0, 2)
    assert stall is not None
    assert (stall.rank, stall.host, stall.phase, stall.step, stall.limit_s) == (1, "n2", "step", 3, LIMIT_S)
    assert LIMIT_S + 1 < scene.now - began <= LIMIT_S + 2
    assert stall.silent_s == pytest.approx(scene.now - began, abs=0.6)


def test_every_phase_has_the_limit_the_rank_gave_it(scene: Scene) -> None:
    scene.beat(0, 1, 2, phase="save", limit_s=60.0)
    assert scene.pass_s(60) is None
    assert scene.pass_s(2) is not None


def test_a_beat_file_that_never_came_is_judged_by_the_limit_for_loading(make_run: Callable[..., Path]) -> None:
    run = make_run(world_size=2)
    config = RunPaths(run).config
    frozen = load_config(config)
    frozen.config.fault = FaultConfig(load_limit_s=40.0)
    save_config(config, frozen)
    scene = Scene(run, 2)
    scene.beat(0, limit_s=500.0)
    assert scene.pass_s(40) is None
    stall = scene.pass_s(3)
    assert stall is not None
    assert (stall.rank, stall.host, stall.phase, stall.limit_s) == (1, "", "start", 40.0)


def test_ranks_that_have_ended_or_are_finishing_are_not_watched(scene: Scene) -> None:
    scene.beat(0, 1, 2)
    scene.beat(0, phase="finish")
    for rank in (1, 2):
        write_rank_end(scene.paths.rank_end(1, rank), RankEnd(rank=rank, host="n", exit_code=0))
    assert scene.pass_s(100) is None


def test_the_one_that_could_not_write_its_stack_is_named(scene: Scene) -> None:
    scene.beat(0, 1, 2)
    for rank in (0, 1):
        scene.paths.stacks(1, rank).write_text("Timeout (0:00:10)!\n")
    scene.paths.stacks(1, 2).touch()
    stall = scene.pass_s(100)
    assert stall is not None and stall.rank == 2


def test_the_one_in_another_phase_than_most_is_named(scene: Scene) -> None:
    scene.beat(0, 2, phase="save")
    scene.beat(1, phase="step")
    stall = scene.pass_s(100)
    assert stall is not None and stall.rank == 1


def test_of_equals_the_one_silent_longest_is_named(scene: Scene) -> None:
    scene.beat(0, 1, 2)
    scene.pass_s(3, 0, 1)
    scene.watch.stalled()
    # Looking only once after all of them are over their limits, as a watcher on a busy machine would.
    scene.pass_s(8)
    for _ in range(3):
        scene.now += 4
        stall = scene.watch.stalled()
    assert stall is not None and stall.rank == 2


def test_time_in_which_the_watch_itself_was_stopped_does_not_count(scene: Scene) -> None:
    scene.beat(0, 1, 2)
    scene.pass_s(2, 0, 1, 2)
    scene.now += 3600  # the whole job was suspended
    assert scene.watch.stalled() is None
    assert scene.pass_s(4, 0, 1, 2) is None
    assert scene.pass_s(100, 0, 1) is not None


@pytest.mark.parametrize("content", [b"", b'{"rank":1,"ho', b"\0" * 512])
def test_half_written_and_vanished_files_are_no_error(scene: Scene, content: bytes) -> None:
    scene.beat(0, 1, 2)
    assert scene.watch.stalled() is None
    scene.paths.heartbeat(1, 1).write_bytes(content)
    scene.paths.heartbeat(1, 2).unlink()
    assert scene.pass_s(LIMIT_S - 1, 0) is None
    assert scene.pass_s(100, 0) is not None


def test_a_removed_run_directory_is_no_error(scene: Scene, tmp_path: Path) -> None:
    scene.beat(0, 1, 2)
    scene.paths.attempts.rename(tmp_path / "elsewhere")
    assert scene.pass_s(LIMIT_S) is None


def test_a_watch_without_a_readable_configuration_works(tmp_path: Path) -> None:
    scene = Scene(tmp_path, 1)
    scene.beat(0)
    assert scene.pass_s(LIMIT_S) is None
    assert scene.pass_s(3) is not None
