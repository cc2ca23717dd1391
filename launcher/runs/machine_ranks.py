"""Which ranks of a run this machine starts, and where they meet the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from launcher.errors import HostLost


def nobody_else() -> None:
    """Stands for `OtherBoxes.lost` in a run on one host."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """This machine's part of a run; ranks are dealt out to machines in blocks."""

    first_rank: int = 0
    num_ranks: int
    master_address: str = "127.0.0.1"
    master_port: int
    interface: str = ""
    """Network interface that leads to the other machines; empty when there are none."""
    lost: Callable[[], HostLost | None] = nobody_else
    """Asked a few times a second: the other host that has gone."""

    @property
    def leads(self) -> bool:
        """Whether this machine keeps the record of the attempt: the first one does."""
        return self.first_rank == 0

    def ranks(self) -> range:
        return range(self.first_rank, self.first_rank + self.num_ranks)
