"""Reading data without a tokenizer: findings and counts as in preparing, and a statement of what was not read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from launcher.config.compose import compose_config
from launcher.config.model_files import find_model
from launcher.config.schema import RunConfig
from launcher.data.prepare import PreparedInfo, prepare
from launcher.data.readers import read_chunks
from launcher.data.sources import find_sources
from launcher.plan import estimate_data as module
from launcher.plan.estimate_data import DataEstimate, estimate_data

NUM_LARGE = 5000


def config_of(*overrides: str) -> RunConfig:
    return compose_config(["data.packing=false", "data.seq_len_tokens=256", *overrides])


def estimated(*overrides: str) -> DataEstimate:
    data = config_of(*overrides).data
    return estimate_data(data, find_sources(data))


def prepared(model: Path, *overrides: str) -> PreparedInfo:
    config = config_of(f"model.name_or_path={model}", *overrides)
    return prepare(config, find_model(config.model, weights=False), allow_blocked=True)


def codes(found: DataEstimate | PreparedInfo) -> dict[str, int]:
    return {finding.code: finding.count for finding in found.audit.findings}


GOOD = [{"prompt": f"number {n}", "completion": str(n)} for n in range(40)]
ODD = [
    {"prompt": "number 1", "completion": "1"},
    {"prompt": "number 2", "completion": "another"},
    {"prompt": "x", "completion": ""},
    {"prompt": "x", "complet": "y"},
    {"messages": []},
]


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["data.validation_fraction=0.25"],
        ["data.max_output_chars=3"],
        ["data.allow=[empty_output,wrong_fields]"],
    ],
)
def test_findings_and_counts_are_those_of_preparing(tmp_path: Path, tiny_model: Path, overrides: list[str]) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, [*GOOD, *ODD])) + "\n\nnot json\n")
    seen, made = estimated(f"data.path={path}", *overrides), prepared(tiny_model, f"data.path={path}", *overrides)
    assert codes(seen) == codes(made)
    assert [finding.blocks for finding in seen.audit.findings] == [finding.blocks for finding in made.audit.findings]
    assert seen.facts.examples == made.train.num_examples
    assert seen.facts.validation_examples == (made.validation.num_examples if made.validation else 0)
    assert seen.facts.is_counted and seen.unread == ""


def test_weights_of_a_mixture_count_as_in_preparing(tmp_path: Path, tiny_model: Path) -> None:
    for name in ("a", "b"):
        records = [{"prompt": f"{name} {n}", "completion": str(n)} for n in range(30)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, records)))
    mixture = f"data.mixture=[{{path: {tmp_path}/a.jsonl, weight: 0.5}}, {{path: {tmp_path}/b.jsonl, weight: 2}}]"
    assert estimated(mixture).facts.examples == prepared(tiny_model, mixture).train.num_examples == 75


def test_plain_text_is_read_too(tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"{n} " + "word " * 40}) for n in range(25)))
    facts = estimated(f"data.path={path}").facts
    assert facts.examples == 25 and facts.supervised_tokens == facts.tokens > 25 * 40


def test_a_file_without_a_usable_example_is_refused_not_a_crash(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text("{\n" * 5)
    seen = estimated(f"data.path={path}")
    assert codes(seen) == {"broken_json": 5, "no_examples": 1} and seen.facts.examples == 0


def as_jsonl(path: Path, records: list[dict[str, str]]) -> None:
    path.write_text("\n\n".join(map(json.dumps, records)) + "\n")


def as_parquet(path: Path, records: list[dict[str, str]]) -> None:
    pq.write_table(pa.Table.from_pylist(records), path, row_group_size=500)


def as_csv(path: Path, records: list[dict[str, str]]) -> None:
    path.write_text("\n".join(["prompt,completion", *(f"{r['prompt']},{r['completion']}" for r in records)]) + "\n")


@pytest.mark.parametrize(
    ("suffix", "write", "is_counted"),
    [("jsonl", as_jsonl, True), ("parquet", as_parquet, True), ("csv", as_csv, False)],
)
def test_of_a_large_file_the_beginning_is_read_and_all_of_it_counted_where_that_is_quick(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    suffix: str,
    write: Callable[[Path, list[dict[str, str]]], None],
    is_counted: bool,
) -> None:
    path = tmp_path / f"large.{suffix}"
    write(path, [{"prompt": f"number {n:05d}", "completion": f"{n:05d}"} for n in range(NUM_LARGE)])
    monkeypatch.setattr(module, "READ_BYTES", path.stat().st_size // 2)
    seen = estimated(f"data.path={path}")
    assert seen.facts.is_counted is is_counted
    assert seen.facts.examples == NUM_LARGE if is_counted else abs(seen.facts.examples - NUM_LARGE) < NUM_LARGE / 5
    assert seen.unread.startswith("only the first ")


def test_few_examples_are_judged_by_the_count_of_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for count, found in ((200, 0), (80, 1)):
        path = tmp_path / f"{count}.jsonl"
        as_jsonl(path, [{"prompt": f"number {n} " + "x" * 100_000, "completion": str(n)} for n in range(count)])
        monkeypatch.setattr(module, "READ_BYTES", path.stat().st_size // 3)
        seen = estimated(f"data.path={path}")
        assert seen.unread and seen.facts.is_counted and seen.facts.examples == count
        assert codes(seen).get("too_few_examples", 0) == found
        if found:
            assert any("80 examples" in place.detail for one in seen.audit.findings for place in one.places)


def test_the_same_data_is_read_once_and_again_when_it_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"
    as_jsonl(path, [{"prompt": f"number {n}", "completion": str(n)} for n in range(30)])
    reads = []
    monkeypatch.setattr(module, "read_chunks", lambda *args: reads.append(args) or read_chunks(*args))
    first = estimated(f"data.path={path}")
    assert estimated(f"data.path={path}", "optim.lr=1e-3") is first and len(reads) == 1
    estimated(f"data.path={path}", "data.max_output_chars=3")
    assert len(reads) == 2
    path.write_text(path.read_text() + json.dumps({"prompt": "one more", "completion": "y"}) + "\n")
    assert estimated(f"data.path={path}").facts.examples == 31 and len(reads) == 3


def test_of_many_short_examples_no_more_than_so_many_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "short.jsonl"
    as_jsonl(path, [{"prompt": str(n), "completion": str(n)} for n in range(NUM_LARGE)])
    monkeypatch.setattr(module, "READ_BYTES", path.stat().st_size - 1)
    monkeypatch.setattr(module, "READ_RECORDS", 1500)
    seen = estimated(f"data.path={path}")
    assert seen.unread.startswith("only the first 1,500 examples") and seen.facts.examples == NUM_LARGE


def test_every_file_of_large_data_is_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abc":
        as_jsonl(tmp_path / f"{name}.jsonl", [{"prompt": f"{name}{n}", "completion": str(n)} for n in range(NUM_LARGE)])
    last = tmp_path / "c.jsonl"
    last.write_text("{\n" + last.read_text())
    monkeypatch.setattr(module, "READ_BYTES", last.stat().st_size)
    seen = estimated(f"data.path={tmp_path}")
    assert codes(seen)["broken_json"] == 1
    assert seen.facts.examples == pytest.approx(3 * NUM_LARGE, rel=0.01)


def test_each_part_of_a_mixture_grows_by_its_own_measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small part that was read whole is not scaled up with a large one of which the beginning was read."""
    small, large = tmp_path / "small.jsonl", tmp_path / "large.jsonl"
    as_jsonl(small, [{"prompt": f"s{n}", "completion": str(n)} for n in range(100)])
    as_jsonl(large, [{"prompt": f"l{n}", "completion": str(n)} for n in range(NUM_LARGE)])
    monkeypatch.setattr(module, "READ_BYTES", large.stat().st_size // 3)
    seen = estimated(f"data.mixture=[{{path: {small}, weight: 20}}, {{path: {large}, weight: 0.1}}]")
    assert seen.unread and not seen.facts.is_counted
    assert seen.facts.examples == pytest.approx(100 * 20 + NUM_LARGE * 0.1, rel=0.02)


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv"])
def test_text_of_several_bytes_a_letter_is_counted_in_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    path = tmp_path / f"zh.{suffix}"
    records = [{"prompt": f"\u6570\u5b57\u4e4b\u540e {n:05d}", "completion": "\u597d" * 40} for n in range(NUM_LARGE)]
    if suffix == "json":
        path.write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
    elif suffix == "csv":
        rows = ["prompt,completion", *(f"{one['prompt']},{one['completion']}" for one in records)]
        path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in records), encoding="utf-8")
    monkeypatch.setattr(module, "READ_BYTES", path.stat().st_size // 3)
    assert estimated(f"data.path={path}").facts.examples == pytest.approx(NUM_LARGE, rel=0.15)


def test_a_file_without_examples_that_is_allowed_adds_none(tmp_path: Path) -> None:
    as_jsonl(tmp_path / "a.jsonl", [{"prompt": f"number {n}", "completion": str(n)} for n in range(150)])
    as_jsonl(tmp_path / "meta.jsonl", [{"something": f"else {n}"} for n in range(1000)])
    seen = estimated(f"data.path={tmp_path}", "data.allow=[unknown_format]")
    assert (seen.facts.examples, seen.facts.is_counted, seen.unread) == (150, True, "")


def test_of_many_files_no_more_is_read_than_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for shard in range(50):
        as_jsonl(tmp_path / f"{shard:02d}.jsonl", [{"prompt": f"{shard} {n}", "completion": "x"} for n in range(200)])
    monkeypatch.setattr(module, "READ_BYTES", sum(path.stat().st_size for path in tmp_path.iterdir()) // 10)
    seen = estimated(f"data.path={tmp_path}")
    assert seen.unread.startswith("only the first 1,") and seen.facts.is_counted
    assert seen.facts.examples == pytest.approx(50 * 200, rel=0.01)
