"""The interface of every engine."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from launcher.config.schema import Derived, RunConfig
from launcher.train.world import World


@dataclass(frozen=True, slots=True)
class StepResult:
    """The result of an optimizer step."""

    grad_norm: float
    applied: bool
    """False when a gradient was not finite on any rank; the weights are unchanged then."""


class Engine(Protocol):
    """The same methods for every strategy. Ranks: all, in step."""

    @staticmethod
    def make_accelerator(config: RunConfig, derived: Derived, world: World) -> Accelerator:
        """Called before the model is loaded."""

    def __init__(
        self, accelerator: Accelerator, model: nn.Module, optimizer: Optimizer, config: RunConfig, world: World
    ) -> None: ...

    def forward(self, inputs: dict[str, object]) -> Tensor:
        """Logits [L, vocab] at the labelled positions of one row, in the compute precision."""

    def micro_step(self, *, last: bool) -> AbstractContextManager[object]:
        """Surrounds forward and backward of one micro-batch; `last` closes the accumulation and reduces gradients."""

    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of this micro-batch's share of the step's loss."""

    def step(self, lr: float) -> StepResult:
        """Clips and applies the accumulated gradients, or discards them if those of any rank are not finite."""

    def discard(self) -> None:
        """Drops the accumulated gradients."""

    def set_training(self, training: bool) -> None:
        """Turns dropout on or off."""

    def save(self, folder: Path) -> list[Path]:
        """Writes this rank's part of the state; returns the files."""

    def load(self, folder: Path) -> None:
        """Restores exactly what `save` wrote."""
