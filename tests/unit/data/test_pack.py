"""Packing: nothing lost, nothing over capacity, fast, and as good as best fit promises."""

from __future__ import annotations

import time
from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.data.pack import Packs, best_fit_decreasing, one_per_pack


def members(packs: Packs) -> list[list[int]]:
    return [packs.examples[a:b].tolist() for a, b in zip(packs.offsets[:-1], packs.offsets[1:], strict=True)]


def naive_best_fit(lengths: list[int], capacity: int) -> int:
    """Number of packs of the textbook algorithm, quadratic."""
    spaces: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [space for space in spaces if space >= length]
        if fitting:
            spaces[spaces.index(min(fitting))] -= length
        else:
            spaces.append(capacity - length)
    return len(spaces)


@given(st.lists(st.integers(1, 50), max_size=80))
def test_every_example_is_in_exactly_one_pack_and_no_pack_is_too_long(lengths: list[int]) -> None:
    packs = members(best_fit_decreasing(np.array(lengths, dtype=np.int32), 50))
    assert sorted(chain.from_iterable(packs)) == list(range(len(lengths)))
    assert all(0 < sum(lengths[i] for i in pack) <= 50 for pack in packs)
    assert all(pack == sorted(pack) for pack in packs)


@given(st.lists(st.integers(1, 50), max_size=80))
def test_as_few_packs_as_the_textbook_algorithm(lengths: list[int]) -> None:
    packs = best_fit_decreasing(np.array(lengths, dtype=np.int32), 50)
    assert len(packs.offsets) - 1 == naive_best_fit(lengths, 50)


def test_the_fullest_fitting_pack_is_chosen() -> None:
    assert members(best_fit_decreasing(np.array([6, 5, 4, 5], dtype=np.int32), 10)) == [[0, 2], [1, 3]]


def test_a_million_lengths_take_seconds_and_fill_nearly_all_room() -> None:
    lengths = np.random.default_rng(0).integers(20, 2048, 1_000_000, dtype=np.int32)
    start = time.process_time()
    packs = best_fit_decreasing(lengths, 2048)
    assert time.process_time() - start < 15
    assert lengths.sum() / ((len(packs.offsets) - 1) * 2048) > 0.99


@pytest.mark.parametrize("length", [0, 11])
def test_lengths_that_cannot_be_packed_are_refused(length: int) -> None:
    with pytest.raises(ValueError, match=r"must be in 1\.\.10"):
        best_fit_decreasing(np.array([3, length], dtype=np.int32), 10)


def test_no_examples_give_no_packs() -> None:
    assert members(best_fit_decreasing(np.zeros(0, dtype=np.int32), 10)) == []


def test_one_per_pack_keeps_the_order() -> None:
    assert members(one_per_pack(3)) == [[0], [1], [2]]
