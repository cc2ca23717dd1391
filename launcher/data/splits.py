"""Writes encoded chunks as splits: validation fraction, mixture weights, counts, and checks of the whole dataset."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from launcher.config.schema import DataConfig
from launcher.data.audit import Audit, Location, SplitCounts, Tally
from launcher.data.dataset_checks import Marks, check_whole
from launcher.data.encode import EncodedChunk
from launcher.data.prepared import SplitFacts, SplitWriter, read_batches
from launcher.data.prompt_prefix import Openings
from launcher.data.readers import source_format
from launcher.data.sources import Sources

Indices = npt.NDArray[np.int64]


class SplitBuilder:
    """Collects encoded chunks in order; tokens go to disk at once, a few numbers per example stay in memory."""

    def __init__(self, folder: Path, sources: Sources, data: DataConfig) -> None:
        self.tally = Tally()
        self.formats = [source_format(source, self.tally) for source in sources.all()]
        """Format of each source of `Sources.all`; None if it has no known one."""
        for name in sources.ignored:
            self.tally.add("held_out_files_ignored", Location(name, 0))
        self._folder = folder
        self._sources = sources
        self._data = data
        self._openings = Openings()
        self._train = _Side(folder / "train")
        self._validation = _Side(folder / "validation")

    def add(self, chunk: EncodedChunk) -> None:
        self.tally.merge(chunk.tally)
        side = self._train if chunk.source < len(self._sources.train) else self._validation
        side.add(chunk, [self._openings.number(opening) for opening in chunk.openings])

    def audit(self, splits: Splits) -> Audit:
        """The findings so far."""
        named = zip(self._sources.all(), self.formats, strict=True)
        formats = {source.name: kind.value for source, kind in named if kind is not None}
        return Audit(self.tally.findings(self._data.allow), splits.counts, formats, tuple(self._data.allow))

    def choose(self) -> Splits:
        """Decides which example goes into which split, and adds the findings about the whole to the tally."""
        train, validation = self._train.columns(), self._validation.columns()
        chosen = np.arange(len(train.line), dtype=np.int64)
        held_out: Indices | None = None
        if not self._sources.validation and self._data.validation_fraction > 0:
            chosen, held_out = _hold_out(train.inputs, self._data.validation_fraction, self._data.seed)
        usable = chosen
        parts = np.array([source.part for source in self._sources.train], dtype=np.int64)
        chosen = _weigh(chosen, parts[train.file[chosen]], self._sources.weights, self._data.seed)
        kept_out = train.take(held_out) if held_out is not None else validation
        # Copies and openings are judged on the examples as given, not as repeated by a mixture weight.
        marks = self._marks(train.take(usable)), self._marks(kept_out)
        check_whole(*marks, self._openings, self._data.task, self.tally)
        if self._sources.validation and len(validation.line) == 0:
            self.tally.add("no_examples", Location("validation data", 0))
        return Splits(
            folder=self._folder,
            data=self._data,
            files=[source.name for source in self._sources.all()],
            sides=(self._train, self._validation),
            train=chosen,
            held_out=held_out,
            counts=self._counts(train, validation, chosen, held_out),
        )

    def _marks(self, columns: Columns) -> Marks:
        files = [source.name for source in self._sources.all()]

        def locate(index: int) -> tuple[str, int]:
            return files[columns.file[index]], int(columns.line[index])

        return Marks(columns.inputs, columns.examples, columns.openings, locate)

    def _counts(
        self, train: Columns, validation: Columns, chosen: Indices, held_out: Indices | None
    ) -> dict[str, SplitCounts]:
        num_held_out = 0 if held_out is None else len(held_out)
        counts = {"train": self._train.counts(train.take(chosen), num_held_out)}
        if held_out is not None:
            counts["validation"] = _Side.counts_of(train.take(held_out))
        elif self._sources.validation:
            counts["validation"] = self._validation.counts(validation, 0)
        return counts


@dataclass(frozen=True, slots=True)
class Columns:
    """What is remembered of each example of one side, aligned."""

    inputs: npt.NDArray[np.uint64]
    examples: npt.NDArray[np.uint64]
    openings: npt.NDArray[np.int32]
    file: npt.NDArray[np.int32]
    line: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int32]
    supervised: npt.NDArray[np.int32]

    def take(self, rows: Indices) -> Columns:
        return Columns(
            inputs=self.inputs[rows],
            examples=self.examples[rows],
            openings=self.openings[rows],
            file=self.file[rows],
            line=self.line[rows],
            lengths=self.lengths[rows],
            supervised=self.supervised[rows],
        )


@dataclass(frozen=True, slots=True)
class Splits:
    """Splits that are decided but not written."""

    folder: Path
    data: DataConfig
    files: list[str]
    sides: tuple[_Side, _Side]
    train: Indices
    held_out: Indices | None
    counts: dict[str, SplitCounts]

    def write(self, *, blocked: bool) -> tuple[SplitFacts, SplitFacts | None]:
        """Writes what was decided; returns the facts of train and of validation."""
        train, validation = self.sides
        has_validation = validation.num_examples > 0
        if self.held_out is None and np.array_equal(self.train, np.arange(train.num_examples)):
            facts = self._finish(train.writer, blocked)
        else:
            train.writer.abandon()
            everything = self.folder / ".everything"
            (self.folder / "train").rename(everything)
            facts = self._copy(everything, "train", self.train, blocked)
            if self.held_out is not None and len(self.held_out):
                validation.writer.abandon()
                shutil.rmtree(self.folder / "validation")
                held_out = self._copy(everything, "validation", self.held_out, blocked)
                shutil.rmtree(everything)
                return facts, held_out
            shutil.rmtree(everything)
        if has_validation:
            return facts, self._finish(validation.writer, blocked)
        validation.writer.abandon()
        shutil.rmtree(self.folder / "validation")
        return facts, None

    def _copy(self, everything: Path, split: str, rows: Indices, blocked: bool) -> SplitFacts:
        writer = SplitWriter(self.folder / split)
        start = 0
        for batch in read_batches(everything / "examples.arrow"):
            first, last = np.searchsorted(rows, [start, start + len(batch)])
            writer.write(batch.take(rows[first:last] - start))
            start += len(batch)
        return self._finish(writer, blocked)

    def _finish(self, writer: SplitWriter, blocked: bool) -> SplitFacts:
        return writer.finish(
            files=self.files, seq_len_tokens=self.data.seq_len_tokens, packing=self.data.packing, blocked=blocked
        )


class _Side:
    """Training or held-out examples while they arrive."""

    def __init__(self, folder: Path) -> None:
        self.writer = SplitWriter(folder)
        self.num_examples = 0
        self._chunks: list[Columns] = []
        self._num_read = 0
        self._num_truncated = 0
        self._tokens_cut = 0

    def add(self, chunk: EncodedChunk, openings: Sequence[int]) -> None:
        batch = chunk.batch
        self.writer.write(batch)
        ends = np.concatenate([[0], np.cumsum(batch.mask, dtype=np.int64)])
        self._chunks.append(
            Columns(
                inputs=chunk.input_digest,
                examples=chunk.example_digest,
                openings=np.array(openings, dtype=np.int32),
                file=batch.file,
                line=batch.line,
                lengths=np.diff(batch.offsets),
                supervised=np.diff(ends[batch.offsets]).astype(np.int32),
            )
        )
        self.num_examples += len(batch)
        self._num_read += chunk.num_read
        self._num_truncated += chunk.num_truncated
        self._tokens_cut += chunk.tokens_cut

    def columns(self) -> Columns:
        """All of them in one; the parts are given up."""
        none = Columns(
            inputs=np.zeros(0, np.uint64),
            examples=np.zeros(0, np.uint64),
            openings=np.zeros(0, np.int32),
            file=np.zeros(0, np.int32),
            line=np.zeros(0, np.int64),
            lengths=np.zeros(0, np.int32),
            supervised=np.zeros(0, np.int32),
        )
        parts, self._chunks = [none, *self._chunks], []
        return Columns(
            inputs=np.concatenate([part.inputs for part in parts]),
            examples=np.concatenate([part.examples for part in parts]),
            openings=np.concatenate([part.openings for part in parts]),
            file=np.concatenate([part.file for part in parts]),
            line=np.concatenate([part.line for part in parts]),
            lengths=np.concatenate([part.lengths for part in parts]),
            supervised=np.concatenate([part.supervised for part in parts]),
        )

    def counts(self, kept: Columns, num_held_out: int) -> SplitCounts:
        """Counts of this side, of which `kept` goes on and `num_held_out` went to the other."""
        return SplitCounts(
            examples_read=self._num_read - num_held_out,
            examples_kept=len(kept.line),
            examples_dropped=self._num_read - self.num_examples,
            examples_truncated=self._num_truncated,
            tokens=int(kept.lengths.sum(dtype=np.int64)),
            supervised_tokens=int(kept.supervised.sum(dtype=np.int64)),
            tokens_cut=self._tokens_cut,
        )

    @staticmethod
    def counts_of(kept: Columns) -> SplitCounts:
        """Counts of examples taken from the other side."""
        return SplitCounts(
            examples_read=len(kept.line),
            examples_kept=len(kept.line),
            tokens=int(kept.lengths.sum(dtype=np.int64)),
            supervised_tokens=int(kept.supervised.sum(dtype=np.int64)),
        )


def _hold_out(inputs: npt.NDArray[np.uint64], fraction: float, seed: int) -> tuple[Indices, Indices]:
    """(training, held-out) rows. Equal inputs go to the same side, so that the held-out loss cannot flatter."""
    different, inverse = np.unique(inputs, return_inverse=True)
    if len(different) < 2:
        return np.arange(len(inputs), dtype=np.int64), np.zeros(0, dtype=np.int64)
    count = min(len(different) - 1, max(1, round(fraction * len(different))))
    is_held_out = np.zeros(len(different), dtype=bool)
    is_held_out[np.random.default_rng([seed, 1]).permutation(len(different))[:count]] = True
    rows = is_held_out[inverse]
    return np.flatnonzero(~rows), np.flatnonzero(rows)


def _weigh(rows: Indices, parts: npt.NDArray[np.int64], weights: Sequence[float], seed: int) -> Indices:
    """The rows, each as often as the weight of its part asks; ascending."""
    if all(weight == 1.0 for weight in weights):
        return rows
    drawn: list[Indices] = []
    for part, weight in enumerate(weights):
        own = rows[parts == part]
        whole, share = divmod(weight, 1.0)
        drawn += [own] * int(whole)
        some = np.random.default_rng([seed, 2, part]).permutation(len(own))[: round(share * len(own))]
        drawn.append(own[some])
    return np.sort(np.concatenate(drawn))
