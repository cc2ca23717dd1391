"""Which ranks of a run this machine starts, and where they meet the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


def nobody_else() -> str:
    """What a run on one machine answers when asked whether another machine was lost."""
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """This machine's part of a run; ranks are dealt out to machines in blocks."""

    first_rank: int = 0
    num_ranks: int
    master_address: str = "127.0.0.1"
    master_port: int
    interface: str = ""
    """Network interface that leads to the other machines; empty when there are none."""
    lost: Callable[[], str] = nobody_else
    """Asked a few times a second: which other machine has gone and how, or an empty text."""

    @property
    def leads(self) -> bool:
        """Whether this machine keeps the record of the attempt: the first one does."""
        return self.first_rank == 0

    def ranks(self) -> range:
        return range(self.first_rank, self.first_rank + self.num_ranks)
