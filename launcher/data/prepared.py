"""The prepared data set on disk: token ids and masks in a memory-mapped Arrow file, packs beside it.

FOLDER/
  audit.json, prompt_format.json, chat_template.jinja, info.json
  train/       examples.arrow  pack_examples.npy  pack_offsets.npy  meta.json
  validation/  the same, when there is held-out data
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from launcher.data.pack import Packs, best_fit_decreasing, one_per_pack
from launcher.errors import DataError

SCHEMA = pa.schema(
    [
        ("tokens", pa.list_(pa.int32())),
        ("mask", pa.list_(pa.uint8())),
        ("file", pa.int32()),
        ("line", pa.int64()),
    ]
)


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

    def as_arrow(self) -> pa.RecordBatch:
        offsets = pa.array(self.offsets)
        tokens = pa.ListArray.from_arrays(offsets, pa.array(self.tokens))
        mask = pa.ListArray.from_arrays(offsets, pa.array(self.mask))
        return pa.RecordBatch.from_arrays([tokens, mask, pa.array(self.file), pa.array(self.line)], schema=SCHEMA)

    def take(self, rows: npt.NDArray[np.int64]) -> TokenBatch:
        """The given rows, in the given order; a row may come more than once."""
        lengths = np.diff(self.offsets)[rows]
        offsets = np.zeros(len(rows) + 1, dtype=np.int32)
        np.cumsum(lengths, out=offsets[1:])
        starts = np.repeat(self.offsets[:-1][rows] - offsets[:-1], lengths)
        flat = starts + np.arange(int(offsets[-1]), dtype=np.int64)
        return TokenBatch(self.tokens[flat], self.mask[flat], offsets, self.file[rows], self.line[rows])


@dataclass(frozen=True, slots=True)
class SplitFacts:
    """Size of one split, for plans and tables. Lengths are in tokens; fill is the share of pack room used."""

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

    def as_dict(self) -> dict[str, int | float]:
        return asdict(self)


class SplitWriter:
    """Writes one split, batch by batch, so that memory does not grow with the data.

    `write` any number of times, then `finish` once; or `abandon`.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self._sink = pa.OSFile(str(folder / "examples.arrow"), "wb")
        self._writer = pa.ipc.new_file(self._sink, SCHEMA)

    def write(self, batch: TokenBatch) -> None:
        if len(batch):
            self._writer.write_batch(batch.as_arrow())

    def abandon(self) -> None:
        """Closes the file without making the split readable."""
        self._writer.close()
        self._sink.close()

    def finish(self, *, files: list[str], seq_len_tokens: int, packing: bool, blocked: bool) -> SplitFacts:
        """Packs what was written, and writes meta.json last: a split without it is not a split."""
        self.abandon()
        columns = _Columns(self._folder / "examples.arrow")
        lengths = columns.lengths
        packs = best_fit_decreasing(lengths, seq_len_tokens) if packing else one_per_pack(len(lengths))
        np.save(self._folder / "pack_examples.npy", packs.examples)
        np.save(self._folder / "pack_offsets.npy", packs.offsets)
        facts = _facts(columns, packs, seq_len_tokens)
        meta = {**facts.as_dict(), "packing": packing, "vetoed": blocked, "files": files}
        (self._folder / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")
        return facts


def _facts(columns: _Columns, packs: Packs, seq_len_tokens: int) -> SplitFacts:
    lengths = columns.lengths
    num_packs = len(packs.offsets) - 1
    ends = np.concatenate([[0], np.cumsum(lengths[packs.examples], dtype=np.int64)])
    pack_lengths = np.diff(ends[packs.offsets])
    num_tokens = int(ends[-1])
    p50, p95 = (int(np.quantile(lengths, q, method="higher")) for q in (0.5, 0.95)) if len(lengths) else (0, 0)
    return SplitFacts(
        num_examples=len(lengths),
        num_tokens=num_tokens,
        num_supervised_tokens=int(columns.supervised.sum(dtype=np.int64)),
        num_packs=num_packs,
        seq_len_tokens=seq_len_tokens,
        fill=num_tokens / (num_packs * seq_len_tokens) if num_packs else 0.0,
        length_p50=p50,
        length_p95=p95,
        length_max=int(lengths.max(initial=0)),
        longest_pack_tokens=int(pack_lengths.max(initial=0)),
    )


def _numpy(column: pa.Array) -> npt.NDArray[Any]:
    """A view of a column of numbers without gaps; to_numpy would first import pandas, which takes longer."""
    return np.from_dlpack(column)


class _Columns:
    """An examples.arrow file, memory-mapped: nothing but lengths and counts is held in memory."""

    def __init__(self, path: Path) -> None:
        reader = pa.ipc.open_file(pa.memory_map(str(path), "r"))
        self.batches: list[TokenBatch] = []
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            tokens, mask = batch.column("tokens"), batch.column("mask")
            self.batches.append(
                TokenBatch(
                    tokens=_numpy(tokens.values),
                    mask=_numpy(mask.values),
                    offsets=_numpy(tokens.offsets),
                    file=_numpy(batch.column("file")),
                    line=_numpy(batch.column("line")),
                )
            )
        self.starts = np.cumsum([0, *(len(batch) for batch in self.batches)], dtype=np.int64)

    @cached_property
    def files(self) -> npt.NDArray[np.int32]:
        parts = [batch.file for batch in self.batches]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int32)

    @cached_property
    def lengths(self) -> npt.NDArray[np.int32]:
        parts = [np.diff(batch.offsets) for batch in self.batches]
        return np.concatenate(parts).astype(np.int32) if parts else np.zeros(0, dtype=np.int32)

    @cached_property
    def supervised(self) -> npt.NDArray[np.int32]:
        parts = []
        for batch in self.batches:
            ends = np.concatenate([[0], np.cumsum(batch.mask, dtype=np.int64)])
            parts.append(np.diff(ends[batch.offsets]))
        return np.concatenate(parts).astype(np.int32) if parts else np.zeros(0, dtype=np.int32)

    def locate(self, example: int) -> tuple[TokenBatch, int]:
        """The batch of an example, and its row there."""
        if not 0 <= example < int(self.starts[-1]):
            raise IndexError(f"example {example} of {int(self.starts[-1])}")
        at = int(np.searchsorted(self.starts, example, side="right")) - 1
        return self.batches[at], example - int(self.starts[at])


def read_batches(path: Path) -> list[TokenBatch]:
    """The batches of an examples.arrow file, memory-mapped."""
    return _Columns(path).batches


class Prepared:
    """One split of a prepared data set, memory-mapped. Made with `Prepared.open`; every rank opens its own."""

    def __init__(self, folder: Path, meta: dict[str, object]) -> None:
        self.folder = folder
        self.meta = meta
        self._columns = _Columns(folder / "examples.arrow")
        self._pack_examples: npt.NDArray[np.int64] = np.load(folder / "pack_examples.npy", mmap_mode="r")
        self._pack_offsets: npt.NDArray[np.int64] = np.load(folder / "pack_offsets.npy", mmap_mode="r")

    @classmethod
    def open(cls, folder: Path, split: str, *, allow_blocked: bool = False) -> Prepared:
        """The split `train` or `validation` of a prepared data set.

        Raises DataError when it is not there, or when the audit refused it (`allow_blocked` is for looking only).
        """
        place = Path(folder) / split
        if not (place / "meta.json").is_file():
            raise DataError(f"{place} holds no prepared data; `launcher prepare` makes it")
        meta = json.loads((place / "meta.json").read_text(encoding="utf-8"))
        if meta["vetoed"] and not allow_blocked:
            raise DataError(f"the audit refused {folder}; `launcher prepare` shows why")
        return cls(place, meta)

    @staticmethod
    def exists(folder: Path, split: str) -> bool:
        """Whether the split is there."""
        return (Path(folder) / split / "meta.json").is_file()

    @property
    def num_examples(self) -> int:
        return len(self._columns.lengths)

    @property
    def num_packs(self) -> int:
        return len(self._pack_offsets) - 1

    @property
    def lengths(self) -> npt.NDArray[np.int32]:
        """int32[num_examples], tokens of each example."""
        return self._columns.lengths

    @property
    def supervised(self) -> npt.NDArray[np.int32]:
        """int32[num_examples], labels of each example; the first token of an example is never one."""
        return self._columns.supervised

    @property
    def files(self) -> npt.NDArray[np.int32]:
        """int32[num_examples], number of the file each example came from, training files first."""
        return self._columns.files

    @cached_property
    def pack_lengths(self) -> npt.NDArray[np.int64]:
        """int64[num_packs], tokens of each pack."""
        return self._per_pack(self.lengths)

    @cached_property
    def pack_supervised(self) -> npt.NDArray[np.int64]:
        """int64[num_packs], labels of each pack."""
        return self._per_pack(self.supervised)

    def tokens(self, example: int) -> npt.NDArray[np.int32]:
        """int32[length], a read-only view of the mapped file."""
        batch, row = self._columns.locate(example)
        return batch.tokens[batch.offsets[row] : batch.offsets[row + 1]]

    def mask(self, example: int) -> npt.NDArray[np.bool_]:
        """bool[length], True where the token is a label; a read-only view of the mapped file."""
        batch, row = self._columns.locate(example)
        return batch.mask[batch.offsets[row] : batch.offsets[row + 1]].view(np.bool_)

    def pack(self, pack: int) -> npt.NDArray[np.int64]:
        """int64[...], the examples of a pack."""
        return self._pack_examples[self._pack_offsets[pack] : self._pack_offsets[pack + 1]]

    def source_line(self, example: int) -> tuple[str, int]:
        """File and line (row, for tables) an example came from."""
        batch, row = self._columns.locate(example)
        files = self.meta["files"]
        assert isinstance(files, list)
        return str(files[batch.file[row]]), int(batch.line[row])

    def _per_pack(self, counts: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
        ends = np.concatenate([[0], np.cumsum(counts[self._pack_examples], dtype=np.int64)])
        return np.diff(ends[self._pack_offsets])
