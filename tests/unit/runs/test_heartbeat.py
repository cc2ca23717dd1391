"""Heartbeats: whole at every moment, seldom enough to cost nothing, at once when a rank turns to something else."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path

import pytest

from launcher.files import find_record
from launcher.runs.heartbeat import Beat, Heart


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "beat-0001.json"


@pytest.fixture
def heart(path: Path, clock: Clock) -> Heart:
    return Heart(path, rank=1, host="n2", clock=clock)


def read(path: Path) -> Beat:
    beat = find_record(Beat, path)
    assert beat is not None
    return beat


def test_a_beat_says_who_does_what(heart: Heart, path: Path) -> None:
    heart.beat("step", step=7, limit_s=300.0)
    beat = read(path)
    assert (beat.rank, beat.host, beat.phase, beat.step, beat.beat, beat.limit_s) == (1, "n2", "step", 7, 1, 300.0)
    assert beat.time.endswith("Z") and beat.pid > 0


def test_beats_within_a_phase_are_written_once_a_second(heart: Heart, path: Path, clock: Clock) -> None:
    written = []
    for _ in range(24):
        written.append(heart.beat("step", step=0, limit_s=1.0))
        clock.now += 0.125
    assert sum(written) == 3
    assert read(path).beat == 17  # those in between count, too


def test_a_change_of_phase_is_written_at_once(heart: Heart, path: Path) -> None:
    heart.beat("step", step=0, limit_s=1.0)
    assert heart.beat("save", step=0, limit_s=2.0)
    assert (read(path).phase, read(path).limit_s) == ("save", 2.0)


def test_a_limit_that_shrinks_is_written_at_once(heart: Heart, path: Path) -> None:
    """Whoever hangs within a second after the first step is not given the time that step was allowed."""
    heart.beat("step", step=0, limit_s=1800.0)
    assert not heart.beat("step", step=1, limit_s=1700.0)
    assert heart.beat("step", step=1, limit_s=4.0)
    assert read(path).limit_s == 4.0


def test_the_file_keeps_its_length_and_its_place(heart: Heart, path: Path) -> None:
    heart.beat("evaluate", step=123456, limit_s=1800.0)
    size, inode = path.stat().st_size, path.stat().st_ino
    heart.beat("step", step=0, limit_s=1.0)
    assert (path.stat().st_size, path.stat().st_ino) == (size, inode)
    assert path.read_bytes().count(b"\n") == 1


def test_a_reader_never_sees_a_mixture(path: Path) -> None:
    heart = Heart(path, rank=1, host="n" * 200)
    long, short = ("evaluate", 999_999_999), ("save", 1)
    heart.beat(long[0], step=long[1], limit_s=1.0)
    done = threading.Event()

    def write() -> None:
        for _ in range(3000):
            for phase, step in (short, long):
                heart.beat(phase, step=step, limit_s=1.0)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = set()
    while not done.is_set():
        beat = read(path)
        seen.add((beat.phase, beat.step))
    writer.join()
    assert seen <= {long, short}


@pytest.mark.parametrize("line", [b"", b"{", b'{"rank": 1}', b"[]", b"null", b"\0" * 512, b'{"rank": "x"}'])
def test_what_is_no_beat_is_none(path: Path, line: bytes) -> None:
    path.write_bytes(line)
    assert find_record(Beat, path) is None


def test_a_missing_file_is_none(path: Path) -> None:
    assert find_record(Beat, path) is None


def test_a_file_that_cannot_be_written_stops_nobody_and_is_tried_again(tmp_path: Path, clock: Clock) -> None:
    folder = tmp_path / "attempt"
    heart = Heart(folder / "beat-0000.json", rank=0, host="n1", clock=clock)
    heart.beat("step", step=1, limit_s=1.0)
    folder.mkdir()
    heart.beat("step", step=2, limit_s=1.0)
    assert read(folder / "beat-0000.json").step == 2


def test_a_very_long_host_name_fits(path: Path) -> None:
    Heart(path, rank=1, host="h" * 4000).beat("step", step=1, limit_s=1.0)
    assert path.stat().st_size == 512
    assert dataclasses.asdict(read(path))["host"] == "h" * 200
