from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.runs.metrics import MetricsWriter, read_metrics
from tests.unit.report.made_runs import eval_record, step_record


def write(path: Path, *records: object) -> None:
    writer = MetricsWriter(path)
    for record in records:
        writer.write(record)  # type: ignore[arg-type]
    writer.close()


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, step_record(1, 2.5), eval_record(1, 2.25))
    metrics = read_metrics(path)
    assert metrics.steps == [step_record(1, 2.5)]
    assert metrics.evals == [eval_record(1, 2.25)]


@given(loss=st.floats())
def test_any_loss_comes_back_bit_for_bit(tmp_path_factory: pytest.TempPathFactory, loss: float) -> None:
    path = tmp_path_factory.mktemp("run") / "metrics.jsonl"
    write(path, step_record(1, loss))
    (read,) = read_metrics(path).steps
    same_bits = struct.pack("<d", read.loss) == struct.pack("<d", loss)
    assert same_bits or (math.isnan(loss) and math.isnan(read.loss))


def test_every_line_is_strict_json_with_its_kind_first(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, step_record(1, math.nan), eval_record(1, math.inf))

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    lines = [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]
    assert [next(iter(line.items())) for line in lines] == [("kind", "train"), ("kind", "eval")]
    assert [line["loss"] for line in lines] == ["NaN", "Infinity"]


def test_a_line_is_in_the_file_before_the_writer_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    writer = MetricsWriter(path)
    writer.write(step_record(1, 2.0))
    assert len(read_metrics(path).steps) == 1
    writer.close()


def test_a_rewound_attempt_replaces_all_later_steps_of_the_older_one(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, *(step_record(step, 1.0) for step in range(1, 9)), eval_record(5, 1.0), eval_record(8, 1.0))
    write(path, step_record(6, 0.5, attempt=2))
    metrics = read_metrics(path)
    assert [(record.step, record.attempt) for record in metrics.steps] == [(s, 1) for s in range(1, 6)] + [(6, 2)]
    assert [record.step for record in metrics.evals] == [5]


def test_an_attempt_that_begins_with_an_evaluation_keeps_the_step_it_evaluates(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, *(step_record(step, 1.0) for step in range(1, 8)), eval_record(3, 1.0))
    write(path, eval_record(6, 0.5, attempt=2), step_record(7, 0.5, attempt=2))
    metrics = read_metrics(path)
    assert [(record.step, record.attempt) for record in metrics.steps] == [(s, 1) for s in range(1, 7)] + [(7, 2)]
    assert [(record.step, record.attempt) for record in metrics.evals] == [(3, 1), (6, 2)]


def test_lines_of_a_fenced_older_attempt_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, step_record(1, 1.0), step_record(2, 0.5, attempt=2), step_record(2, 9.0), step_record(3, 9.0))
    assert [(record.step, record.loss) for record in read_metrics(path).steps] == [(1, 1.0), (2, 0.5)]


def test_a_torn_last_line_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, step_record(1, 1.0), step_record(2, 1.0))
    path.write_bytes(path.read_bytes()[:-20])
    assert [record.step for record in read_metrics(path).steps] == [1]


def test_the_next_attempt_loses_nothing_to_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, step_record(1, 1.0), step_record(2, 1.0))
    path.write_bytes(path.read_bytes()[:-20])
    write(path, step_record(2, 0.9, attempt=2), step_record(3, 0.8, attempt=2))
    assert [record.step for record in read_metrics(path).steps] == [1, 2, 3]


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_a_file_cut_anywhere_gives_a_prefix(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, *(step_record(step, 1.0) for step in range(1, 5)))
    path.write_bytes(path.read_bytes()[: -cut * 10])
    steps = [record.step for record in read_metrics(path).steps]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) < 4


def test_lines_of_other_kinds_and_shapes_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind":"train","step":"one"}\n[1]\nnot json\n{"kind":"new"}\n\n')
    write(path, step_record(1, 1.0))
    assert [record.step for record in read_metrics(path).steps] == [1]


def test_a_missing_file_has_no_metrics(tmp_path: Path) -> None:
    metrics = read_metrics(tmp_path / "metrics.jsonl")
    assert metrics.steps == [] and metrics.evals == []


def test_a_full_disk_is_an_error() -> None:
    writer = MetricsWriter(Path("/dev/full"))
    with pytest.raises(OSError, match="No space left"):
        writer.write(step_record(1, 1.0))
    writer.close()
