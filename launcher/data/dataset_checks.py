"""What can be said only about the data set as a whole: copies, overlap with validation data, openings, size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from launcher.config.schema import TaskKind
from launcher.data.audit import MAX_LOCATIONS, Location, Tally
from launcher.data.prompt_prefix import Openings

_POSSIBLE = 20
ADVISED = {
    TaskKind.general: (100, "100 to 500"),
    TaskKind.classification: (100, "100 or more for classification"),
    TaskKind.summarization: (100, "100 to 500 or more for summarization"),
    TaskKind.document_search: (100, "100 or more for document search"),
}
"""Smallest advised number of examples, and the advice in words."""

_FEWEST_TO_COMPARE = 10

Locate = Callable[[int], tuple[str, int]]
"""Example -> (file, line)."""


@dataclass(frozen=True, slots=True)
class Marks:
    """What is remembered of each example of a split: 64-bit digests, and the number of its opening (-1: none)."""

    inputs: npt.NDArray[np.uint64]
    examples: npt.NDArray[np.uint64]
    openings: npt.NDArray[np.int32]
    locate: Locate

    def __len__(self) -> int:
        return len(self.inputs)


def check_whole(train: Marks, validation: Marks, openings: Openings, task: TaskKind, tally: Tally) -> None:
    """Adds the findings about the data set as a whole; `openings` gave the numbers in the marks."""
    if len(train) == 0:
        tally.add("no_examples", Location("training data", 0))
    _check_copies(train, tally)
    _check_overlap(train, validation, tally)
    _check_openings(train, validation, openings, tally)
    check_size(len(train), task, tally)


def check_size(num_examples: int, task: TaskKind, tally: Tally) -> None:
    """Adds the finding of a data set that is smaller than advised."""
    fewest, advice = ADVISED[task]
    if 0 < num_examples < fewest:
        hint = "below what is known to work" if num_examples < _POSSIBLE else "enough to try, few to rely on"
        detail = f"{num_examples} examples, {hint}; about {_POSSIBLE} are possible, {advice} advised"
        tally.add("too_few_examples", Location("training data", 0, detail))


def _check_copies(train: Marks, tally: Tally) -> None:
    first_of = _first_of_same(train.examples)
    copies = np.flatnonzero(first_of != np.arange(len(train)))
    _add(tally, "duplicate", copies, train.locate, lambda i: f"as {_name(train.locate, int(first_of[i]))}")
    first_input = _first_of_same(train.inputs)
    same_input = first_input != np.arange(len(train))
    other_output = train.examples != train.examples[first_input]
    conflicts = np.flatnonzero(same_input & other_output & (first_of == np.arange(len(train))))
    _add(
        tally,
        "conflicting_outputs",
        conflicts,
        train.locate,
        lambda i: f"as {_name(train.locate, int(first_input[i]))}",
    )


def _check_overlap(train: Marks, validation: Marks, tally: Tally) -> None:
    shared = np.flatnonzero(np.isin(validation.inputs, train.inputs))
    _add(tally, "train_validation_overlap", shared, validation.locate, lambda i: "")


def _check_openings(train: Marks, validation: Marks, openings: Openings, tally: Tally) -> None:
    compared = train.openings[train.openings >= 0]
    if len(compared) < _FEWEST_TO_COMPARE:
        return
    # One more for -1: where there is no prompt, nothing is lacking.
    reasons = ["; ".join(why) for why in openings.reasons(compared.tolist())] + [""]
    is_odd = np.array([bool(why) for why in reasons])
    for marks in (train, validation):
        own = [reasons[number] for number in marks.openings]
        odd = np.flatnonzero(is_odd[marks.openings])
        _add(tally, "inconsistent_prefix", odd, marks.locate, own.__getitem__)


def _first_of_same(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """For each value, the index of the first that equals it."""
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    return np.asarray(first[inverse], dtype=np.int64)


def _add(tally: Tally, code: str, indices: npt.NDArray[np.int64], locate: Locate, detail: Callable[[int], str]) -> None:
    if len(indices) == 0:
        return
    for index in indices[:MAX_LOCATIONS].tolist():
        tally.add(code, Location(*locate(index), detail(index)))
    if len(indices) > MAX_LOCATIONS:
        tally.add(code, None, len(indices) - MAX_LOCATIONS)


def _name(locate: Locate, index: int) -> str:
    file, line = locate(index)
    return f"{file}:{line}"
