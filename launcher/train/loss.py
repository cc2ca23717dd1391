"""Cross-entropy as a sum over tokens: divided by one global count, it is the same for every number of ranks."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

CHUNK_TOKENS = 1024
"""Rows converted to fp32 at once; limits the extra memory to CHUNK_TOKENS x vocabulary x 4 bytes."""
STORED_SCALE = 2.0**15
"""Factor of the gradient until backward scales it: fp16 holds nothing under 6e-8, and most probabilities of a large
vocabulary are small. A power of two, so that it changes no digit."""


class _CrossEntropySum(torch.autograd.Function):
    """Computes the gradient chunk by chunk in the forward pass, while the fp32 rows exist."""

    @staticmethod
    def forward(ctx: FunctionCtx, logits: Tensor, labels: Tensor) -> Tensor:
        grad = torch.empty_like(logits)
        total = torch.zeros((), dtype=torch.float32, device=logits.device)
        for start in range(0, len(labels), CHUNK_TOKENS):
            rows = slice(start, start + CHUNK_TOKENS)
            log_probs = torch.log_softmax(logits[rows].float(), dim=-1)
            picked = labels[rows, None]
            total -= log_probs.gather(1, picked).sum()
            probs = log_probs.exp_()
            probs.scatter_add_(1, picked, probs.new_full(picked.shape, -1.0))
            grad[rows] = probs.mul_(STORED_SCALE)
            del log_probs, probs  # else the next chunk is made while this one is still there
        ctx.save_for_backward(grad)
        return total

    @staticmethod
    def backward(ctx: FunctionCtx, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (grad,) = ctx.saved_tensors  # type: ignore[attr-defined]
        # In fp32, then rounded once: a scale rounded to bf16 first would differ between layouts by up to 0.4 %.
        for rows in grad.split(CHUNK_TOKENS):
            rows.copy_(rows.float().mul_(grad_outputs[0] / STORED_SCALE))
        return grad, None


def cross_entropy_sum(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum over rows of -log p(label), in fp32.

    Args:
        logits: [rows, vocab], any float dtype; only supervised positions.
        labels: [rows] int64.
    Returns: scalar fp32. Divided by the step's global count of supervised tokens and summed over ranks and
        micro-steps it is the mean loss of the step. DDP and DeepSpeed average gradients over ranks, DeepSpeed over
        micro-steps too, so the engine multiplies back (tests/dist/test_gradients.py).
    Ranks: each its own rows.
    """
    if not (logits.requires_grad and torch.is_grad_enabled()):
        return _sum_without_gradient(logits, labels)
    return _CrossEntropySum.apply(logits, labels)


def _sum_without_gradient(logits: Tensor, labels: Tensor) -> Tensor:
    """The same sum, bit for bit, without memory for a gradient."""
    total = torch.zeros((), dtype=torch.float32, device=logits.device)
    for rows, targets in zip(logits.split(CHUNK_TOKENS), labels.split(CHUNK_TOKENS), strict=True):
        total -= torch.log_softmax(rows.float(), dim=-1).gather(1, targets[:, None]).sum()
    return total
