"""Turns records into token ids and label masks, a chunk at a time.

The checks and the bookkeeping are the same for every tokenizer: the model's own (model_tokenizer.py), or one that only
estimates lengths (plan/estimate_data.py).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from launcher.config.schema import DataConfig, DataFormat
from launcher.data.audit import RULES, Location, Severity, Tally
from launcher.data.example import Example
from launcher.data.example_checks import check_example, digests
from launcher.data.formats import to_example
from launcher.data.prepared import TokenBatch
from launcher.data.prompt_prefix import Opening, opening_of
from launcher.data.readers import Chunk, Payload, parse
from launcher.errors import ExampleError

Formats = Sequence[tuple[str, DataFormat | None]]
"""Name and format of each source of `Sources.all`; None where no known format fits."""


@dataclass(slots=True)
class EncodedExample:
    """An example with its tokens. `text` ends where the last token does if some were cut."""

    example: Example
    text: str
    spans: list[tuple[int, int]]
    """Supervised characters of `text`, end-of-turn tokens included."""
    ids: npt.NDArray[np.int32]
    mask: npt.NDArray[np.bool_]
    num_cut: int = 0
    """Tokens cut off at the end."""


ROW = np.dtype(
    [
        ("input", np.uint64),
        ("example", np.uint64),
        ("opening", np.int32),
        ("file", np.int32),
        ("line", np.int64),
        ("length", np.int32),
        ("supervised", np.int32),
    ]
)
"""Kept in memory of each example: 64-bit digests, number of its opening (-1: none), origin, lengths in tokens."""

Rows = npt.NDArray[np.void]
"""ROW[num_examples]."""


@dataclass(slots=True)
class EncodedChunk:
    """The usable examples of a chunk, and the findings about the rest."""

    source: int
    batch: TokenBatch
    rows: Rows
    """One per example; their openings are still to be numbered."""
    openings: list[Opening | None]
    tally: Tally
    num_read: int
    num_truncated: int
    tokens_cut: int
    size_bytes: int


class Tokenizer(Protocol):
    """Tokenizes examples that passed the checks."""

    special_tokens: re.Pattern[str]
    """Matches text that the tokenizer reads as a special token."""
    end_token: str | None
    """Token that ends a plain-text document."""
    system_prompt: str | None
    """System message of examples that have none."""

    def tokenize(self, examples: Sequence[Example], tally: Tally) -> list[EncodedExample]:
        """The examples with their tokens, without those that cannot be used; findings are added to `tally`."""


class Encoder:
    """Checks and tokenizes chunks of records. One per process."""

    def __init__(self, tokenizer: Tokenizer, data: DataConfig, formats: Formats) -> None:
        self.tokenizer = tokenizer
        self._data = data
        self._formats = formats

    def encode(self, chunk: Chunk) -> EncodedChunk:
        """Tokens, masks, digests and findings of a chunk, in the order of its records."""
        tally = Tally()
        kept = self.examples(chunk, tally)
        batch = TokenBatch(
            tokens=np.concatenate([np.zeros(0, np.int32), *(encoded.ids for encoded in kept)]),
            mask=np.concatenate([np.zeros(0, np.bool_), *(encoded.mask for encoded in kept)]).view(np.uint8),
            offsets=np.cumsum([0, *(len(encoded.ids) for encoded in kept)]).astype(np.int32),
            file=np.full(len(kept), chunk.source, dtype=np.int32),
            line=np.array([encoded.example.line for encoded in kept], dtype=np.int64),
        )
        rows = np.zeros(len(kept), ROW)
        rows["input"], rows["example"] = np.array([digests(e.example) for e in kept], np.uint64).reshape(-1, 2).T
        rows["file"], rows["line"] = batch.file, batch.line
        rows["length"], rows["supervised"] = batch.lengths, batch.supervised
        return EncodedChunk(
            source=chunk.source,
            batch=batch,
            rows=rows,
            openings=[opening_of(encoded.example, self.tokenizer.system_prompt) for encoded in kept],
            tally=tally,
            num_read=len(chunk.lines) - tally.counts.get("empty_line", 0),
            num_truncated=sum(encoded.num_cut > 0 for encoded in kept),
            tokens_cut=sum(encoded.num_cut for encoded in kept),
            size_bytes=chunk.size_bytes,
        )

    def examples(self, chunk: Chunk, tally: Tally) -> list[EncodedExample]:
        """The usable examples of a chunk; findings are added to `tally`."""
        name, kind = self._formats[chunk.source]
        assert kind is not None
        ready: list[Example] = []
        for line, payload in zip(chunk.lines, chunk.payloads, strict=True):
            try:
                example = self._checked(payload, kind, name, line, tally)
            except ExampleError as error:
                tally.add(error.code, Location(name, line, error.why))
            else:
                ready += [example] if example is not None else []
        return self.tokenizer.tokenize(ready, tally)

    def _checked(self, payload: Payload, kind: DataFormat, name: str, line: int, tally: Tally) -> Example | None:
        """The example; None if a finding, which is counted already, makes it unusable."""
        example = to_example(parse(payload), kind, name, line)
        issues = check_example(example, self._data, self.tokenizer.special_tokens, self.tokenizer.end_token)
        for code, detail in issues:
            tally.note(example, code, detail)
        if any(not RULES[code].keeps and RULES[code].severity is Severity.error for code, _ in issues):
            return None
        if example.text is None and not example.supervised_messages:
            raise ExampleError("no_supervised_tokens", "every answer has weight 0")
        return example
