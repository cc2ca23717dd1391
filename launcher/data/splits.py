"""Writes encoded chunks as splits: validation fraction, mixture weights, counts, and checks of the whole dataset."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
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
        self._files = [name for name, _ in self.formats]
        self._counts: dict[str, SplitCounts] = {}
        self._chosen: Indices = np.zeros(0, np.int64)
        """Training examples to write, in ascending order; a mixture weight may repeat some."""
        self._taken: Indices = np.zeros(0, np.int64)
        """Examples of the training sources that data.validation_fraction takes for validation."""

    def add(self, chunk: EncodedChunk) -> None:
        self.tally.merge(chunk.tally)
        chunk.rows["opening"] = [self._openings.number(opening) for opening in chunk.openings]
        side = self._train if chunk.source < len(self._sources.train) else self._validation
        side.add(chunk)

    def choose(self) -> None:
        """Decides which example goes into which split, and adds the findings about the whole to the tally."""
        data, sources = self._data, self._sources
        rows, validation_rows = self._train.rows(), self._validation.rows()
        chosen = np.arange(len(rows), dtype=np.int64)
        divides = not sources.validation and data.validation_fraction > 0
        if divides:
            chosen, self._taken = _divide(rows["input"], data.validation_fraction, data.seed)
            validation_rows = rows[self._taken]
        parts = np.array([source.part for source in sources.train], dtype=np.int64)
        self._chosen = _weigh(chosen, parts[rows["file"][chosen]], sources.weights, data.seed)
        self._counts["train"] = self._train.counts(rows[self._chosen], num_taken=len(self._taken))
        if divides:
            self._counts["validation"] = _counts(validation_rows, len(self._taken))
        elif sources.validation:
            self._counts["validation"] = self._validation.counts(validation_rows)
        # Copies and openings are judged on the examples as given, not as repeated by a mixture weight.
        DatasetChecks(self._files, self._openings, self.tally).check(rows[chosen], validation_rows, data.task)
        if sources.validation and len(validation_rows) == 0:
            self.tally.add("no_examples", Location("validation data", 0))

    def audit(self) -> Audit:
        """The findings so far, after `choose`."""
        formats = {name: kind.value for name, kind in self.formats if kind is not None}
        return Audit(self.tally.findings(self._data.allow), self._counts, formats, tuple(self._data.allow))

    def write(self, *, blocked: bool) -> tuple[SplitFacts, SplitFacts | None]:
        """Writes the splits after `choose`; returns the facts of train and of validation."""
        train, validation = self._train, self._validation
        everything = self._folder / ".everything"
        validation_facts: SplitFacts | None = None
        if np.array_equal(self._chosen, np.arange(train.num_examples)):
            facts = self._finish(train.writer, blocked)
        else:
            train.writer.abandon()
            (self._folder / "train").rename(everything)
            facts = self._copy(everything, "train", self._chosen, blocked)
        if validation.num_examples:
            validation_facts = self._finish(validation.writer, blocked)
        else:
            validation.writer.abandon()
            shutil.rmtree(self._folder / "validation")
            if len(self._taken):
                validation_facts = self._copy(everything, "validation", self._taken, blocked)
        shutil.rmtree(everything, ignore_errors=True)
        return facts, validation_facts

    def _copy(self, everything: Path, split: str, rows: Indices, blocked: bool) -> SplitFacts:
        writer = SplitWriter(self._folder / split)
        start = 0
        for batch in Examples(everything / "examples.arrow").batches:
            first, last = np.searchsorted(rows, [start, start + len(batch)])
            writer.write(batch.take(rows[first:last] - start))
            start += len(batch)
        return self._finish(writer, blocked)

    def _finish(self, writer: SplitWriter, blocked: bool) -> SplitFacts:
        return writer.finish(
            files=self._files, seq_len_tokens=self._data.seq_len_tokens, packing=self._data.packing, blocked=blocked
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

    def counts(self, kept: Rows, *, num_taken: int = 0) -> SplitCounts:
        """Counts of this side, of which `kept` is written and `num_taken` went to the other."""
        return _counts(
            kept,
            self.num_read - num_taken,
            examples_dropped=self.num_read - self.num_examples,
            examples_truncated=self._num_truncated,
            tokens_cut=self._tokens_cut,
        )


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
