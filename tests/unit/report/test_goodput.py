from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.paths import RunPaths
from launcher.plan.cost import CostEstimate
from launcher.report.cost import make_bill
from launcher.report.goodput import PARTS, AttemptSpan, Goodput, goodput, run_goodput
from launcher.runs.attempts import AttemptRecord, write_attempt
from launcher.runs.events import Event
from launcher.runs.jsonl import AppendLog, utc_text
from launcher.runs.metrics import EvalRecord, MetricsWriter, Record, StepRecord, read_every_record
from tests.unit.report.made_runs import eval_record, step_record

START = datetime(2026, 3, 2, 9, 30, tzinfo=UTC)


def at(seconds: float) -> str:
    return utc_text(START + timedelta(seconds=seconds))


def event(name: str, moment_s: float, attempt: int = 1, **fields: object) -> Event:
    return Event(time=at(moment_s), event=name, attempt=attempt, rank=0, fields=fields)


def step(number: int, moment_s: float, attempt: int = 1, took_s: float = 2.0) -> StepRecord:
    return replace(step_record(number, 1.0, attempt=attempt), step_time_s=took_s, time=at(moment_s))


def evaluation(number: int, moment_s: float, took_s: float = 3.0) -> EvalRecord:
    return replace(eval_record(number, 1.0), eval_time_s=took_s, time=at(moment_s))


def span(start_s: float, end_s: float, attempt: int = 1, **more: object) -> AttemptSpan:
    return AttemptSpan(attempt=attempt, devices=4, started=at(start_s), ended=at(end_s), **more)  # type: ignore[arg-type]


def seconds(account: Goodput) -> dict[str, float]:
    """Seconds of the clock by part, those without any left out; all attempts have four devices."""
    return {part: spent / 4000 for part, spent in account.parts_ms.items() if spent}


WHOLE = [
    event("attempt_start", 10),
    event("loaded", 30, import_s=5.0, meet_s=5.0, load_s=20.0),
    event("checkpoint", 32, step=0, seconds=1.5),
    event("rehearsal", 40, seconds=10.0),
    event("checkpoint", 51, step=4, seconds=2.0),
]
STEPS: list[Record] = [step(number, 40 + 2 * number) for number in (1, 2, 3, 4)]


def test_each_part_of_a_run_is_told_apart() -> None:
    account = goodput(WHOLE, [*STEPS, evaluation(4, 54)], [span(0, 56)])
    assert seconds(account) == {
        "start": 10,
        "load": 20,
        "rehearse": 10,
        "useful": 8,
        "save": 2,
        "evaluate": 3,
        "other": 3,
    }
    assert account.useful_share == pytest.approx(8 / 56)
    assert account.device_hours == pytest.approx(4 * 56 / 3600)


def test_waiting_for_data_is_no_useful_work() -> None:
    slow = [replace(record, data_time_s=0.5) for record in STEPS if isinstance(record, StepRecord)]
    account = goodput(WHOLE, list(slow), [span(0, 56)])
    assert (seconds(account)["data"], seconds(account)["useful"]) == (2, 6)


def test_steps_that_were_made_again_are_redone_and_not_useful() -> None:
    again = [event("attempt_start", 110, 2), event("resume", 120, 2, step=2)]
    records = [*STEPS, *(step(number, 116 + 2 * number, 2) for number in (3, 4, 5))]
    account = goodput([*WHOLE, *again], records, [span(0, 56), span(100, 130, 2)])
    assert seconds(account)["redone"] == 4
    assert seconds(account)["useful"] == 4 + 6


def test_what_a_failed_attempt_held_after_its_last_work_is_lost() -> None:
    failed = goodput(WHOLE, STEPS, [span(0, 351, is_failed=True)])
    assert seconds(failed)["lost"] == 300
    assert "lost" not in seconds(goodput(WHOLE, STEPS, [span(0, 351)]))


def test_an_attempt_whose_ranks_never_met_is_all_lost() -> None:
    assert seconds(goodput([], [], [span(0, 300, is_failed=True)])) == {"lost": 300}


def test_waiting_in_the_queue_is_no_allocated_time() -> None:
    account = goodput(WHOLE, STEPS, [span(0, 56, queued=at(-600))])
    assert account.queue_ms == 600_000
    assert account.allocated_ms == 4 * 56_000


def test_without_the_newer_events_loading_ends_where_the_rehearsal_or_the_first_step_began() -> None:
    old = [one for one in WHOLE if one.event != "loaded"]
    assert seconds(goodput(old, STEPS, [span(0, 56)]))["load"] == 20
    bare = goodput([event("attempt_start", 10)], STEPS, [span(0, 56)])
    assert seconds(bare)["load"] == 30


def test_a_run_that_has_not_begun_has_no_goodput() -> None:
    account = goodput([], [], [])
    assert account.useful_share is None
    assert account.as_dict()["goodput"] is None


times = st.floats(0, 1e5, allow_nan=False)


@given(
    spans=st.lists(st.tuples(times, times, st.booleans(), st.integers(1, 64)), max_size=4),
    steps=st.lists(st.tuples(st.integers(1, 4), st.integers(0, 30), times, st.floats(0, 1e4)), max_size=30),
    happened=st.lists(
        st.tuples(
            st.sampled_from(["attempt_start", "loaded", "resume", "rehearsal", "checkpoint"]),
            st.integers(1, 4),
            times,
            st.floats(0, 1e4) | st.none() | st.just("x"),
        ),
        max_size=20,
    ),
)
def test_the_parts_add_up_to_the_allocated_time_exactly(
    spans: list[tuple[float, float, bool, int]],
    steps: list[tuple[int, int, float, float]],
    happened: list[tuple[str, int, float, object]],
) -> None:
    made = [
        AttemptSpan(attempt=number, devices=devices, started=at(start), ended=at(end), is_failed=failed)
        for number, (start, end, failed, devices) in enumerate(spans, start=1)
    ]
    records: list[Record] = [step(number, moment, attempt, took) for attempt, number, moment, took in steps]
    events = [event(name, moment, attempt, seconds=took, step=3) for name, attempt, moment, took in happened]
    account = goodput(events, records, made)
    assert sum(account.parts_ms.values()) == account.allocated_ms
    assert set(account.parts_ms) == set(PARTS) and min(account.parts_ms.values()) >= 0


def write_run(root: Path) -> RunPaths:
    paths = RunPaths(root)
    paths.attempt(1).mkdir(parents=True)
    log = AppendLog(paths.events)
    for one in WHOLE:
        log.append({"time": one.time, "event": one.event, "attempt": 1, "rank": 0, "world_size": 4, **one.fields})
    log.close()
    writer = MetricsWriter(paths.metrics)
    for record in STEPS:
        writer.write(record)
    writer.close()
    return paths


def test_a_run_is_read_from_its_ledger(tmp_path: Path) -> None:
    paths = write_run(tmp_path)
    record = AttemptRecord(
        attempt=1, starter="slurm", host="n1", world_size=4, started=at(0), ended=at(356), exit_code=1, queued=at(-60)
    )
    write_attempt(tmp_path, record)
    account = run_goodput(tmp_path)
    assert (account.allocated_ms, account.queue_ms, len(account.spans)) == (4 * 356_000, 60_000, 1)
    assert seconds(account)["lost"] == 305
    assert len(read_every_record(paths.metrics)) == 4


def test_a_run_without_a_ledger_is_read_from_its_events(tmp_path: Path) -> None:
    write_run(tmp_path)
    account = run_goodput(tmp_path)
    assert account.allocated_ms == 4 * 41_000
    assert seconds(account)["useful"] == 8


def test_the_bill_stands_beside_the_estimate() -> None:
    planned = CostEstimate(1000, 500.0, "measured", hours=5.0, device_hours=20.0, cost=50.0)
    found = make_bill(16.0, price_per_device_hour=2.5, planned=planned)
    assert (found.cost, found.more_device_hours, found.more_cost) == (40.0, -4.0, -10.0)
    unpriced = make_bill(16.0, price_per_device_hour=None, planned=None)
    assert (unpriced.cost, unpriced.more_device_hours, unpriced.more_cost) == (None, None, None)
