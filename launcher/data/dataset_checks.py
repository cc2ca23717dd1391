"""Checks of the data set as a whole: copies, overlap with validation data, openings, size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from launcher.config.schema import TaskKind
from launcher.data.audit import MAX_LOCATIONS, Location, Tally
from launcher.data.encode import Rows
from launcher.data.prompt_prefix import Openings

_POSSIBLE = 20
ADVISED = {
    TaskKind.general: (100, "100 to 500"),
    TaskKind.classification: (100, "100 or more for classification"),
    TaskKind.summarization: (100, "100 to 500 or more for summarization"),
    TaskKind.document_search: (100, "100 or more for document search"),
}
"""Smallest advised number of examples, and the advice as text."""

_FEWEST_TO_COMPARE = 10

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class DatasetChecks:
    """Checks whole splits and adds the findings to `tally`.

    Args:
        files: names of the files that rows refer to.
        openings: gave the numbers of the openings.
    """

    files: Sequence[str]
    openings: Openings
    tally: Tally

    def check(self, train: Rows, validation: Rows, task: TaskKind) -> None:
        if len(train) == 0:
            self.tally.add("no_examples", Location("training data", 0))
        self._check_copies(train)
        self._add("train_validation_overlap", validation, np.isin(validation["input"], train["input"]), lambda i: "")
        self._check_openings(train, validation)
        check_size(len(train), task, self.tally)

    def _check_copies(self, train: Rows) -> None:
        def like(first: Indices) -> Callable[[int], str]:
            return lambda i: f"as {self._locate(train[first[i]])}"

        first_copy, first_input = _first_of_same(train["example"]), _first_of_same(train["input"])
        is_copy = first_copy != np.arange(len(train))
        differs = train["example"] != train["example"][first_input]
        self._add("duplicate", train, is_copy, like(first_copy))
        self._add("conflicting_outputs", train, differs & ~is_copy, like(first_input))

    def _check_openings(self, train: Rows, validation: Rows) -> None:
        compared = train["opening"][train["opening"] >= 0]
        if len(compared) < _FEWEST_TO_COMPARE:
            return
        # One more for -1: without a prompt, nothing is missing.
        reasons = ["; ".join(why) for why in self.openings.reasons(compared.tolist())] + [""]
        for rows in (train, validation):
            own = [reasons[number] for number in rows["opening"].tolist()]
            self._add("inconsistent_prefix", rows, np.array([why != "" for why in own], np.bool_), own.__getitem__)

    def _add(self, code: str, rows: Rows, found: npt.NDArray[np.bool_], detail: Callable[[int], str]) -> None:
        indices = np.flatnonzero(found)
        for index in indices[:MAX_LOCATIONS].tolist():
            self.tally.add(code, self._locate(rows[index], detail(index)))
        if len(indices) > MAX_LOCATIONS:
            self.tally.add(code, None, len(indices) - MAX_LOCATIONS)

    def _locate(self, row: np.void, detail: str = "") -> Location:
        return Location(self.files[row["file"]], int(row["line"]), detail)


def check_size(num_examples: int, task: TaskKind, tally: Tally) -> None:
    """Adds the finding of a data set that is smaller than advised."""
    fewest, advice = ADVISED[task]
    if 0 < num_examples < fewest:
        hint = "below what is known to work" if num_examples < _POSSIBLE else "enough to try, few to rely on"
        detail = f"{num_examples} examples, {hint}; about {_POSSIBLE} are possible, {advice} advised"
        tally.add("too_few_examples", Location("training data", 0, detail))


def _first_of_same(values: npt.NDArray[np.uint64]) -> Indices:
    """For each value, the index of the first that equals it."""
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    return np.asarray(first[inverse], dtype=np.int64)
