"""The prepared data set on disk: token ids and masks in a memory-mapped Arrow file, with the packs next to it.

FOLDER/
  audit.json, prompt_format.json, chat_template.jinja, info.json
  train/       examples.arrow  pack_examples.npy  pack_offsets.npy  meta.json
  validation/  the same, if there is validation data
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from launcher.data.pack import Packs, best_fit_decreasing, one_per_pack
from launcher.errors import DataError
from launcher.files import read_record, write_json


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Some examples as flat arrays: example i owns `tokens[offsets[i]:offsets[i + 1]]` and the same part of `mask`."""

    tokens: npt.NDArray[np.int32]
    mask: npt.NDArray[np.uint8]
    offsets: npt.NDArray[np.int32]
    file: npt.NDArray[np.int32]
    line: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.file)

    @property
    def lengths(self) -> npt.NDArray[np.int32]:
        """int32[num_examples], tokens of each example."""
        return np.diff(self.offsets)

    @property
    def supervised(self) -> npt.NDArray[np.int32]:
        """int32[num_examples], labels of each example."""
        return _sums(self.mask, self.offsets).astype(np.int32)

    def take(self, rows: npt.NDArray[np.int64]) -> TokenBatch:
        """The given rows, in the given order; a row may come more than once."""
        lengths = self.lengths[rows]
        offsets = np.zeros(len(rows) + 1, dtype=np.int32)
        np.cumsum(lengths, out=offsets[1:])
        starts = np.repeat(self.offsets[:-1][rows] - offsets[:-1], lengths)
        flat = starts + np.arange(int(offsets[-1]), dtype=np.int64)
        return TokenBatch(self.tokens[flat], self.mask[flat], offsets, self.file[rows], self.line[rows])


def _sums(values: npt.NDArray[Any], offsets: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """The sum of each part `values[offsets[i]:offsets[i + 1]]`."""
    ends = np.concatenate([[0], np.cumsum(values, dtype=np.int64)])
    sums: npt.NDArray[np.int64] = np.diff(ends[offsets])
    return sums


@dataclass(frozen=True, slots=True)
class SplitFacts:
    """Size of one split. Lengths are in tokens; `fill` is the share of the packs' capacity that is used."""

    num_examples: int
    num_tokens: int
    num_supervised_tokens: int
    num_packs: int
    seq_len_tokens: int
    fill: float
    length_p50: int
    length_p95: int
    length_max: int
    longest_pack_tokens: int


@dataclass(frozen=True, slots=True)
class SplitMeta(SplitFacts):
    """meta.json of a split."""

    packing: bool
    blocked: bool = field(metadata={"json": "vetoed"})
    files: list[str]


class SplitWriter:
    """Writes one split, batch by batch, so that memory does not grow with the data.

    `write` any number of times, then `finish` once; or `abandon`.
    """

    def __init__(self, folder: Path) -> None:
        import pyarrow as pa

        folder.mkdir(parents=True)
        self._folder = folder
        columns = {"tokens": pa.list_(pa.int32()), "mask": pa.list_(pa.uint8()), "file": pa.int32(), "line": pa.int64()}
        self._sink = pa.OSFile(str(folder / "examples.arrow"), "wb")
        self._schema = pa.schema(columns)
        self._writer = pa.ipc.new_file(self._sink, self._schema)

    def write(self, batch: TokenBatch) -> None:
        import pyarrow as pa

        if len(batch):
            lists = [pa.ListArray.from_arrays(pa.array(batch.offsets), pa.array(x)) for x in (batch.tokens, batch.mask)]
            columns = [*lists, pa.array(batch.file), pa.array(batch.line)]
            self._writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=self._schema))

    def abandon(self) -> None:
        """Closes the file without making the split readable."""
        self._writer.close()
        self._sink.close()

    def finish(self, *, files: list[str], seq_len_tokens: int, packing: bool, blocked: bool) -> SplitFacts:
        """Packs what was written, and writes meta.json last: a split without it is not a split."""
        self.abandon()
        examples = Examples(self._folder / "examples.arrow")
        lengths = examples.lengths
        packs = best_fit_decreasing(lengths, seq_len_tokens) if packing else one_per_pack(len(lengths))
        np.save(self._folder / "pack_examples.npy", packs.examples)
        np.save(self._folder / "pack_offsets.npy", packs.offsets)
        facts = _facts(examples, packs, seq_len_tokens)
        meta = SplitMeta(**asdict(facts), packing=packing, blocked=blocked, files=files)
        write_json(self._folder / "meta.json", meta, durable=False)
        return facts


def _facts(examples: Examples, packs: Packs, seq_len_tokens: int) -> SplitFacts:
    lengths = examples.lengths
    num_packs, num_tokens = len(packs.offsets) - 1, int(lengths.sum(dtype=np.int64))
    p50, p95 = (int(np.quantile(lengths, q, method="higher")) for q in (0.5, 0.95)) if len(lengths) else (0, 0)
    return SplitFacts(
        num_examples=len(lengths),
        num_tokens=num_tokens,
        num_supervised_tokens=int(examples.supervised.sum(dtype=np.int64)),
        num_packs=num_packs,
        seq_len_tokens=seq_len_tokens,
        fill=num_tokens / (num_packs * seq_len_tokens) if num_packs else 0.0,
        length_p50=p50,
        length_p95=p95,
        length_max=int(lengths.max(initial=0)),
        longest_pack_tokens=int(_sums(lengths[packs.examples], packs.offsets).max(initial=0)),
    )


class Examples:
    """The examples of an examples.arrow file, memory-mapped: only lengths and counts are held in memory."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        reader = pa.ipc.open_file(pa.memory_map(str(path), "r"))
        self.batches = [_token_batch(reader.get_batch(number)) for number in range(reader.num_record_batches)]
        self._starts = np.cumsum([0, *map(len, self.batches)], dtype=np.int64)

    @property
    def num_examples(self) -> int:
        return int(self._starts[-1])

    @cached_property
    def files(self) -> npt.NDArray[np.int32]:
        """int32[num_examples], number of the file each example came from, training files first."""
        return self._column(lambda batch: batch.file)

    @cached_property
    def lengths(self) -> npt.NDArray[np.int32]:
        """int32[num_examples], tokens of each example."""
        return self._column(lambda batch: batch.lengths)

    @cached_property
    def supervised(self) -> npt.NDArray[np.int32]:
        """int32[num_examples], labels of each example; the first token of an example is never one."""
        return self._column(lambda batch: batch.supervised)

    def tokens(self, example: int) -> npt.NDArray[np.int32]:
        """int32[length], a read-only view of the mapped file."""
        batch, row = self._locate(example)
        return batch.tokens[batch.offsets[row] : batch.offsets[row + 1]]

    def mask(self, example: int) -> npt.NDArray[np.bool_]:
        """bool[length], True where the token is a label; a read-only view of the mapped file."""
        batch, row = self._locate(example)
        return batch.mask[batch.offsets[row] : batch.offsets[row + 1]].view(np.bool_)

    def _locate(self, example: int) -> tuple[TokenBatch, int]:
        """The batch of an example, and its row there."""
        if not 0 <= example < self.num_examples:
            raise IndexError(f"example {example} of {self.num_examples}")
        at = int(np.searchsorted(self._starts, example, side="right")) - 1
        return self.batches[at], example - int(self._starts[at])

    def _column(self, values: Callable[[TokenBatch], npt.NDArray[np.int32]]) -> npt.NDArray[np.int32]:
        return np.concatenate([np.zeros(0, np.int32), *map(values, self.batches)])


def _token_batch(batch: Any) -> TokenBatch:
    """Views of the columns of an Arrow batch; to_numpy would first import pandas, which takes longer."""
    tokens, mask = batch.column("tokens"), batch.column("mask")
    view: Callable[[Any], Any] = np.from_dlpack
    return TokenBatch(
        tokens=view(tokens.values),
        mask=view(mask.values),
        offsets=view(tokens.offsets),
        file=view(batch.column("file")),
        line=view(batch.column("line")),
    )


class Prepared(Examples):
    """One split of a prepared data set. Made with `Prepared.open`; every rank opens its own."""

    def __init__(self, folder: Path, meta: SplitMeta) -> None:
        super().__init__(folder / "examples.arrow")
        self.meta = meta
        self._pack_examples: npt.NDArray[np.int64] = np.load(folder / "pack_examples.npy", mmap_mode="r")
        self._pack_offsets: npt.NDArray[np.int64] = np.load(folder / "pack_offsets.npy", mmap_mode="r")

    @classmethod
    def open(cls, folder: Path, split: str, *, allow_blocked: bool = False) -> Prepared:
        """The split `train` or `validation` of a prepared data set.

        Raises DataError when it does not exist, or when the audit blocked it (`allow_blocked` is for looking only).
        """
        if not cls.exists(folder, split):
            raise DataError(f"{folder / split} holds no prepared data; `launcher prepare` makes it")
        meta = read_record(SplitMeta, folder / split / "meta.json")
        if meta.blocked and not allow_blocked:
            raise DataError(f"the audit blocked {folder}; `launcher prepare` shows why")
        return cls(folder / split, meta)

    @staticmethod
    def exists(folder: Path, split: str) -> bool:
        return (folder / split / "meta.json").is_file()

    @property
    def num_packs(self) -> int:
        return len(self._pack_offsets) - 1

    @cached_property
    def pack_lengths(self) -> npt.NDArray[np.int64]:
        """int64[num_packs], tokens of each pack."""
        return _sums(self.lengths[self._pack_examples], self._pack_offsets)

    @cached_property
    def pack_supervised(self) -> npt.NDArray[np.int64]:
        """int64[num_packs], labels of each pack."""
        return _sums(self.supervised[self._pack_examples], self._pack_offsets)

    def pack(self, pack: int) -> npt.NDArray[np.int64]:
        """int64[...], the examples of a pack."""
        return self._pack_examples[self._pack_offsets[pack] : self._pack_offsets[pack + 1]]

    def source_line(self, example: int) -> tuple[str, int]:
        """File and line (row, for tables) an example came from."""
        batch, row = self._locate(example)
        return self.meta.files[batch.file[row]], int(batch.line[row])
