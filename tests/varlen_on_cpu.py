"""CPU kernels for torch's variable-length attention, so that the path that GPUs take runs on any machine.

They stand below torch's own operators: the wrapper, autograd, checkpointing and compilation above them are the real
ones. What they are given is checked against what flash-attention demands.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.attention import varlen


def register() -> None:
    """For the whole process; a second call changes nothing."""
    if not getattr(register, "is_done", False):
        varlen._varlen_attn.register_kernel("cpu")(_forward)
        varlen._varlen_attn_backward.register_kernel("cpu")(_backward)
        register.is_done = True  # type: ignore[attr-defined]


def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    is_causal: bool = False,
    scale: float | None = None,
    window_size: list[int] | None = None,
    enable_gqa: bool = False,
    seqused_k: Tensor | None = None,
    block_table: Tensor | None = None,
    num_splits: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert torch.equal(cu_seq_q, cu_seq_k) and max_q == max_k >= int(cu_seq_q.diff().max())
    assert query.is_contiguous() and key.is_contiguous() and value.is_contiguous()
    assert enable_gqa or query.shape[1] == key.shape[1]
    pieces, sums = [], []
    for segment in _segments(query, key, value, cu_seq_q, is_causal, scale, window_size):
        scores, _, _, v = segment
        pieces.append((scores.softmax(-1) @ v).transpose(0, 1).to(query.dtype))
        sums.append(scores.logsumexp(-1).float())
    return torch.cat(pieces), torch.cat(sums, 1), torch.zeros(2, dtype=torch.uint64)


def _backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    is_causal: bool,
    rng_state: Tensor,
    scale: float | None = None,
    window_size: list[int] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    # Written out: autograd does not record inside an operator.
    scale = scale or query.shape[2] ** -0.5
    segments = _segments(query, key, value, cu_seq_q, is_causal, scale, window_size)
    gradients: tuple[list[Tensor], ...] = ([], [], [])
    for (scores, q, k, v), piece in zip(segments, grad_out.split(cu_seq_q.diff().tolist()), strict=True):
        upstream, weights = piece.transpose(0, 1).to(q.dtype), scores.softmax(-1)
        of_weights = upstream @ v.transpose(1, 2)
        of_scores = weights * (of_weights - (of_weights * weights).sum(-1, keepdim=True)) * scale
        found = (of_scores @ k, of_scores.transpose(1, 2) @ q, weights.transpose(1, 2) @ upstream)
        for gradient, of_heads, tensor in zip(gradients, found, (query, key, value), strict=True):
            # Heads that share a key or value add up.
            shared = of_heads.unflatten(0, (tensor.shape[1], -1)).sum(1)
            gradient.append(shared.transpose(0, 1).to(tensor.dtype))
    first, second, third = (torch.cat(gradient) for gradient in gradients)
    return first, second, third


def _segments(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bounds: Tensor,
    is_causal: bool,
    scale: float | None,
    window_size: list[int] | None,
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Scores, queries, keys and values of each segment, [heads, tokens, ...]; given are [tokens, heads, width]."""
    left, right = window_size or (-1, -1)
    repeat, scale = query.shape[1] // key.shape[1], scale or query.shape[2] ** -0.5
    for start, end in pairwise(bounds.tolist()):
        q, k, v = (tensor[start:end].transpose(0, 1) for tensor in (query, key, value))
        if q.dtype in (torch.bfloat16, torch.float16):
            q, k, v = q.float(), k.float(), v.float()
        k, v = k.repeat_interleave(repeat, 0), v.repeat_interleave(repeat, 0)
        behind = torch.arange(end - start)[:, None] - torch.arange(end - start)
        is_seen = (behind >= (0 if is_causal or right == 0 else -end)) & (behind <= (end if left < 0 else left))
        yield (q @ k.transpose(1, 2) * scale).masked_fill(~is_seen, -torch.inf), q, k, v
