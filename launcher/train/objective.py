"""The training objective: the loss of a batch, its weight, and the metrics reported with every step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from launcher.data.prepared import Prepared
from launcher.train.loss import cross_entropy_sum
from launcher.train.micro_batch import MicroBatch

Forward = Callable[[dict[str, object]], Tensor]
"""`Engine.forward`: keyword arguments of the model in, logits out."""


@dataclass(frozen=True, slots=True)
class BatchLoss:
    """Sums over one micro-batch. The loop divides them by the weight of all micro-batches on all ranks."""

    total: Tensor
    """Scalar fp32 with gradient."""
    weight: int
    metrics: dict[str, Tensor] = field(default_factory=dict)
    """Scalars without gradient, one for each of `Objective.metrics`."""


class Objective(Protocol):
    """Loss and metrics of a step are weighted means, the same for every number of ranks."""

    metrics: tuple[str, ...]
    """Names of further numbers of each step, as in metrics.jsonl and the trackers."""

    def step_weight(self, data: Prepared, packs: NDArray[np.int64]) -> int:
        """Total weight of these packs, from the data alone, because ranks divide by it before they communicate."""

    def loss(self, forward: Forward, batch: MicroBatch) -> BatchLoss:
        """Runs the model on this rank's micro-batch."""


class SupervisedCrossEntropy:
    """Mean cross-entropy over the supervised tokens."""

    metrics: tuple[str, ...] = ()

    def step_weight(self, data: Prepared, packs: NDArray[np.int64]) -> int:
        return int(data.pack_supervised[packs].sum())

    def loss(self, forward: Forward, batch: MicroBatch) -> BatchLoss:
        return BatchLoss(cross_entropy_sum(forward(batch.model_inputs()), batch.labels), weight=len(batch.labels))
