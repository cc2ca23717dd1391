"""Attention over a row of concatenated examples that never crosses an example boundary.

Two kernels are registered with transformers under our own names. Both read `cu_seq_lens_q`, the argument of
flash-attention, which the model's forward passes on. A model that does not pass it on fails here.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from launcher.errors import ModelError

SEGMENTS = "launcher_segments"
VARLEN = "launcher_varlen"


def register_attention() -> None:
    """Registers both kernels with transformers. Ranks: all, before the model is loaded."""
    # Without a mask function of their own, so transformers builds no T x T mask.
    AttentionInterface.register(SEGMENTS, _segments)
    AttentionInterface.register(VARLEN, _varlen)


def implementation(name: str) -> str:
    """transformers' name for the kernel that `Derived.attention` names."""
    return {"segments": SEGMENTS, "varlen": VARLEN}.get(name, name)


def _checked_bounds(cu_seq_lens_q: Tensor | None, kwargs: dict[str, object]) -> Tensor:
    """Raises: ModelError when the model needs more than the kernels can do."""
    if cu_seq_lens_q is None:
        raise ModelError(
            "this model does not pass cu_seq_lens_q to its attention layers, so examples would see each other; "
            "it cannot be tuned with launcher's attention: set model.attention=flash_attention_2 if it supports that"
        )
    for key in ("softcap", "s_aux"):
        if kwargs.get(key) is not None:
            raise ModelError(
                f"this model's attention uses {key}, which the built-in kernels do not compute; "
                "set model.attention=flash_attention_2"
            )
    return cu_seq_lens_q


def _buckets(lengths: list[int]) -> list[list[int]]:
    """Segment indices grouped so that padding each group to its longest wastes at most a quarter of it."""
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if groups and lengths[i] * 4 >= lengths[groups[-1][0]] * 3:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


@torch.compiler.disable
def _segments(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    cu_seq_lens_q: Tensor | None = None,
    sliding_window: int | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Causal attention, segment by segment; segments of similar length share one padded call.

    Right padding needs no mask: under causal attention no real token sees a later pad, and pad rows are dropped.

    Args:
        query: [1, heads, tokens, head_dim]; key and value [1, kv_heads, tokens, head_dim].
        cu_seq_lens_q: [segments + 1] int32, cumulative lengths.
    Returns: [1, tokens, heads, head_dim].
    """
    bounds = _checked_bounds(cu_seq_lens_q, kwargs).tolist()
    lengths = [end - start for start, end in pairwise(bounds)]
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # [tokens, heads, head_dim]
    pieces: list[Tensor] = [q.new_empty(0)] * len(lengths)
    for group in _buckets(lengths):
        longest = lengths[group[0]]
        q_g, k_g, v_g = (
            nn.utils.rnn.pad_sequence([x[bounds[i] : bounds[i + 1]] for i in group], batch_first=True).transpose(1, 2)
            for x in (q, k, v)
        )  # [segments of the group, heads, longest, head_dim]
        mask = None
        if sliding_window is not None and longest > sliding_window:
            offset = torch.arange(longest, device=q.device)
            distance = offset[:, None] - offset[None, :]
            mask = (distance >= 0) & (distance < sliding_window)
        out = F.scaled_dot_product_attention(
            q_g,
            k_g,
            v_g,
            attn_mask=mask,
            dropout_p=dropout if module.training else 0.0,
            is_causal=mask is None,
            scale=scaling,
            enable_gqa=q.shape[1] != k.shape[1],
        ).transpose(1, 2)
        for row, i in enumerate(group):
            pieces[i] = out[row, : lengths[i]]
    return torch.cat(pieces)[None], None


def _as_computed(x: Tensor) -> Tensor:
    """In the precision of autocast, if that is on: it casts for PyTorch's own attention, but does not know this kernel.

    Weights in fp32 give rotary factors in fp32, and so queries and keys in fp32.
    """
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


def _varlen(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    sliding_window: int | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """The same with PyTorch's own variable-length flash kernel (CUDA, bf16 or fp16). Shapes as in `_segments`."""
    from torch.nn.attention.varlen import varlen_attn

    bounds = _checked_bounds(cu_seq_lens_q, kwargs)
    if dropout and module.training:
        raise ModelError("model.attention=varlen has no dropout; set model.attention=segments for this model")
    longest = max_length_q if max_length_q is not None else int(bounds.diff().max())
    q, k, v = (_as_computed(x[0].transpose(0, 1)).contiguous() for x in (query, key, value))
    out = varlen_attn(
        q,
        k,
        v,
        bounds,
        bounds,
        longest,
        longest,
        scale=scaling,
        # transformers counts the token itself in its window, the kernel counts only those to the left.
        window_size=(-1 if sliding_window is None else sliding_window - 1, 0),
        enable_gqa=q.shape[1] != k.shape[1],
    )
    assert isinstance(out, Tensor)
    return out[None], None
