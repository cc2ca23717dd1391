"""One micro-batch: the examples of some packs end to end in a single row, and the labels of the supervised tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from launcher.data.prepared import Prepared


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Tensors of one forward pass; T tokens, S segments (examples), L labelled positions.

    `labels[j]` is the token that follows position `keep[j]`; the first token of an example is never a label.
    """

    input_ids: Tensor
    """[1, T] int64."""
    position_ids: Tensor
    """[1, T] int64, restarting at each example."""
    cu_seq_lens: Tensor
    """[S + 1] int32."""
    max_length: int
    keep: Tensor
    """[L] int64, positions whose next token is supervised."""
    labels: Tensor
    """[L] int64."""
    weight: float
    """1, or 0 for a stand-in that only keeps collectives matched."""

    def model_inputs(self) -> dict[str, object]:
        """Keyword arguments of the model's forward."""
        return {
            "input_ids": self.input_ids,
            "position_ids": self.position_ids,
            "cu_seq_lens_q": self.cu_seq_lens,
            "cu_seq_lens_k": self.cu_seq_lens,
            "max_length_q": self.max_length,
            "max_length_k": self.max_length,
            "logits_to_keep": self.keep,
            "use_cache": False,
        }


def make_micro_batch(data: Prepared, packs: Sequence[int], *, stand_in: int, device: torch.device) -> MicroBatch:
    """The row of some packs; without any, a zero-weight row of pack `stand_in`."""
    weight = 1.0 if packs else 0.0
    ids = [int(i) for pack in (packs or [stand_in]) for i in data.pack(pack)]
    tokens = [data.tokens(i) for i in ids]
    lengths = [len(t) for t in tokens]
    bounds = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    row = np.concatenate(tokens).astype(np.int64)
    is_label = np.concatenate([data.mask(i) for i in ids]).astype(bool)
    is_label[bounds[:-1]] = False
    targets = np.flatnonzero(is_label)
    if len(targets) == 0:
        # The head must run on every rank, even if nothing is supervised; the row then counts for nothing.
        weight, targets = 0.0, np.array([min(1, len(row) - 1)])
    return MicroBatch(
        input_ids=_on(device, row)[None],
        position_ids=_on(device, np.concatenate([np.arange(n) for n in lengths]))[None],
        cu_seq_lens=_on(device, bounds),
        max_length=max(lengths),
        keep=_on(device, np.maximum(targets - 1, 0)),
        labels=_on(device, row[targets]),
        weight=weight,
    )


def _on(device: torch.device, values: np.ndarray[Any, Any]) -> Tensor:
    """The values on the device. A copy to a GPU waits for nothing, as it comes from pinned memory."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
