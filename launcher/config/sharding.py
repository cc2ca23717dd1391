"""The strategies, and which training state each partitions over the ranks. No other module decides by strategy."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class EngineKind(Enum):
    """Implementation of backward, step, save and load: one module of train/engines/ each."""

    replicated = "replicated"
    zero = "zero"


@dataclass(frozen=True, slots=True)
class Sharding:
    """The engine of a strategy, and which parts of the training state it partitions over the ranks."""

    engine: EngineKind
    optimizer: bool = False
    gradients: bool = False
    weights: bool = False

    @property
    def is_replicated(self) -> bool:
        """Whether every rank holds everything."""
        return not (self.optimizer or self.gradients or self.weights)


class StrategyKind(Enum):
    single = "single"
    ddp = "ddp"
    zero1 = "zero1"
    zero2 = "zero2"
    zero3 = "zero3"

    @property
    def sharding(self) -> Sharding:
        return _SHARDINGS[self]


_SHARDINGS = {
    StrategyKind.single: Sharding(EngineKind.replicated),
    StrategyKind.ddp: Sharding(EngineKind.replicated),
    StrategyKind.zero1: Sharding(EngineKind.zero, optimizer=True),
    StrategyKind.zero2: Sharding(EngineKind.zero, optimizer=True, gradients=True),
    StrategyKind.zero3: Sharding(EngineKind.zero, optimizer=True, gradients=True, weights=True),
}
