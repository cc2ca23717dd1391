"""The memory-mapped data set: what is written is what is read, by example and by pack."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from launcher.data.prepared import Prepared, SplitWriter, TokenBatch
from launcher.errors import DataError

EXAMPLES = [([5, 6, 7], [0, 1, 1]), ([8, 9], [0, 1]), ([1, 2, 3, 4], [0, 0, 0, 1]), ([3, 3], [0, 0])]


def batch_of(examples: list[tuple[list[int], list[int]]], first_line: int) -> TokenBatch:
    lengths = [len(tokens) for tokens, _ in examples]
    return TokenBatch(
        tokens=np.array([token for tokens, _ in examples for token in tokens], dtype=np.int32),
        mask=np.array([bit for _, mask in examples for bit in mask], dtype=np.uint8),
        offsets=np.cumsum([0, *lengths]).astype(np.int32),
        file=np.zeros(len(examples), dtype=np.int32),
        line=np.arange(first_line, first_line + len(examples), dtype=np.int64),
    )


def write(folder: Path, *, packing: bool = True, blocked: bool = False) -> Prepared:
    writer = SplitWriter(folder / "train")
    writer.write(batch_of(EXAMPLES[:3], 1))
    writer.write(batch_of([], 0))
    writer.write(batch_of(EXAMPLES[3:], 9))
    writer.finish(files=["a.jsonl"], seq_len_tokens=5, packing=packing, blocked=blocked)
    return Prepared.open(folder, "train", allow_blocked=True)


def test_tokens_and_masks_come_back_across_batches(tmp_path: Path) -> None:
    data = write(tmp_path)
    assert [data.tokens(i).tolist() for i in range(data.num_examples)] == [tokens for tokens, _ in EXAMPLES]
    assert [data.mask(i).tolist() for i in range(data.num_examples)] == [[bool(x) for x in m] for _, m in EXAMPLES]
    assert data.tokens(0).dtype == np.int32 and data.mask(0).dtype == np.bool_


def test_lengths_and_label_counts(tmp_path: Path) -> None:
    data = write(tmp_path)
    assert data.lengths.tolist() == [3, 2, 4, 2] and data.lengths.dtype == np.int32
    assert data.supervised.tolist() == [2, 1, 1, 0] and data.supervised.dtype == np.int32


def test_packs_add_up(tmp_path: Path) -> None:
    data = write(tmp_path)
    packs = [data.pack(p).tolist() for p in range(data.num_packs)]
    assert sorted(chain.from_iterable(packs)) == [0, 1, 2, 3]
    assert data.pack_lengths.tolist() == [sum(data.lengths[pack]) for pack in packs]
    assert data.pack_supervised.tolist() == [sum(data.supervised[pack]) for pack in packs]


def test_without_packing_each_example_is_a_pack(tmp_path: Path) -> None:
    data = write(tmp_path, packing=False)
    assert [data.pack(p).tolist() for p in range(data.num_packs)] == [[0], [1], [2], [3]]


def test_the_source_line_of_every_example_is_known(tmp_path: Path) -> None:
    data = write(tmp_path)
    assert [data.source_line(i) for i in range(4)] == [("a.jsonl", line) for line in (1, 2, 3, 9)]


def test_facts_are_written_to_meta(tmp_path: Path) -> None:
    meta = write(tmp_path).meta
    assert (meta.num_examples, meta.num_tokens, meta.num_supervised_tokens) == (4, 11, 4)
    assert (meta.length_max, meta.num_packs, meta.seq_len_tokens) == (4, 3, 5)


def test_a_split_the_audit_blocked_does_not_open(tmp_path: Path) -> None:
    write(tmp_path, blocked=True)
    with pytest.raises(DataError, match="blocked"):
        Prepared.open(tmp_path, "train")


def test_a_missing_split_says_how_to_make_it(tmp_path: Path) -> None:
    assert not Prepared.exists(tmp_path, "validation")
    with pytest.raises(DataError, match="launcher prepare"):
        Prepared.open(tmp_path, "validation")


def test_an_example_number_out_of_range_is_an_index_error(tmp_path: Path) -> None:
    data = write(tmp_path)
    for number in (-1, 4):
        with pytest.raises(IndexError):
            data.tokens(number)


def test_taking_rows_keeps_order_and_repeats() -> None:
    taken = batch_of(EXAMPLES, 1).take(np.array([2, 0, 2], dtype=np.int64))
    assert taken.tokens.tolist() == [1, 2, 3, 4, 5, 6, 7, 1, 2, 3, 4]
    assert taken.mask.tolist() == [0, 0, 0, 1, 0, 1, 1, 0, 0, 0, 1]
    assert taken.offsets.tolist() == [0, 4, 7, 11] and taken.line.tolist() == [3, 1, 3]


def test_an_empty_split_can_be_written_and_read(tmp_path: Path) -> None:
    writer = SplitWriter(tmp_path / "train")
    writer.finish(files=[], seq_len_tokens=5, packing=True, blocked=False)
    data = Prepared.open(tmp_path, "train")
    assert (data.num_examples, data.num_packs, data.lengths.tolist(), data.pack_lengths.tolist()) == (0, 0, [], [])
