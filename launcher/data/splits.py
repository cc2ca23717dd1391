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
from launcher.data.dataset_checks import DatasetChecks, Indices
from launcher.data.encode import ROW, EncodedChunk, Formats, Rows
from launcher.data.prepared import Examples, SplitFacts, SplitWriter
from launcher.data.prompt_prefix import Openings
from launcher.data.readers import source_format
from launcher.data.sources import Sources


class SplitBuilder:
    """Collects encoded chunks in order; tokens go to disk at once, a few numbers per example stay in memory."""

    def __init__(self, folder: Path, sources: Sources, data: DataConfig) -> None:
        self.tally = Tally()
        self.formats: Formats = [(source.name, source_format(source, self.tally)) for source in sources.all()]
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
        chunk.rows["opening"] = [self._openings.number(opening) for opening in chunk.openings]
        side = self._train if chunk.source < len(self._sources.train) else self._validation
        side.add(chunk)

    def audit(self, splits: Splits) -> Audit:
        """The findings so far."""
        formats = {name: kind.value for name, kind in self.formats if kind is not None}
        return Audit(self.tally.findings(self._data.allow), splits.counts, formats, tuple(self._data.allow))

    def choose(self) -> Splits:
        """Decides which example goes into which split, and adds the findings about the whole to the tally."""
        data, sources = self._data, self._sources
        rows, validation_rows = self._train.rows(), self._validation.rows()
        chosen, taken = np.arange(len(rows), dtype=np.int64), None
        if not sources.validation and data.validation_fraction > 0:
            chosen, taken = _divide(rows["input"], data.validation_fraction, data.seed)
            validation_rows = rows[taken]
        parts = np.array([source.part for source in sources.train], dtype=np.int64)
        weighted = _weigh(chosen, parts[rows["file"][chosen]], sources.weights, data.seed)
        files = [name for name, _ in self.formats]
        # Copies and openings are judged on the examples as given, not as repeated by a mixture weight.
        DatasetChecks(files, self._openings, self.tally).check(rows[chosen], validation_rows, data.task)
        if sources.validation and len(validation_rows) == 0:
            self.tally.add("no_examples", Location("validation data", 0))
        num_taken = 0 if taken is None else len(taken)
        counts = {"train": self._train.counts(rows[weighted], self._train.num_read - num_taken)}
        if taken is not None:
            counts["validation"] = _counts(validation_rows, num_taken)
        elif sources.validation:
            counts["validation"] = self._validation.counts(validation_rows, self._validation.num_read)
        return Splits(self._folder, data, files, (self._train, self._validation), weighted, taken, counts)


@dataclass(frozen=True, slots=True)
class Splits:
    """Splits that are decided but not written."""

    folder: Path
    data: DataConfig
    files: list[str]
    sides: tuple[_Side, _Side]
    train: Indices
    """Which training examples are written, in ascending order; a mixture weight may repeat some."""
    taken: Indices | None
    """The training examples taken for validation; None unless data.validation_fraction asks for some."""
    counts: dict[str, SplitCounts]

    def write(self, *, blocked: bool) -> tuple[SplitFacts, SplitFacts | None]:
        """Writes what was decided; returns the facts of train and of validation."""
        train, validation = (side.writer for side in self.sides)
        num_train, num_validation = (side.num_examples for side in self.sides)
        everything = self.folder / ".everything"
        validation_facts: SplitFacts | None = None
        if self.taken is None and np.array_equal(self.train, np.arange(num_train)):
            facts = self._finish(train, blocked)
        else:
            train.abandon()
            (self.folder / "train").rename(everything)
            facts = self._copy(everything, "train", self.train, blocked)
        if num_validation:
            validation_facts = self._finish(validation, blocked)
        else:
            validation.abandon()
            shutil.rmtree(self.folder / "validation")
            if self.taken is not None and len(self.taken):
                validation_facts = self._copy(everything, "validation", self.taken, blocked)
        shutil.rmtree(everything, ignore_errors=True)
        return facts, validation_facts

    def _copy(self, everything: Path, split: str, rows: Indices, blocked: bool) -> SplitFacts:
        writer = SplitWriter(self.folder / split)
        start = 0
        for batch in Examples(everything / "examples.arrow").batches:
            first, last = np.searchsorted(rows, [start, start + len(batch)])
            writer.write(batch.take(rows[first:last] - start))
            start += len(batch)
        return self._finish(writer, blocked)

    def _finish(self, writer: SplitWriter, blocked: bool) -> SplitFacts:
        return writer.finish(
            files=self.files, seq_len_tokens=self.data.seq_len_tokens, packing=self.data.packing, blocked=blocked
        )


class _Side:
    """Training or validation examples while they arrive."""

    def __init__(self, folder: Path) -> None:
        self.writer = SplitWriter(folder)
        self.num_examples = 0
        self.num_read = 0
        self._rows: list[Rows] = []
        self._num_truncated = 0
        self._tokens_cut = 0

    def add(self, chunk: EncodedChunk) -> None:
        self.writer.write(chunk.batch)
        self._rows.append(chunk.rows)
        self.num_examples += len(chunk.rows)
        self.num_read += chunk.num_read
        self._num_truncated += chunk.num_truncated
        self._tokens_cut += chunk.tokens_cut

    def rows(self) -> Rows:
        """All rows as one array; the side gives up its own."""
        rows, self._rows = np.concatenate([np.zeros(0, ROW), *self._rows]), []
        return rows

    def counts(self, kept: Rows, num_read: int) -> SplitCounts:
        dropped = self.num_read - self.num_examples
        truncated, tokens_cut = self._num_truncated, self._tokens_cut
        return _counts(kept, num_read, examples_dropped=dropped, examples_truncated=truncated, tokens_cut=tokens_cut)


def _counts(kept: Rows, num_read: int, **more: int) -> SplitCounts:
    return SplitCounts(
        examples_read=num_read,
        examples_kept=len(kept),
        tokens=int(kept["length"].sum(dtype=np.int64)),
        supervised_tokens=int(kept["supervised"].sum(dtype=np.int64)),
        **more,
    )


def _divide(inputs: npt.NDArray[np.uint64], fraction: float, seed: int) -> tuple[Indices, Indices]:
    """(training, validation) rows. Equal inputs go to the same side, or the validation loss would be optimistic."""
    different, inverse = np.unique(inputs, return_inverse=True)
    if len(different) < 2:
        return np.arange(len(inputs), dtype=np.int64), np.zeros(0, dtype=np.int64)
    count = min(len(different) - 1, max(1, round(fraction * len(different))))
    is_validation = np.zeros(len(different), dtype=bool)
    is_validation[np.random.default_rng([seed, 1]).permutation(len(different))[:count]] = True
    rows = is_validation[inverse]
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
