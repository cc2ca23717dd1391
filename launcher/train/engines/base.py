"""What every engine does."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, slots=True)
class StepResult:
    """What an optimizer step did. Not applied: a gradient was not finite, on any rank; weights are untouched."""

    grad_norm: float
    applied: bool


class Engine(Protocol):
    """The same few verbs for every strategy. Ranks: all, in step."""

    def forward(self, inputs: dict[str, object]) -> Tensor:
        """Logits [L, vocab] at the labelled positions of one row, in the compute precision."""

    def micro_step(self, *, last: bool) -> AbstractContextManager[object]:
        """Surrounds forward and backward of one micro-batch; `last` closes the accumulation and reduces gradients."""

    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of this micro-batch's share of the step's loss."""

    def step(self, lr: float) -> StepResult:
        """Clips and applies the accumulated gradients, or throws them away if any rank's are not finite."""

    def discard(self) -> None:
        """Throws the accumulated gradients away."""

    def set_training(self, training: bool) -> None:
        """Dropout on or off."""

    def save(self, folder: Path) -> list[Path]:
        """Writes this rank's part of the state; returns the files."""

    def load(self, folder: Path) -> None:
        """Restores exactly what `save` wrote."""
