"""A micro-batch is its examples end to end, with labels exactly where a next token is supervised."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from launcher.data.prepared import Prepared, SplitWriter, TokenBatch
from launcher.train.micro_batch import make_micro_batch
from tests.dist.rig import write_split

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("packed")
    write_split(folder / "train", num_examples=30, seed=3, packing=True)
    return Prepared.open(folder, "train")


def of(folder: Path, examples: list[tuple[list[int], list[int]]]) -> Prepared:
    """A data set of given (tokens, mask), one example a pack."""
    writer = SplitWriter(folder / "train")
    lengths = [len(tokens) for tokens, _ in examples]
    writer.write(
        TokenBatch(
            tokens=np.concatenate([tokens for tokens, _ in examples]).astype(np.int32),
            mask=np.concatenate([mask for _, mask in examples]).astype(np.uint8),
            offsets=np.cumsum([0, *lengths]).astype(np.int32),
            file=np.zeros(len(examples), np.int32),
            line=np.arange(1, len(examples) + 1),
        )
    )
    writer.finish(files=["given"], seq_len_tokens=64, packing=False, blocked=False)
    return Prepared.open(folder, "train")


def test_the_row_is_the_examples_end_to_end(packed: Prepared) -> None:
    batch = make_micro_batch(packed, [2, 0], stand_in=0, device=CPU)
    ids = [*packed.pack(2).tolist(), *packed.pack(0).tolist()]
    assert batch.input_ids[0].tolist() == [t for i in ids for t in packed.tokens(i).tolist()]
    assert batch.position_ids[0].tolist() == [p for i in ids for p in range(packed.lengths[i])]
    assert batch.cu_seq_lens.diff().tolist() == [packed.lengths[i] for i in ids]
    assert (batch.cu_seq_lens.dtype, batch.cu_seq_lens[0].item()) == (torch.int32, 0)
    assert batch.max_length == max(packed.lengths[i] for i in ids)
    assert batch.input_ids.shape[1] == packed.pack_lengths[[0, 2]].sum()


def test_labels_are_the_next_tokens_of_supervised_positions_only(packed: Prepared) -> None:
    for pack in range(packed.num_packs):
        batch = make_micro_batch(packed, [pack], stand_in=0, device=CPU)
        wanted, start = [], 0
        for i in packed.pack(pack).tolist():
            tokens, mask = packed.tokens(i), packed.mask(i)
            wanted += [(start + at - 1, tokens[at]) for at in range(1, len(tokens)) if mask[at]]
            start += len(tokens)
        assert list(zip(batch.keep.tolist(), batch.labels.tolist(), strict=True)) == wanted
        assert torch.equal(batch.input_ids[0, batch.keep + 1], batch.labels)
        assert len(wanted) == packed.pack_supervised[pack]
        assert batch.weight == 1.0


def test_the_first_token_of_an_example_is_never_a_label(tmp_path: Path) -> None:
    data = of(tmp_path, [([5, 6], [1, 1]), ([7, 8, 9], [1, 0, 1])])
    batch = make_micro_batch(data, [0, 1], stand_in=0, device=CPU)
    assert (batch.keep.tolist(), batch.labels.tolist()) == ([0, 3], [6, 9])


def test_a_stand_in_counts_for_nothing_but_runs_the_head(packed: Prepared) -> None:
    batch = make_micro_batch(packed, [], stand_in=1, device=CPU)
    assert batch.weight == 0.0
    assert batch.input_ids.shape[1] == packed.pack_lengths[1] and len(batch.labels) > 0


@pytest.mark.parametrize("examples", [[([5, 6, 7], [0, 0, 0])], [([5], [1])], [([5], [0]), ([6, 7], [0, 0])]])
def test_a_row_without_labels_counts_for_nothing_but_runs_the_head(
    tmp_path: Path, examples: list[tuple[list[int], list[int]]]
) -> None:
    batch = make_micro_batch(of(tmp_path, examples), list(range(len(examples))), stand_in=0, device=CPU)
    assert batch.weight == 0.0
    assert len(batch.keep) == len(batch.labels) == 1 and 0 <= batch.keep.item() < batch.input_ids.shape[1]


def test_the_model_is_told_where_examples_end(packed: Prepared) -> None:
    inputs = make_micro_batch(packed, [0], stand_in=0, device=CPU).model_inputs()
    assert inputs["cu_seq_lens_q"] is inputs["cu_seq_lens_k"]
    assert "attention_mask" not in inputs and inputs["use_cache"] is False


def test_copies_to_a_gpu_come_from_pinned_memory_and_wait_for_nothing(
    packed: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy that waits would wait for the GPU's work on the micro-batch before, and be counted as waiting for data."""
    copies: list[tuple[bool, bool]] = []
    pinned: set[int] = set()

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        pinned.add(tensor.data_ptr())
        return tensor

    def to(tensor: torch.Tensor, device: torch.device, *, non_blocking: bool = False) -> torch.Tensor:
        assert device.type == "cuda"
        copies.append((tensor.data_ptr() in pinned, non_blocking))
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.Tensor, "to", to)
    make_micro_batch(packed, [0], stand_in=0, device=torch.device("cuda"))
    assert copies == [(True, True)] * 5
