"""Readers: every file type gives the same records with their lines, and says exactly what is broken and where."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from launcher.data import json_values, readers
from launcher.data.readers import first_records, parse, read_chunks
from launcher.data.sources import Source
from launcher.errors import DataError, ExampleError

RECORDS: list[dict[str, object]] = [
    {"text_input": "one, two", "output": 'say "hi"'},
    {"text_input": "line\nbreak", "output": "\u00e9t\u00e9 \U0001f600"},
    {"text_input": "1", "output": "2"},
]


def read(path: Path) -> list[tuple[int, Mapping[str, object] | str]]:
    """(line, record or audit code) of each record."""
    found: list[tuple[int, Mapping[str, object] | str]] = []
    for chunk in read_chunks(Source(path.name, path), 0):
        for line, payload in zip(chunk.lines, chunk.payloads, strict=True):
            try:
                found.append((line, parse(payload)))
            except ExampleError as error:
                found.append((line, error.code))
    return found


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def lines_of(records: list[dict[str, object]], ending: str = "\n") -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + ending for record in records)


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_json_lines_with_any_line_ending_and_byte_order_mark(ending: str, mark: bytes, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", mark + lines_of(RECORDS, ending).encode())
    assert read(path) == [(1, RECORDS[0]), (2, RECORDS[1]), (3, RECORDS[2])]


def test_a_json_array_gives_the_line_each_record_begins_on(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", json.dumps(RECORDS, indent=2))
    assert read(path) == [(2, RECORDS[0]), (6, RECORDS[1]), (10, RECORDS[2])]


def test_a_json_array_is_read_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_values, "READ_CHARS", 7)
    path = write(tmp_path / "a.json", "\ufeff  " + json.dumps(RECORDS * 20, indent=1, ensure_ascii=False))
    assert [record for _, record in read(path)] == RECORDS * 20


@pytest.mark.parametrize("text", ["[]", " [ ]\n"])
def test_an_empty_array_has_no_records(text: str, tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.json", text)) == []


def test_a_json_object_that_holds_the_records(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", json.dumps({"version": 1, "data": RECORDS}, indent=1))
    assert [record for _, record in read(path)] == RECORDS


def test_a_json_file_with_one_record(tmp_path: Path) -> None:
    record = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    assert read(write(tmp_path / "a.json", json.dumps(record, indent=1))) == [(1, record)]


def test_json_lines_under_the_name_json(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.json", lines_of(RECORDS))) == [(1, RECORDS[0]), (2, RECORDS[1]), (3, RECORDS[2])]


@pytest.mark.parametrize(("suffix", "separator"), [(".csv", ","), (".csv", ";"), (".tsv", "\t")])
def test_tables_with_quotes_and_line_breaks(suffix: str, separator: str, tmp_path: Path) -> None:
    import csv

    path = tmp_path / f"a{suffix}"
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, ["text_input", "output"], delimiter=separator)
        writer.writeheader()
        writer.writerows(RECORDS)
    # The second record takes two lines.
    assert read(path) == [(2, RECORDS[0]), (3, RECORDS[1]), (5, RECORDS[2])]


def test_parquet_rows_without_the_fields_a_row_lacks(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a", "weight": None}, {"role": "assistant", "content": "b", "weight": 1}]
    pq.write_table(pa.Table.from_pylist([{"messages": turns, "note": None}]), tmp_path / "a.parquet")
    expected = {"messages": [{"role": "user", "content": "a"}, turns[1]]}
    assert read(tmp_path / "a.parquet") == [(1, expected)]


def test_records_in_memory_are_numbered() -> None:
    chunk = next(read_chunks(Source("data.inline", records=RECORDS), 4))
    assert (chunk.source, chunk.lines, chunk.payloads) == (4, [1, 2, 3], RECORDS)


def test_every_broken_line_is_reported_and_the_others_are_read(tmp_path: Path) -> None:
    content = b"\n".join(
        [
            b'{"text": "fine"}',
            b'{"text": "cut',
            b"",
            b'{"text": "a", "text": "b"}',
            b'{"text": NaN}',
            b'["text"]',
            b'{"text": "\xff"}',
            b'{"text": "fine too"} trailing',
            b"[" * 100_000,
            b'{"text": "last"}',
        ]
    )
    assert read(write(tmp_path / "a.jsonl", content)) == [
        (1, {"text": "fine"}),
        (2, "broken_json"),
        (3, "empty_line"),
        (4, "duplicate_key"),
        (5, "nan_value"),
        (6, "not_an_object"),
        (7, "not_utf8"),
        (8, "broken_json"),
        (9, "broken_json"),
        (10, {"text": "last"}),
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[{"text": "a"},\n {"text": "b"\n', [(1, {"text": "a"}), (3, "broken_json")]),
        ('[{"text": "a"}\n {"text": "b"}]', [(1, {"text": "a"}), (2, "broken_json")]),
        ('[{"text": "a"},\n ]', [(1, {"text": "a"}), (2, "broken_json")]),
        ('[{"text": "a"}', [(1, {"text": "a"}), (1, "broken_json")]),
        ('[{"x": {"a": 1, "a": 2}, "y": 3},\n{"text": "b"}]', [(1, "duplicate_key"), (2, {"text": "b"})]),
        ('[{"text": NaN},\n{"text": "b"}]', [(1, "nan_value"), (2, {"text": "b"})]),
        ('[1,\n{"text": "b"}]', [(1, "not_an_object"), (2, {"text": "b"})]),
        ('{"text": "a"', [(1, "broken_json")]),
        ('[{"text": "a"}]\n[{"text": "b"}]', [(1, {"text": "a"}), (2, "broken_json")]),
        ('[]\n{"text": "b"}', [(2, "broken_json")]),
        ("", [(1, "broken_json")]),
    ],
)
def test_broken_json_files_say_the_line(
    text: str, expected: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.json", text)
    assert read(path) == expected
    monkeypatch.setattr(json_values, "READ_CHARS", 3)
    assert text == "" or not text.startswith("[") or read(path) == expected


def finding(path: Path) -> tuple[int, str]:
    """Line and words of the one record that cannot be read."""
    found: list[tuple[int, str]] = []
    for chunk in read_chunks(Source(path.name, path), 0):
        for line, payload in zip(chunk.lines, chunk.payloads, strict=True):
            if isinstance(payload, ExampleError):
                found.append((line, payload.why))
    assert len(found) == 1
    return found[0]


def broken_array(num_records: int, broken: int, fault: str, indent: str = "") -> str:
    """An array of a record a line between two brackets, the given one (from 0) at fault."""
    lines = [f'{indent}{{"text_input": "input {i}", "output": "output {i}"}},' for i in range(num_records)]
    lines[broken] = indent + fault
    return "[\n" + "\n".join(lines)[:-1] + "\n]\n"


@pytest.mark.parametrize("read_chars", [1 << 20, 700, 7])
@pytest.mark.parametrize(
    ("text", "line"),
    [
        (broken_array(100, 50, '{"text_input": "input 50" "output": "x"},'), 52),
        (broken_array(100, 50, '{"text_input": "input 50", "output": x},', indent="    "), 52),
        (broken_array(3, 1, '{"text_input": "a", "output": },'), 3),
        (json.dumps([{"text": "a"}, {"text": "b"}], indent=2).replace('"b"', "b"), 6),
        ('[{"text": "a"}, {"text": "b"}, {"text": c}]', 1),
    ],
)
def test_the_line_of_broken_json_in_an_array_is_the_one_json_names(
    text: str, line: int, read_chars: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_values, "READ_CHARS", read_chars)
    with pytest.raises(json.JSONDecodeError) as caught:
        json.loads(text)
    assert caught.value.lineno == line
    seen, why = finding(write(tmp_path / "a.json", text))
    assert (seen, why) == (line, f"{caught.value.msg} at column {caught.value.colno}")


def test_rows_that_do_not_fit_the_header_are_reported(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text_input,output\na,b\nc\nd,e,f\n\ng,h\n")
    rows = read(path)
    assert [line for line, _ in rows] == [2, 3, 4, 6]
    assert [row for _, row in rows][1:3] == ["broken_row", "broken_row"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_utf16_is_named_instead_of_misread(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, "\ufeff{}\n".encode("utf-16-le"))
    assert [code for _, code in read(path)] == ["not_utf8"]


def test_a_table_row_that_is_not_utf8_is_named_by_its_line_and_the_others_are_read(tmp_path: Path) -> None:
    rows = [f"input {i},output {i}".encode() for i in range(3000)]
    rows[40] = b"caf\xe9,output 40"
    rows[50] = b'input 50,"two\r\nlin\xe9s"'
    path = write(tmp_path / "a.csv", b"\n".join([b"text_input,output", *rows]))
    found = read(path)
    assert [item for item in found if isinstance(item[1], str)] == [(42, "not_utf8"), (53, "not_utf8")]
    assert len(found) == 3000 and found[-1] == (3002, {"text_input": "input 2999", "output": "output 2999"})


@pytest.mark.parametrize("opening", [b"[", b"{"])
def test_json_that_is_not_utf8_is_named_by_its_line(opening: bytes, tmp_path: Path) -> None:
    record = b'{"text": "caf\xe9"}\n'
    path = write(tmp_path / "a.json", b"[\n" + record + b"]" if opening == b"[" else b'{"data":\n[' + record + b"]}")
    assert finding(path) == (2, "byte 0xe9: invalid continuation byte")


def test_a_file_that_is_no_parquet_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", "no")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        read(path)


def test_chunks_are_bounded_and_sized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "CHUNK_RECORDS", 2)
    path = write(tmp_path / "a.jsonl", lines_of(RECORDS))
    chunks = list(read_chunks(Source("a", path), 0))
    assert [len(chunk.lines) for chunk in chunks] == [2, 1]
    assert sum(chunk.size_bytes for chunk in chunks) == path.stat().st_size


def test_first_records_skip_what_cannot_be_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", "broken\n" + lines_of(RECORDS))
    assert first_records(Source("a", path), 2) == RECORDS[:2]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.one_of(st.binary(max_size=60), st.text('[]{}",:\\ \n01aNul\ufeff', max_size=40).map(str.encode)))
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv"])
def test_no_content_makes_a_reader_fail(name: str, content: bytes, tmp_path: Path) -> None:
    for line, record in read(write(tmp_path / name, content)):
        assert line >= 1 and isinstance(record, dict | str)


@pytest.mark.parametrize("first", ['{"text": "a"', '{"text": "a", "text": "b"}'])
def test_json_lines_in_a_json_file_are_read_also_when_the_first_is_bad(first: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", first + '\n{"text": "b"}\n{"text": "c"}\n')
    assert [record for _, record in read(path)][1:] == [{"text": "b"}, {"text": "c"}]
