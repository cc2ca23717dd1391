"""Data read without a tokenizer: the audit as far as it goes, and how much there is to train on.

For plans made before the model or a prepared data set is there. It runs the steps of preparing with another encoder,
which estimates tokens from the length of the text; what it writes is gone when it is done. Of very large data only the
beginning of each file is read.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from launcher.config.schema import DataConfig, DataFormat
from launcher.data.audit import RULES, Audit, Place, Severity, SplitCounts, Tally
from launcher.data.dataset_checks import check_size
from launcher.data.encode import EncodedChunk
from launcher.data.example import Example, ExampleError
from launcher.data.example_checks import check_example, check_text, digests
from launcher.data.formats import to_example
from launcher.data.prepared import Prepared, TokenBatch
from launcher.data.prompt_prefix import opening_of
from launcher.data.readers import Chunk, parse, read_chunks, source_format
from launcher.data.sources import Source, Sources
from launcher.data.splits import SplitBuilder
from launcher.plan.plan import DataFacts

READ_BYTES = 20 * 2**20
"""More data than this is read in part: so many bytes of it, or READ_RECORDS records if those come first."""
READ_RECORDS = 100_000
_COUNT_BYTES = 4 * 2**30
"""Lines of more data than this are not counted either."""
_REMEMBERED = 8
"""Data sets; the members of a sweep share one as a rule."""
_SPLITS = ("train", "validation")
_BYTES_PER_TOKEN = 4
_TOKENS_PER_TURN = 5
"""What a chat template writes around a turn."""
_TOKENS_OF_SYSTEM = 20
"""The system turn most templates write where an example has none."""


@dataclass(frozen=True, slots=True)
class Skimmed:
    """What could be seen."""

    facts: DataFacts
    audit: Audit
    num_long: int
    """Examples that are longer than data.seq_len_tokens by the estimate."""
    unread: str
    """How much was not looked at; empty when every example was read."""


@dataclass(slots=True)
class _Reading:
    """How much of one source was read."""

    source: Source
    num_read: int = 0
    """Records, empty lines left out."""
    bytes_read: int = 0
    at_end: bool = False


@dataclass(slots=True, eq=False)
class _Part:
    """The files of one part of the data, one after the other, of which a share is read."""

    share: float
    size_bytes: int = 0
    """Of the files met so far."""
    num_read: int = 0
    bytes_read: int = 0
    readings: list[_Reading] = field(default_factory=list)

    def meet(self, reading: _Reading) -> None:
        self.size_bytes += reading.source.size_bytes
        self.readings.append(reading)

    def note(self, num_read: int, num_bytes: int) -> None:
        """Of the file met last, so much more was read."""
        self.readings[-1].num_read += num_read
        self.readings[-1].bytes_read += num_bytes
        self.num_read += num_read
        self.bytes_read += num_bytes

    @property
    def is_enough(self) -> bool:
        """Whether the share of what was met is read; something is read of every part."""
        due_bytes = self.share * self.size_bytes
        due_records = due_bytes * READ_RECORDS / READ_BYTES
        return self.share < 1 and self.bytes_read > 0 and (self.bytes_read >= due_bytes or self.num_read >= due_records)


_seen: dict[str, Skimmed] = {}


def skim(data: DataConfig, sources: Sources) -> Skimmed:
    """Findings and counts of data that lies on this machine; data that was seen before is not read again.

    Raises:
        DataError: a file cannot be read.
    """
    key = _identity(data, sources)  # before reading: what changes meanwhile is another then
    if key not in _seen:
        if len(_seen) >= _REMEMBERED:
            _seen.clear()
        _seen[key] = _read(data, sources)
    return _seen[key]


def _identity(data: DataConfig, sources: Sources) -> str:
    """Digest of what is read and how; files by size and time of change."""
    files = [source.path.stat() if source.path is not None else None for source in sources.all()]
    marks = [(stat.st_ino, stat.st_size, stat.st_mtime_ns) if stat is not None else None for stat in files]
    return hashlib.sha256(repr((data, sources, marks, READ_BYTES, READ_RECORDS)).encode()).hexdigest()


def _read(data: DataConfig, sources: Sources) -> Skimmed:
    every = sources.all()
    num_bytes = sum(source.size_bytes for source in every)
    share = min(1.0, READ_BYTES / max(1, num_bytes))
    tally = Tally()
    for name in sources.ignored:
        tally.add("held_out_files_ignored", Place(name, 0))
    encoder = _Encoder(data)
    readings = [_Reading(source) for source in every]
    formats = [source_format(source, tally) for source in every]
    parts = _parts(sources, share)
    with tempfile.TemporaryDirectory(prefix="launcher-skim-") as folder:
        builder = SplitBuilder(Path(folder), sources, data)
        for number, (reading, kind, part) in enumerate(zip(readings, formats, parts, strict=True)):
            if kind is None:  # no examples, whatever it holds
                reading.at_end = True
                continue
            part.meet(reading)
            for chunk in _beginning(reading, number, part):
                encoded = encoder.encode(chunk, reading.source.name, kind)
                part.note(encoded.num_read, chunk.size_bytes)
                builder.add(encoded, number)
        splits = builder.choose()
        tally.merge(builder.tally)
        splits.write(vetoed=False)
        seen = [Prepared.open(Path(folder), name) for name in _SPLITS if Prepared.exists(Path(folder), name)]
        growth = {part: _growth(part) for part in dict.fromkeys(parts)}
        factors = np.array([growth[part][0] for part in parts])
        is_whole = all(reading.at_end for reading in readings)
        divides = data.validation_fraction > 0 or any(weight != 1.0 for weight in sources.weights)
        is_counted = is_whole or (all(counted for _, counted in growth.values()) and not divides)
        facts = _facts(data, seen, factors, is_whole=is_whole, is_counted=is_counted)
    names = {source.name: kind.value for source, kind in zip(every, formats, strict=True) if kind is not None}
    unread = "" if is_whole else _unread(readings, num_bytes)
    if not is_whole:  # so far the beginning was judged, not the whole
        tally.remove("too_few_examples")
        if facts.is_counted:
            check_size(facts.examples, data.task, tally)
    return Skimmed(facts, _audit(tally, data, splits.counts, names), encoder.num_long, unread)


def _audit(tally: Tally, data: DataConfig, counts: dict[str, SplitCounts], names: dict[str, str]) -> Audit:
    return Audit(tally.findings(data.allow), counts, names, tuple(data.allow))


def _unread(readings: list[_Reading], num_bytes: int) -> str:
    num_read = sum(reading.num_read for reading in readings)
    bytes_read = sum(reading.bytes_read for reading in readings)
    return f"only the first {num_read:,} examples, {bytes_read / 2**20:,.0f} of {num_bytes / 2**20:,.0f} MiB, were read"


def _parts(sources: Sources, share: float) -> list[_Part]:
    """For each source the part it belongs to: one of the mixture, or what is held out."""
    train = [_Part(share) for _ in sources.weights]
    held_out = _Part(share)
    return [train[source.part] for source in sources.train] + [held_out for _ in sources.validation]


def _beginning(reading: _Reading, number: int, part: _Part) -> Iterable[Chunk]:
    """Chunks from the start of a source until enough of its part is read."""
    if part.is_enough:
        return
    for chunk in read_chunks(reading.source, number):
        if part.is_enough:
            return
        yield chunk
    reading.at_end = True


class _Encoder:
    """In place of data.encode.Encoder: the same findings as far as no tokenizer or template is needed."""

    def __init__(self, data: DataConfig) -> None:
        self._data = data
        self._preamble = _tokens(data.preamble or "")
        self._system = _tokens(data.system_prompt) + _TOKENS_PER_TURN if data.system_prompt else _TOKENS_OF_SYSTEM
        self.num_long = 0

    def encode(self, chunk: Chunk, name: str, kind: DataFormat) -> EncodedChunk:
        tally = Tally()
        kept = [
            example
            for line, payload in zip(chunk.lines, chunk.payloads, strict=True)
            if (example := self._example(payload, kind, Place(name, line), tally)) is not None
        ]
        lengths, taught = zip(*map(self._sizes, kept), strict=True) if kept else ((), ())
        marks = [digests(example) for example in kept]
        return EncodedChunk(
            source=chunk.source,
            batch=_blank_tokens(lengths, taught, chunk.source, [example.line for example in kept]),
            input_digest=np.array([mark[0] for mark in marks], dtype=np.uint64),
            example_digest=np.array([mark[1] for mark in marks], dtype=np.uint64),
            openings=[opening_of(example, self._data.system_prompt) for example in kept],
            tally=tally,
            num_read=len(chunk.lines) - tally.counts.get("empty_line", 0),
            num_truncated=0,
            tokens_cut=0,
            size_bytes=chunk.size_bytes,
        )

    def _example(self, payload: object, kind: DataFormat, place: Place, tally: Tally) -> Example | None:
        """The example, or None when a finding makes it unusable."""
        limits = self._data
        try:
            example = to_example(parse(payload), kind, place.file, place.line)  # type: ignore[arg-type]
        except ExampleError as error:
            tally.add(error.code, Place(place.file, place.line, error.why))
            return None
        if example.text is not None:
            issues = check_text(example.text, None, None, limits.max_output_chars)
        else:
            issues = check_example(example, None, limits.max_input_chars, limits.max_output_chars)
        for code, detail in issues:
            tally.add(code, Place(place.file, place.line, detail))
        if any(not RULES[code].keeps and RULES[code].severity is Severity.error for code, _ in issues):
            return None
        if example.text is None and not any(m.role == "assistant" and m.train for m in example.messages):
            tally.add("no_supervised_tokens", Place(place.file, place.line, "every answer has weight 0"))
            return None
        return example

    def _sizes(self, example: Example) -> tuple[int, int]:
        """Estimated tokens, and how many of them are taught; as long as a sequence at most."""
        if example.text is not None:
            tokens = taught = _tokens(example.text) + 1
        else:
            turns = [(message, _tokens(message.content + message.reasoning)) for message in example.messages]
            has_system = any(message.role in ("system", "developer") for message in example.messages)
            added = self._preamble + (0 if has_system else self._system)
            tokens = added + sum(size + _TOKENS_PER_TURN for _, size in turns)
            taught = sum(size + 1 for message, size in turns if message.role == "assistant" and message.train)
        limit = self._data.seq_len_tokens
        self.num_long += tokens > limit
        return min(tokens, limit), min(taught, limit)


def _tokens(text: str) -> int:
    return -(-len(text.encode()) // _BYTES_PER_TOKEN)


def _blank_tokens(lengths: Iterable[int], taught: Iterable[int], source: int, lines: list[int]) -> TokenBatch:
    """Examples of the given sizes without content, the taught tokens at their end."""
    sizes, labels = np.array([*lengths], dtype=np.int64), np.array([*taught], dtype=np.int64)
    offsets = np.cumsum([0, *sizes]).astype(np.int32)
    place = np.arange(int(offsets[-1])) - np.repeat(offsets[:-1], sizes)
    return TokenBatch(
        tokens=np.zeros(int(offsets[-1]), dtype=np.int32),
        mask=(place >= np.repeat(sizes - labels, sizes)).astype(np.uint8),
        offsets=offsets,
        file=np.full(len(lines), source, dtype=np.int32),
        line=np.array(lines, dtype=np.int64),
    )


def _facts(
    data: DataConfig, splits: list[Prepared], factors: npt.NDArray[np.float64], *, is_whole: bool, is_counted: bool
) -> DataFacts:
    """Counts of what was read, or of the whole that it is the beginning of.

    Args:
        factors: float64[num_files], how many times what was read of each file its part holds.
    """
    train, times = splits[0], factors[splits[0].files]
    tokens = float((times * train.lengths).sum())
    examples = round(float(times.sum()))
    packs = max(1, round(train.num_packs * tokens / max(1, int(train.lengths.sum()))))
    return DataFacts(
        examples=examples,
        validation_examples=round(float(factors[splits[1].files].sum())) if len(splits) > 1 else 0,
        tokens=round(tokens),
        supervised_tokens=round(float((times * train.supervised).sum())),
        num_packs=packs if data.packing else examples,
        # Of a part only, the worst case is assumed, for memory.
        max_pack_tokens=int(train.pack_lengths.max(initial=0)) if is_whole else data.seq_len_tokens,
        max_pack_supervised=int(train.pack_supervised.max(initial=0)) if is_whole else data.seq_len_tokens,
        is_estimate=True,
        is_counted=is_counted,
    )


def _growth(part: _Part) -> tuple[float, bool]:
    """How many times the records that were read a part holds, and whether that was counted rather than guessed."""
    if all(reading.at_end for reading in part.readings):
        return 1.0, True
    can_count = part.size_bytes <= _COUNT_BYTES
    bytes_a_record = part.bytes_read / max(1, part.num_read)
    total, all_counted = 0, can_count
    for reading in part.readings:
        number = reading.num_read if reading.at_end else _count_records(reading.source) if can_count else None
        all_counted = all_counted and number is not None
        total += round(reading.source.size_bytes / max(1.0, bytes_a_record)) if number is None else number
    return max(1.0, total / max(1, part.num_read)), all_counted


def _count_records(source: Source) -> int | None:
    """Records of a file whose number can be had without parsing it; None for others."""
    suffix = source.path.suffix.lower() if source.path is not None else ""
    if source.path is None or suffix not in (".jsonl", ".ndjson", ".parquet"):
        return None
    if suffix == ".parquet":
        import pyarrow.parquet as pq

        return int(pq.ParquetFile(source.path).metadata.num_rows)
    with source.path.open("rb") as file:
        return sum(1 for line in file if line.strip())
