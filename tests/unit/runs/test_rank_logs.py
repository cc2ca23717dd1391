"""Logs of ranks and job, merged by the time their lines carry."""

from __future__ import annotations

from pathlib import Path

from launcher.paths import RunPaths
from launcher.runs.attempts import AttemptRecord, write_attempt
from launcher.runs.jsonl import utc_text
from launcher.runs.rank_logs import JOB, find_logs, merge


def make_attempt(run: Path, number: int, *, started: str = "", **logs: str) -> None:
    """`rank_0="text", job="text"`; `started` is local time."""
    from datetime import datetime

    folder = RunPaths(run).attempt(number)
    folder.mkdir(parents=True)
    if started:
        moment = datetime.fromisoformat(started).astimezone()
        record = AttemptRecord(attempt=number, starter="slurm", host="n1", world_size=2, started=utc_text(moment))
        write_attempt(run, record)
    for name, text in logs.items():
        file = "job.log" if name == "job" else f"rank-{int(name.removeprefix('rank_')):04d}.log"
        (folder / file).write_text(text)


def merged(run: Path) -> list[str]:
    return [f"{line.rank}: {line.text}" for line in merge(log.new_lines() for log in find_logs(run))]


def test_lines_of_several_ranks_come_in_the_order_of_their_times(tmp_path: Path) -> None:
    make_attempt(
        tmp_path,
        1,
        started="2026-03-01T10:00:00",
        rank_0="10:00:01 INFO a\n10:00:05 INFO c\n",
        rank_1="10:00:03 WARNING b\n10:00:05 WARNING d\n",
        job="10:00:00 INFO begins\n10:00:09 INFO ends\n",
    )
    assert merged(tmp_path) == [
        f"{JOB}: 10:00:00 INFO begins",
        "0: 10:00:01 INFO a",
        "1: 10:00:03 WARNING b",
        "0: 10:00:05 INFO c",
        "1: 10:00:05 WARNING d",
        f"{JOB}: 10:00:09 INFO ends",
    ]


def test_a_line_without_a_time_stays_behind_the_one_before_it(tmp_path: Path) -> None:
    make_attempt(
        tmp_path,
        1,
        started="2026-03-01T10:00:00",
        rank_0="first\n10:00:08 ERROR a\nTraceback\n  deeper\n",
        rank_1="10:00:04 WARNING b\n10:00:09 WARNING c\n",
    )
    assert merged(tmp_path) == [
        "0: first",
        "1: 10:00:04 WARNING b",
        "0: 10:00:08 ERROR a",
        "0: Traceback",
        "0:   deeper",
        "1: 10:00:09 WARNING c",
    ]


def test_midnight_comes_after_the_evening(tmp_path: Path) -> None:
    make_attempt(
        tmp_path,
        1,
        started="2026-03-01T23:59:50",
        rank_0="23:59:58 INFO a\n00:00:02 INFO c\n",
        rank_1="00:00:01 WARNING b\n",
    )
    assert merged(tmp_path) == ["0: 23:59:58 INFO a", "1: 00:00:01 WARNING b", "0: 00:00:02 INFO c"]


def test_days_pass_while_a_rank_writes(tmp_path: Path) -> None:
    hours = [f"{hour % 24:02d}:00:00 INFO {hour}" for hour in range(8, 80, 8)]
    make_attempt(
        tmp_path, 1, started="2026-03-01T08:00:00", rank_0="\n".join(hours) + "\n", rank_1="09:00:00 WARNING early\n"
    )
    assert merged(tmp_path)[:2] == ["0: 08:00:00 INFO 8", "1: 09:00:00 WARNING early"]
    assert [line.removeprefix("0: ") for line in merged(tmp_path)[2:]] == hours[1:]


def test_what_slurm_says_of_a_signal_comes_at_its_time(tmp_path: Path) -> None:
    cancelled = "slurmstepd-n1: error: *** STEP 2.0 ON n1 CANCELLED AT 2026-03-01T10:00:30 DUE TO PREEMPTION ***"
    make_attempt(
        tmp_path,
        1,
        started="2026-03-01T10:00:00",
        rank_0=f"10:00:01 INFO a\n{cancelled}\n",
        rank_1="10:00:20 WARNING b\n10:00:40 WARNING c\n",
    )
    assert merged(tmp_path) == [
        "0: 10:00:01 INFO a",
        "1: 10:00:20 WARNING b",
        f"0: {cancelled}",
        "1: 10:00:40 WARNING c",
    ]


def test_a_clock_that_is_set_back_does_not_change_the_order_of_a_file(tmp_path: Path) -> None:
    lines = ["10:00:05 INFO a", "10:00:02 INFO b", "10:00:06 INFO c"]
    make_attempt(tmp_path, 1, started="2026-03-01T10:00:00", rank_0="\n".join(lines) + "\n", rank_1="10:00:03 INFO x\n")
    assert merged(tmp_path) == ["1: 10:00:03 INFO x", *(f"0: {line}" for line in lines)]


def test_attempts_never_mix(tmp_path: Path) -> None:
    make_attempt(tmp_path, 1, started="2026-03-01T10:00:00", rank_0="10:00:09 INFO late\n")
    make_attempt(tmp_path, 2, started="2026-03-01T10:00:00", rank_0="10:00:01 INFO early\n")
    assert merged(tmp_path) == ["0: 10:00:09 INFO late", "0: 10:00:01 INFO early"]


def test_digits_that_are_no_time_are_only_text(tmp_path: Path) -> None:
    make_attempt(
        tmp_path, 1, started="2026-03-01T10:00:00", rank_0="99:99:99 x\n10:61:00 y\n", rank_1="10:00:01 INFO z\n"
    )
    assert merged(tmp_path) == ["0: 99:99:99 x", "0: 10:61:00 y", "1: 10:00:01 INFO z"]


def test_without_a_record_of_the_attempt_the_order_is_the_same(tmp_path: Path) -> None:
    make_attempt(tmp_path, 1, rank_0="10:00:01 INFO a\n10:00:05 INFO c\n", rank_1="10:00:03 INFO b\n")
    assert merged(tmp_path) == ["0: 10:00:01 INFO a", "1: 10:00:03 INFO b", "0: 10:00:05 INFO c"]


def test_reading_goes_on_where_it_stopped_and_leaves_half_lines(tmp_path: Path) -> None:
    make_attempt(tmp_path, 1, started="2026-03-01T10:00:00", rank_0="10:00:01 INFO a\nhal")
    (log,) = find_logs(tmp_path)
    assert [line.text for line in log.new_lines()] == ["10:00:01 INFO a"]
    with log.path.open("a") as file:
        file.write("f\n10:00:02 INFO b\n")
    assert [line.text for line in log.new_lines()] == ["half", "10:00:02 INFO b"]
    assert log.new_lines() == []


def test_only_logs_of_ranks_and_job_are_found(tmp_path: Path) -> None:
    make_attempt(tmp_path, 1, rank_0="x\n", rank_11="x\n", job="x\n")
    (RunPaths(tmp_path).attempt(1) / "other.log").write_text("x\n")
    assert [log.rank for log in find_logs(tmp_path)] == [JOB, 0, 11]
    assert [log.rank for log in find_logs(tmp_path, rank=11)] == [11]
