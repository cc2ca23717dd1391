"""Audit and size of data without a tokenizer, for plans made before the model or the prepared data is there.

The steps are those of preparing, with a tokenizer that estimates lengths; the result is thrown away. Of very large data
only the beginning of each file is read.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from launcher.config.schema import DataConfig
from launcher.data.audit import Audit, Tally
from launcher.data.dataset_checks import check_size
from launcher.data.encode import EncodedExample, Encoder
from launcher.data.example import Example
from launcher.data.prepared import Prepared
from launcher.data.readers import read_chunks
from launcher.data.sources import Source, Sources
from launcher.data.splits import SplitBuilder
from launcher.data.template_markers import any_of
from launcher.plan.plan import DataFacts

READ_BYTES = 20 * 2**20
"""Larger data is read in part: this many bytes, or READ_RECORDS records if they come first."""
READ_RECORDS = 100_000
_COUNT_BYTES = 4 * 2**30
"""Above this size, not even lines are counted."""
_CACHED = 8
"""Datasets; the runs of a sweep usually share one."""
_SPLITS = ("train", "validation")
_BYTES_PER_TOKEN = 4
_TOKENS_PER_TURN = 5
"""Written by a chat template around a turn."""
_TOKENS_OF_SYSTEM = 20
"""The system turn that most templates write for an example without one."""


@dataclass(frozen=True, slots=True)
class DataEstimate:
    """Audit and size of data, as far as it was read."""

    facts: DataFacts
    audit: Audit
    num_long: int
    """Examples longer than data.seq_len_tokens by the estimate."""
    unread: str
    """How much was not read; empty if everything was."""


@dataclass(slots=True)
class _Reading:
    """How much of one source was read."""

    source: Source
    num_read: int = 0
    """Records, without empty lines."""
    bytes_read: int = 0
    at_end: bool = False


@dataclass(slots=True, eq=False)
class _ReadingPlan:
    """The sources of one part of the mixture (or of the validation set), of which `share` is read."""

    share: float
    readings: list[_Reading] = field(default_factory=list)
    size_bytes: int = 0
    """Of the sources so far."""
    num_read: int = 0
    bytes_read: int = 0

    def begin(self, reading: _Reading) -> None:
        self.readings.append(reading)
        self.size_bytes += reading.source.size_bytes

    def count(self, num_read: int, num_bytes: int) -> None:
        """Counts what was read of the latest source."""
        for counter in (self.readings[-1], self):
            counter.num_read += num_read
            counter.bytes_read += num_bytes

    @property
    def is_done(self) -> bool:
        """Whether the share of the sources so far is read; something is read of every part."""
        due_bytes = self.share * self.size_bytes
        due_records = due_bytes * READ_RECORDS / READ_BYTES
        return self.share < 1 and self.bytes_read > 0 and (self.bytes_read >= due_bytes or self.num_read >= due_records)


_cache: dict[str, DataEstimate] = {}


def estimate_data(data: DataConfig, sources: Sources) -> DataEstimate:
    """Findings and counts of local data; unchanged data is not read again.

    Raises:
        DataError: a file cannot be read.
    """
    key = _identity(data, sources)  # taken first: data that changes during the reading is other data
    if key not in _cache:
        if len(_cache) >= _CACHED:
            _cache.clear()
        _cache[key] = _read(data, sources)
    return _cache[key]


def _identity(data: DataConfig, sources: Sources) -> str:
    """Digest of what is read and how; files by size and modification time."""
    files = [source.path.stat() if source.path is not None else None for source in sources.all()]
    marks = [(stat.st_ino, stat.st_size, stat.st_mtime_ns) if stat is not None else None for stat in files]
    return hashlib.sha256(repr((data, sources, marks, READ_BYTES, READ_RECORDS)).encode()).hexdigest()


def _read(data: DataConfig, sources: Sources) -> DataEstimate:
    every = sources.all()
    num_bytes = sum(source.size_bytes for source in every)
    readings = [_Reading(source) for source in every]
    share = min(1.0, READ_BYTES / max(1, num_bytes))
    train, validation = [_ReadingPlan(share) for _ in sources.weights], _ReadingPlan(share)
    parts = [train[source.part] for source in sources.train] + [validation] * len(sources.validation)
    tokenizer = EstimatingTokenizer(data)
    with tempfile.TemporaryDirectory(prefix="launcher-estimate-") as folder:
        builder = SplitBuilder(Path(folder), sources, data)
        encoder = Encoder(tokenizer, data, builder.formats)
        for number, (reading, part) in enumerate(zip(readings, parts, strict=True)):
            if builder.formats[number][1] is None:  # no examples, whatever it holds
                reading.at_end = True
                continue
            part.begin(reading)
            if part.is_done:
                continue
            for chunk in read_chunks(reading.source, number):
                if part.is_done:
                    break
                encoded = encoder.encode(chunk)
                part.count(encoded.num_read, chunk.size_bytes)
                builder.add(encoded)
            else:
                reading.at_end = True
        builder.choose()
        builder.write(blocked=False)
        seen = [Prepared.open(Path(folder), name) for name in _SPLITS if Prepared.exists(Path(folder), name)]
        growth = {part: _growth(part) for part in dict.fromkeys(parts)}
        factors = np.array([growth[part][0] for part in parts])
        is_whole = all(reading.at_end for reading in readings)
        divides = data.validation_fraction > 0 or any(weight != 1.0 for weight in sources.weights)
        is_counted = is_whole or (all(counted for _, counted in growth.values()) and not divides)
        facts = _facts(data, seen, factors, is_whole=is_whole, is_counted=is_counted)
    unread = "" if is_whole else _unread(readings, num_bytes)
    if not is_whole:  # the builder judged the beginning, not the whole
        builder.tally.remove("too_few_examples")
        if facts.is_counted:
            check_size(facts.examples, data.task, builder.tally)
    return DataEstimate(facts, builder.audit(), tokenizer.num_long, unread)


def _unread(readings: list[_Reading], num_bytes: int) -> str:
    num_read = sum(reading.num_read for reading in readings)
    bytes_read = sum(reading.bytes_read for reading in readings)
    return f"only the first {num_read:,} examples, {bytes_read / 2**20:,.0f} of {num_bytes / 2**20:,.0f} MiB, were read"


class EstimatingTokenizer:
    """A `Tokenizer` that only estimates lengths: its token ids are all 0, and the supervised ones come last."""

    special_tokens = any_of(())
    end_token: str | None = None

    def __init__(self, data: DataConfig) -> None:
        self.system_prompt = data.system_prompt
        self.num_long = 0
        self._limit = data.seq_len_tokens
        self._preamble = _num_tokens(data.preamble or "")
        self._system = _num_tokens(data.system_prompt) + _TOKENS_PER_TURN if data.system_prompt else _TOKENS_OF_SYSTEM

    def tokenize(self, examples: Sequence[Example], tally: Tally) -> list[EncodedExample]:
        return [self._encoded(example) for example in examples]

    def _encoded(self, example: Example) -> EncodedExample:
        tokens, labels = self._sizes(example)
        self.num_long += tokens > self._limit
        mask = np.ones(min(tokens, self._limit), dtype=np.bool_)
        mask[: max(0, len(mask) - labels)] = False
        return EncodedExample(example, "", [], np.zeros(len(mask), dtype=np.int32), mask)

    def _sizes(self, example: Example) -> tuple[int, int]:
        """Tokens, and the supervised ones among them."""
        if example.text is not None:
            tokens = _num_tokens(example.text) + 1
            return tokens, tokens
        sizes = [_num_tokens(message.content + message.reasoning) for message in example.messages]
        has_system = any(message.role in ("system", "developer") for message in example.messages)
        added = self._preamble + (0 if has_system else self._system)
        labels = sum(sizes[number] + 1 for number in example.supervised_messages)
        return added + sum(size + _TOKENS_PER_TURN for size in sizes), labels


def _num_tokens(text: str) -> int:
    return -(-len(text.encode()) // _BYTES_PER_TOKEN)


def _facts(
    data: DataConfig, splits: list[Prepared], factors: npt.NDArray[np.float64], *, is_whole: bool, is_counted: bool
) -> DataFacts:
    """Counts of the whole, extrapolated from what was read.

    Args:
        factors: float64[num_files], size of each file's part relative to what was read of it.
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
        # If only part was read, memory is planned for the worst case.
        max_pack_tokens=int(train.pack_lengths.max(initial=0)) if is_whole else data.seq_len_tokens,
        max_pack_supervised=int(train.pack_supervised.max(initial=0)) if is_whole else data.seq_len_tokens,
        is_estimate=True,
        is_counted=is_counted,
    )


def _growth(part: _ReadingPlan) -> tuple[float, bool]:
    """Records of a part relative to those read, and whether they were counted rather than extrapolated."""
    if all(reading.at_end for reading in part.readings):
        return 1.0, True
    can_count = part.size_bytes <= _COUNT_BYTES
    bytes_per_record = part.bytes_read / max(1, part.num_read)
    total, all_counted = 0, can_count
    for reading in part.readings:
        number = reading.num_read if reading.at_end else _count_records(reading.source) if can_count else None
        all_counted = all_counted and number is not None
        total += round(reading.source.size_bytes / max(1.0, bytes_per_record)) if number is None else number
    return max(1.0, total / max(1, part.num_read)), all_counted


def _count_records(source: Source) -> int | None:
    """Number of records if it can be found without parsing the file, otherwise None."""
    suffix = source.path.suffix.lower() if source.path is not None else ""
    if source.path is None or suffix not in (".jsonl", ".ndjson", ".parquet"):
        return None
    if suffix == ".parquet":
        import pyarrow.parquet as pq

        return int(pq.ParquetFile(source.path).metadata.num_rows)
    with source.path.open("rb") as file:
        return sum(1 for line in file if line.strip())
