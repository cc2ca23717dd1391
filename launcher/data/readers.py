"""Records out of files, streamed in chunks: JSONL, JSON, CSV, Parquet, and lists in memory."""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from launcher.config.schema import DataFormat
from launcher.data.audit import Location, Tally
from launcher.data.formats import describe_formats, detect
from launcher.data.json_values import DECODER, READ_CHARS, JsonWindow, json_why
from launcher.data.sources import Source
from launcher.errors import BrokenJson, DataError, ExampleError

CHUNK_RECORDS = 1000
CHUNK_BYTES = 4 << 20
_RECORDS_TO_DETECT = 20

Payload = bytes | Mapping[str, object] | ExampleError
"""A line of JSON still to be parsed, a record, or why there is none."""

Record = tuple[int, Payload, int]
"""Line (row, or number), payload and size in bytes."""
Records = Iterator[Record]


@dataclass(slots=True)
class Chunk:
    """Some records of one source, with the line (or row, or number) of each."""

    source: int
    lines: list[int] = field(default_factory=list)
    payloads: list[Payload] = field(default_factory=list)
    size_bytes: int = 0


def read_chunks(source: Source, number: int, max_records: int | None = None) -> Iterator[Chunk]:
    """The records of a source; for a record that cannot be read, an ExampleError."""
    chunk = Chunk(number)
    for line, payload, size in _records(source):
        chunk.lines.append(line)
        chunk.payloads.append(payload)
        chunk.size_bytes += size
        if len(chunk.lines) >= (max_records or CHUNK_RECORDS) or chunk.size_bytes >= CHUNK_BYTES:
            yield chunk
            chunk = Chunk(number)
    if chunk.lines:
        yield chunk


def parse(payload: Payload) -> Mapping[str, object]:
    """The record. Raises ExampleError when it is not one."""
    if isinstance(payload, ExampleError):
        raise payload
    if not isinstance(payload, bytes):
        return payload
    try:
        return parse(_checked(DECODER.decode(payload.decode("utf-8"))))
    except UnicodeDecodeError as error:
        raise ExampleError("not_utf8", f"byte 0x{payload[error.start]:02x} at position {error.start}") from error
    except (ValueError, RecursionError) as error:
        raise ExampleError("broken_json", json_why(error)) from error


def first_records(source: Source, count: int) -> list[Mapping[str, object]]:
    """The first records that can be read at all, at most `count`; what a format is detected from."""
    found: list[Mapping[str, object]] = []
    for _, payload, _ in _records(source):
        with suppress(ExampleError):
            found.append(parse(payload))
        if len(found) == count:
            break
    return found


def source_format(source: Source, tally: Tally) -> DataFormat | None:
    """The format that is named, or that of the first record which has one; None, and a finding, where none has."""
    if source.format is not DataFormat.auto:
        return source.format
    records = first_records(source, _RECORDS_TO_DETECT)
    if not records:
        return DataFormat.auto  # nothing can be read; the reader says why, line by line
    found = next((kind for kind in map(detect, records) if kind is not None), None)
    if found is None:
        fields = ", ".join(list(records[0])[:8]) or "none"
        tally.add("unknown_format", Location(source.name, 0, f"fields seen: {fields}; known: {describe_formats()}"))
    return found


def _records(source: Source) -> Records:
    if source.path is None:
        for number, record in enumerate(source.records, 1):
            yield number, _checked(record), 100
        return
    kind = source.path.suffix.lower()
    try:
        if kind in (".jsonl", ".ndjson"):
            yield from _read_lines(source.path)
        elif kind == ".json":
            yield from _read_json(source.path)
        elif kind == ".parquet":
            yield from _read_parquet(source.path)
        else:
            yield from _read_table(source.path, "\t" if kind == ".tsv" else None)
    except OSError as error:
        raise DataError(f"{source.name} cannot be read: {error}") from error


def _read_lines(path: Path) -> Records:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if number == 1:
                if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                    yield 1, ExampleError("not_utf8", "the file is UTF-16"), path.stat().st_size
                    return
                line = line.removeprefix(codecs.BOM_UTF8)
            text = line.strip()
            yield number, text if text else ExampleError("empty_line", ""), len(line)


def _read_json(path: Path) -> Records:
    """A JSON file: an array of records, an object that holds one, one record, or (often so named) JSON lines."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            start = file.read(READ_CHARS)
            opening = start.lstrip()[:1]
            if opening == "[":
                file.seek(0)
                yield from _read_array(file)
                return
    except UnicodeDecodeError as error:
        yield _not_utf8(path, error)
        return
    if opening == "{" and _is_json_lines(start):
        yield from _read_lines(path)
        return
    yield from _read_object(path)


def _is_json_lines(start: str) -> bool:
    """Whether one of the first two lines is an object by itself, and there is more than one line."""
    first, _, rest = start.strip().partition("\n")
    second = rest.strip().partition("\n")[0]
    return bool(second) and (_is_an_object(first) or _is_an_object(second))


def _is_an_object(line: str) -> bool:
    try:
        return isinstance(DECODER.decode(line), dict)
    except ExampleError:  # a key twice: an object nevertheless
        return True
    except (ValueError, RecursionError):
        return False


def _read_object(path: Path) -> Records:
    size = path.stat().st_size
    try:
        value = DECODER.decode(path.read_text(encoding="utf-8-sig"))
    except ExampleError as error:
        yield 1, error, size
        return
    except UnicodeDecodeError as error:
        yield _not_utf8(path, error)
        return
    except (ValueError, RecursionError) as error:
        line = error.lineno if isinstance(error, json.JSONDecodeError) else 1
        yield line, ExampleError("broken_json", json_why(error)), size
        return
    lists = [inner for inner in value.values() if _is_records(inner)] if isinstance(value, dict) else []
    # Of a record such as {"messages": [{...}]} the list is content; elsewhere ({"data": [...]}) it is the examples.
    if isinstance(value, dict) and detect(value) is None and len(lists) == 1:
        for number, record in enumerate(lists[0], 1):
            yield number, _checked(record), size // len(lists[0])
        return
    yield 1, _checked(value), size


def _not_utf8(path: Path, error: UnicodeDecodeError) -> Record:
    """The finding, with the line of the first byte that is not UTF-8: the error knows only its position in a buffer."""
    with path.open("rb") as file:
        line = next((number for number, text in enumerate(file, 1) if not _is_utf8(text)), 1)
    return line, ExampleError("not_utf8", f"byte 0x{error.object[error.start]:02x}: {error.reason}"), 0


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _is_records(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _read_array(file: IO[str]) -> Records:
    """Values of a JSON array one by one, so that a big file is never whole in memory."""
    window = JsonWindow(file)
    window.skip_space()
    window.take("[")
    following = window.skip_space()
    while following != "]":
        line = window.line
        try:
            value, size = window.value()
        except BrokenJson as error:
            yield error.line, ExampleError("broken_json", str(error)), 0
            return
        except ExampleError as error:
            yield line, error, 0
        else:
            yield line, _checked(value), size
        following = window.skip_space()
        if following == ",":
            window.take(",")
            window.skip_space()
        elif following != "]":
            seen = f"{following!r}" if following else "the end of the file"
            why = f"expected ',' or ']', found {seen} at column {window.column}"
            yield window.line, ExampleError("broken_json", why), 0
            return
    window.take("]")
    if window.skip_space():
        why = f"more text after the end of the array at column {window.column}; it is not read"
        yield window.line, ExampleError("broken_json", why), 0


def _read_parquet(path: Path) -> Records:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(path)
        share = path.stat().st_size // max(table.metadata.num_rows, 1)
        row = 0
        for batch in table.iter_batches(batch_size=CHUNK_RECORDS):
            for record in batch.to_pylist():
                row += 1
                yield row, _checked(_without_nulls(record)), share
    except pa.ArrowException as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}") from error


def _without_nulls(value: object) -> object:
    """Structs of a table hold every field any row has; null there means that the field is absent."""
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_without_nulls(inner) for inner in value]
    return value


def _read_table(path: Path, delimiter: str | None) -> Records:
    csv.field_size_limit(1 << 30)
    # Bytes that are not UTF-8 come as lone surrogates, so that their row can be named and the rest read.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        separator = delimiter or _separator(file.readline())
        file.seek(0)
        rows = csv.reader(file, delimiter=separator, strict=True)
        try:
            header = next(rows, [])
            bad = _bad_byte(header, 1)
            if bad is not None:
                yield *bad, path.stat().st_size
                return
            line = rows.line_num + 1
            for cells in rows:
                if cells:
                    yield *(_bad_byte(cells, line) or (line, _row(header, cells))), _num_bytes(cells)
                line = rows.line_num + 1
        except csv.Error as error:
            yield rows.line_num, ExampleError("broken_row", str(error)), 0


def _num_bytes(cells: list[str]) -> int:
    """About what a row takes in its file, which is what sizes of files are compared with."""
    return sum(len(cell.encode("utf-8", "surrogateescape")) + 1 for cell in cells)


def _bad_byte(cells: list[str], line: int) -> tuple[int, ExampleError] | None:
    """The first byte of a row that is not UTF-8, and its line; cells may span several."""
    found = _ESCAPED_BYTE.search(text := " ".join(cells))
    if found is None:
        return None
    breaks = len(_LINE_BREAK.findall(text, 0, found.start()))
    return line + breaks, ExampleError("not_utf8", f"byte 0x{ord(found.group()) - 0xDC00:02x}")


def _separator(header: str) -> str:
    return max(",;\t", key=header.count)


def _row(header: list[str], cells: list[str]) -> Payload:
    if len(cells) != len(header):
        return ExampleError("broken_row", f"{len(cells)} cells, {len(header)} in the header")
    return dict(zip(header, cells, strict=True))


def _checked(value: object) -> Payload:
    return value if isinstance(value, dict) else ExampleError("not_an_object", f"it is of type {type(value).__name__}")


_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")
_LINE_BREAK = re.compile(r"\r\n|\r|\n")
