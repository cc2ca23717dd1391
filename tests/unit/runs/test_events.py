from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from launcher.runs.events import EventWriter, read_events, valid_events


def test_an_event_carries_time_attempt_rank_and_its_fields(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    EventWriter(path, attempt=2, rank=3).write("checkpoint", step=200, seconds=1.5)
    (event,) = read_events(path)
    assert (event.event, event.attempt, event.rank, event.fields) == ("checkpoint", 2, 3, {"step": 200, "seconds": 1.5})
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", event.time)


def test_a_field_cannot_overwrite_whose_event_it_is(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    EventWriter(path, attempt=1, rank=0).write("signal", rank=7, name="SIGTERM")
    (event,) = read_events(path)
    assert (event.rank, event.fields) == (0, {"name": "SIGTERM"})


def test_values_json_cannot_hold_are_written_as_text(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    EventWriter(path, attempt=1, rank=0).write("state", where=Path("/a"), loss=float("nan"), ids=(1, 2))
    assert read_events(path)[0].fields == {"where": "/a", "loss": "NaN", "ids": [1, 2]}


def test_many_writers_do_not_mix_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"

    def append(rank: int) -> None:
        writer = EventWriter(path, attempt=1, rank=rank)
        for _ in range(50):
            writer.write("warning", message=f"rank {rank} " * 200)
        writer.close()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(append, range(8)))
    events = read_events(path)
    assert sorted(event.rank for event in events) == sorted(list(range(8)) * 50)


def test_hostile_text_stays_on_its_line(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    text = "a\nb\u2028c\x00 \ud800 \U0001f600"
    EventWriter(path, attempt=1, rank=0).write("warning", message=text)
    EventWriter(path, attempt=1, rank=0).write("state", state="failed")
    assert [event.event for event in read_events(path)] == ["warning", "state"]


def test_no_file_has_no_events(tmp_path: Path) -> None:
    assert read_events(tmp_path / "events.jsonl") == []


def test_what_an_old_attempt_says_beside_a_newer_one_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    for attempt, state in [
        (0, "queued"),
        (1, "running"),
        (2, "running"),
        (1, "failed"),
        (2, "succeeded"),
        (1, "failed"),
    ]:
        EventWriter(path, attempt=attempt, rank=0).write("state", state=state)
    counted = [(event.attempt, event.fields["state"]) for event in valid_events(read_events(path), "state")]
    assert counted == [(0, "queued"), (1, "running"), (2, "running"), (2, "succeeded")]
    EventWriter(path, attempt=0, rank=-1).write("state", state="queued")
    assert valid_events(read_events(path), "state")[-1].fields["state"] == "queued"
