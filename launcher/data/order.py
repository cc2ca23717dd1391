"""Which packs belong to which optimizer step, rank and micro-step: arithmetic, so a position is one number.

Optimizer step k of an epoch takes packs [k*G, (k+1)*G) of the epoch's permutation. Everything follows from the step
number: resuming skips through nothing, no example is seen twice in an epoch, and no sampler state is saved.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Slots = list[list[list[int]]]
"""[rank][micro-step] -> pack ids."""


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, num_packs: int) -> NDArray[np.int64]:
    """The permutation of pack ids in epoch `epoch` (from 0); read-only, and cached for the following steps."""
    # RandomState, not default_rng: NumPy never changes its stream, and a run may be resumed with a newer NumPy.
    permutation = np.random.RandomState([seed & 0xFFFFFFFF, epoch]).permutation(num_packs).astype(np.int64)
    permutation.setflags(write=False)
    return permutation


@dataclass(frozen=True, slots=True)
class Order:
    """The seekable order of a run."""

    seed: int
    num_packs: int
    global_sequences: int

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.num_packs // self.global_sequences)

    def step_packs(self, step: int) -> NDArray[np.int64]:
        """Pack ids of optimizer step `step`, counted from 0 over the whole run; an epoch's last step may have fewer."""
        epoch, k = divmod(step, self.steps_per_epoch)
        first = k * self.global_sequences
        return epoch_order(self.seed, epoch, self.num_packs)[first : first + self.global_sequences]

    def epoch_of(self, steps_done: int) -> float:
        """Epochs completed after `steps_done` optimizer steps."""
        return steps_done / self.steps_per_epoch

    def ends_epoch(self, steps_done: int) -> bool:
        return steps_done % self.steps_per_epoch == 0


def step_slots(
    packs: NDArray[np.int64],
    pack_lengths: NDArray[np.int64],
    *,
    world_size: int,
    grad_accum_steps: int,
    micro_sequences: int,
) -> Slots:
    """Deals the packs of one step to ranks and micro-steps so that the fullest micro-batch is as small as can be.

    Longest pack first, each to the lightest slot that has room: the loss is a sum, so this changes memory and speed,
    but not the gradient. For a slot that stays empty, the loop runs a zero-weight forward to keep collectives matched.

    Args:
        packs: pack ids of the step.
        pack_lengths: tokens of every pack of the data set, indexed by pack id.
    """
    count = world_size * grad_accum_steps
    if len(packs) > count * micro_sequences:
        raise AssertionError(f"{len(packs)} packs do not fit into {count} slots of {micro_sequences}")
    slots: list[list[int]] = [[] for _ in range(count)]
    # Micro-step before rank, so that a short last step leaves whole micro-steps empty on all ranks alike.
    lightest = [(0, index) for index in range(count)]
    for pack in sorted(packs.tolist(), key=lambda p: (-int(pack_lengths[p]), p)):
        tokens, index = heapq.heappop(lightest)
        slots[index].append(pack)
        if len(slots[index]) < micro_sequences:
            heapq.heappush(lightest, (tokens + int(pack_lengths[pack]), index))
    return [[slots[micro * world_size + rank] for micro in range(grad_accum_steps)] for rank in range(world_size)]


def heaviest_step(
    order: Order,
    sizes: Sequence[NDArray[np.int64]],
    slots: Callable[[int], Slots],
    *,
    micro_sequences: int,
    cost: Callable[..., float],
) -> tuple[int, list[int]]:
    """The step of the first epoch with the most expensive micro-batch, and the packs of that: the first to run out of
    memory.

    Args:
        sizes: of every pack, such as its tokens and its supervised tokens.
        cost: of a micro-batch with the sums of `sizes`; more of any of them never costs less.
    """
    packs = epoch_order(order.seed, 0, order.num_packs)
    steps = [
        packs[start : start + order.global_sequences] for start in range(0, order.num_packs, order.global_sequences)
    ]
    # No micro-batch holds more than the largest packs of its step; only steps that may exceed the best are dealt.
    bounds = [cost(*(int(np.sort(size[step])[-micro_sequences:].sum()) for size in sizes)) for step in steps]

    heaviest: tuple[float, int, list[int]] = (-1.0, 0, [])
    for step in sorted(range(len(bounds)), key=lambda s: -bounds[s]):
        if bounds[step] <= heaviest[0]:
            break
        for micro in (micro for rank in slots(step) for micro in rank if micro):
            spent = cost(*(int(size[micro].sum()) for size in sizes))
            if spent > heaviest[0]:
                heaviest = (spent, step, micro)
    return heaviest[1], heaviest[2]
