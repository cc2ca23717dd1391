"""The order of the data: the same for ever, every pack once an epoch, dealt out evenly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.data.order import Order, Slots, epoch_order, heaviest_step, step_slots

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=24)


# These values must never change: a run resumed with a newer NumPy would see some examples twice and others never.
@pytest.mark.parametrize(
    ("seed", "epoch", "order"),
    [
        (0, 0, [11, 4, 0, 2, 3, 7, 1, 6, 8, 10, 5, 9]),
        (0, 1, [8, 11, 5, 9, 4, 10, 1, 0, 3, 2, 6, 7]),
        (7, 0, [5, 11, 0, 1, 7, 3, 4, 10, 9, 6, 2, 8]),
        (-1, 0, [0, 6, 4, 5, 11, 10, 7, 3, 9, 1, 8, 2]),
    ],
)
def test_the_order_of_an_epoch_is_the_same_for_ever(seed: int, epoch: int, order: list[int]) -> None:
    assert epoch_order(seed, epoch, 12).tolist() == order


def test_the_order_of_many_packs_is_the_same_for_ever() -> None:
    order = epoch_order(3, 2, 100_000)
    assert order[:6].tolist() == [72148, 76584, 5510, 95955, 9331, 10239]
    assert order.dtype == np.int64


@given(st.integers(0, 2**31), st.integers(0, 50), st.integers(1, 300))
def test_an_epoch_is_a_permutation(seed: int, epoch: int, num_packs: int) -> None:
    assert sorted(epoch_order(seed, epoch, num_packs).tolist()) == list(range(num_packs))


def test_epochs_and_seeds_differ() -> None:
    orders = {tuple(epoch_order(seed, epoch, 50).tolist()) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


def test_the_order_cannot_be_changed_by_who_reads_it() -> None:
    with pytest.raises(ValueError, match="read-only"):
        epoch_order(0, 0, 5)[0] = 3


@given(st.integers(1, 60), st.integers(1, 70), st.integers(0, 3))
def test_every_pack_comes_exactly_once_an_epoch(num_packs: int, global_sequences: int, epoch: int) -> None:
    order = Order(seed=5, num_packs=num_packs, global_sequences=global_sequences)
    first = epoch * order.steps_per_epoch
    steps = [order.step_packs(step).tolist() for step in range(first, first + order.steps_per_epoch)]
    assert sorted(pack for packs in steps for pack in packs) == list(range(num_packs))
    assert all(len(packs) == global_sequences for packs in steps[:-1]) and steps[-1]


def test_positions_are_counted_in_epochs() -> None:
    order = Order(seed=0, num_packs=10, global_sequences=4)
    assert order.steps_per_epoch == 3
    assert [order.epoch_of(steps) for steps in (0, 3, 6)] == [0.0, 1.0, 2.0]
    assert [steps for steps in range(1, 10) if order.ends_epoch(steps)] == [3, 6, 9]


@given(LENGTHS, st.integers(1, 4), st.integers(1, 4), st.data())
def test_slots_hold_every_pack_once_and_are_balanced(
    lengths: list[int], world_size: int, grad_accum_steps: int, data: st.DataObject
) -> None:
    count = world_size * grad_accum_steps
    least = -(-len(lengths) // count)
    micro_sequences = data.draw(st.integers(least, len(lengths)))
    slots = step_slots(
        np.arange(len(lengths)),
        np.array(lengths),
        world_size=world_size,
        grad_accum_steps=grad_accum_steps,
        micro_sequences=micro_sequences,
    )
    assert len(slots) == world_size and all(len(rank) == grad_accum_steps for rank in slots)
    filled = [micro for rank in slots for micro in rank]
    assert sorted(pack for micro in filled for pack in micro) == list(range(len(lengths)))
    assert all(len(micro) <= micro_sequences for micro in filled)
    # A slot stays empty only when there are fewer packs than slots.
    assert sum(not micro for micro in filled) == max(count - len(lengths), 0)
    tokens = [sum(lengths[pack] for pack in micro) for micro in filled if len(micro) < micro_sequences]
    if len(tokens) == count:  # no slot was closed for being full
        assert max(tokens) - min(tokens) <= max(lengths)


@given(LENGTHS, st.integers(2, 3), st.integers(2, 4))
def test_a_short_step_leaves_whole_micro_steps_empty_on_all_ranks(
    lengths: list[int], world_size: int, grad_accum_steps: int
) -> None:
    packs = np.arange(min(len(lengths), world_size * (grad_accum_steps - 1)))
    slots = step_slots(
        packs, np.array(lengths), world_size=world_size, grad_accum_steps=grad_accum_steps, micro_sequences=1
    )
    working = [sum(bool(rank[micro]) for rank in slots) for micro in range(grad_accum_steps)]
    assert working == sorted(working, reverse=True) and working[-1] == 0
    assert sum(0 < ranks < world_size for ranks in working) <= 1


def test_more_packs_than_fit_are_refused() -> None:
    with pytest.raises(AssertionError, match="5 packs do not fit into 2 slots of 2"):
        step_slots(np.arange(5), np.ones(5, np.int64), world_size=2, grad_accum_steps=1, micro_sequences=2)


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(1, 60), st.floats(0, 1)), min_size=1, max_size=150),
    st.integers(1, 2),
    st.integers(1, 2),
    st.integers(1, 3),
    st.sampled_from([0, 1, 4]),
)
def test_the_heaviest_step_is_the_heaviest(
    packs: list[tuple[int, float]], world_size: int, grad_accum_steps: int, micro_sequences: int, logits: int
) -> None:
    lengths = [length for length, _ in packs]
    global_sequences = world_size * grad_accum_steps * micro_sequences
    order = Order(seed=1, num_packs=len(lengths), global_sequences=global_sequences)
    layout = {
        "world_size": world_size,
        "grad_accum_steps": grad_accum_steps,
        "micro_sequences": micro_sequences,
    }
    pack_lengths = np.array(lengths)
    supervised = np.array([int(length * share) for length, share in packs])

    def cost(tokens: int, supervised: int) -> float:
        return tokens + max(10, logits * supervised)

    def slots(step: int) -> Slots:
        return step_slots(order.step_packs(step), pack_lengths, **layout)

    fullest = [
        max(cost(int(pack_lengths[m].sum()), int(supervised[m].sum())) for rank in slots(step) for m in rank if m)
        for step in range(order.steps_per_epoch)
    ]
    sizes = (pack_lengths, supervised)
    step, heaviest = heaviest_step(order, sizes, slots, micro_sequences=micro_sequences, cost=cost)
    assert cost(*(int(size[heaviest].sum()) for size in sizes)) == fullest[step] == max(fullest)


def test_the_heaviest_step_may_be_neither_the_longest_nor_the_one_with_most_tokens() -> None:
    decoys = [[20, 1, 1, 1]] * 20 + [[10, 10, 10, 10]] * 20
    steps = [*decoys, [12, 12, 12, 1]]
    order = Order(seed=0, num_packs=4 * len(steps), global_sequences=4)
    lengths = np.zeros(order.num_packs, np.int64)
    lengths[epoch_order(0, 0, order.num_packs)] = np.concatenate(steps)

    def slots(step: int) -> Slots:
        return step_slots(order.step_packs(step), lengths, world_size=2, grad_accum_steps=1, micro_sequences=2)

    step, packs = heaviest_step(order, [lengths], slots, micro_sequences=2, cost=float)
    assert (step, int(lengths[packs].sum())) == (len(steps) - 1, 24)
