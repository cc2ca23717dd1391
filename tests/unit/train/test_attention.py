"""Attention over concatenated examples is each example's own attention: values, gradients, windows, whole models."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from launcher.errors import ModelError
from launcher.train.attention import (
    SEGMENTS,
    VARLEN,
    _as_computed,
    _buckets,
    _segments,
    _varlen,
    implementation,
    register_attention,
)
from tests import varlen_on_cpu

HEADS, KV_HEADS, HEAD_DIM = 4, 2, 8
KERNELS = [pytest.param(_segments, id="segments"), pytest.param(_varlen, id="varlen")]
Kernel = Callable[..., tuple[Tensor, None]]
varlen_on_cpu.register()


def qkv(tokens: int, dtype: torch.dtype, *, kv_heads: int = KV_HEADS, seed: int = 0) -> list[Tensor]:
    dice = torch.Generator().manual_seed(seed)
    shapes = [(1, heads, tokens, HEAD_DIM) for heads in (HEADS, kv_heads, kv_heads)]
    return [torch.randn(shape, dtype=dtype, generator=dice).requires_grad_() for shape in shapes]


def bounds_of(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def one_by_one(
    query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, *, scale: float | None, window: int | None
) -> Tensor:
    """Plain softmax attention of each example alone, written out."""
    repeat = query.shape[1] // key.shape[1]
    pieces = []
    for start, end in pairwise(bounds.tolist()):
        q, k, v = query[0, :, start:end], key[0, :, start:end], value[0, :, start:end]
        k, v = k.repeat_interleave(repeat, 0), v.repeat_interleave(repeat, 0)
        distance = torch.arange(end - start)[:, None] - torch.arange(end - start)
        seen = (distance >= 0) & (distance < (window or end))
        scores = (q @ k.transpose(1, 2)) * (scale or HEAD_DIM**-0.5)
        pieces.append(scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v)
    return torch.cat(pieces, 1).transpose(0, 1)[None]


@pytest.mark.parametrize("kernel", KERNELS)
@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=9),
    kv_heads=st.sampled_from([1, 2, 4]),
    window=st.none() | st.integers(1, 12),
    scale=st.none() | st.just(0.7),
    precision=st.sampled_from([(torch.float64, 1e-12), (torch.float32, 2e-5)]),
)
def test_a_row_equals_each_example_alone(
    kernel: Kernel,
    lengths: list[int],
    kv_heads: int,
    window: int | None,
    scale: float | None,
    precision: tuple[torch.dtype, float],
) -> None:
    dtype, close = precision
    inputs = qkv(sum(lengths), dtype, kv_heads=kv_heads)
    bounds = bounds_of(lengths)
    found, _ = kernel(
        nn.Module(), *inputs, None, scaling=scale, cu_seq_lens_q=bounds, sliding_window=window, max_length_q=40
    )
    wanted = one_by_one(*inputs, bounds, scale=scale, window=window)
    assert found.shape == (1, sum(lengths), HEADS, HEAD_DIM)
    torch.testing.assert_close(found, wanted, rtol=close, atol=close)
    weight = torch.randn(found.shape, dtype=dtype, generator=torch.Generator().manual_seed(1))
    gradients = [torch.autograd.grad((out * weight).sum(), inputs) for out in (found, wanted)]
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=close, atol=close * 10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("kernel", KERNELS)
def test_an_example_never_changes_another(kernel: Kernel, dtype: torch.dtype, window: int | None) -> None:
    lengths = [9, 1, 8, 30, 7, 31, 2]
    bounds = bounds_of(lengths)
    ends = bounds.tolist()
    inputs = [x.detach() for x in qkv(sum(lengths), dtype)]
    before, _ = kernel(nn.Module(), *inputs, None, cu_seq_lens_q=bounds, sliding_window=window)
    for changed, (start, end) in enumerate(pairwise(ends)):
        others = [x.clone() for x in inputs]
        for x in others:
            x[:, :, start:end] = torch.nan
        after, _ = kernel(nn.Module(), *others, None, cu_seq_lens_q=bounds, sliding_window=window)
        for example, (a, b) in enumerate(pairwise(ends)):
            assert torch.equal(after[:, a:b], before[:, a:b]) is (example != changed)


def test_a_token_never_sees_a_later_one() -> None:
    lengths = [12, 11]
    inputs = [x.detach() for x in qkv(sum(lengths), torch.float32)]
    before, _ = _segments(nn.Module(), *inputs, None, cu_seq_lens_q=bounds_of(lengths))
    for x in inputs:
        x[:, :, 7:12] += 3
    after, _ = _segments(nn.Module(), *inputs, None, cu_seq_lens_q=bounds_of(lengths))
    assert torch.equal(after[:, :7], before[:, :7])


@given(st.lists(st.integers(1, 500), min_size=1, max_size=60))
def test_padding_wastes_at_most_a_quarter(lengths: list[int]) -> None:
    groups = _buckets(lengths)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        assert min(lengths[i] for i in group) >= 0.75 * max(lengths[i] for i in group)
        assert lengths[group[0]] == max(lengths[i] for i in group)


def test_dropout_acts_in_training_only() -> None:
    inputs = [x.detach() for x in qkv(20, torch.float32)]
    module = nn.Module()
    outputs = [
        _segments(module.train(training), *inputs, None, dropout=0.5, cu_seq_lens_q=bounds_of([20]))[0]
        for training in (True, False, False)
    ]
    assert torch.equal(outputs[1], outputs[2]) and not torch.equal(outputs[0], outputs[1])


@pytest.mark.parametrize("kernel", [_segments, _varlen])
def test_a_model_that_does_not_hand_the_bounds_on_is_refused(kernel: object) -> None:
    with pytest.raises(ModelError, match=r"does not pass cu_seq_lens_q.*model.attention=flash_attention_2"):
        kernel(nn.Module(), *qkv(3, torch.float32), None)  # type: ignore[operator]


@pytest.mark.parametrize("kernel", [_segments, _varlen])
@pytest.mark.parametrize("key", ["softcap", "s_aux"])
def test_what_the_kernels_do_not_compute_is_refused(kernel: object, key: str) -> None:
    with pytest.raises(ModelError, match=f"uses {key}, which the built-in kernels do not compute"):
        kernel(nn.Module(), *qkv(3, torch.float32), None, cu_seq_lens_q=bounds_of([3]), **{key: 30.0})  # type: ignore[operator]


def test_varlen_refuses_dropout() -> None:
    with pytest.raises(ModelError, match="varlen has no dropout"):
        _varlen(nn.Module(), *qkv(3, torch.float32), None, dropout=0.1, cu_seq_lens_q=bounds_of([3]))


def test_varlen_computes_in_the_precision_of_autocast() -> None:
    x = torch.ones(2)
    assert _as_computed(x).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert _as_computed(x).dtype == torch.bfloat16


def test_kernels_have_names_of_their_own() -> None:
    assert [implementation(name) for name in ("segments", "varlen")] == [SEGMENTS, VARLEN]
    assert implementation("flash_attention_2") == "flash_attention_2"


SHAPE = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "initializer_range": 0.3,  # large enough that attention matters to the answer
}
MODELS = [
    pytest.param(LlamaConfig(**SHAPE), id="llama"),
    pytest.param(MistralConfig(**SHAPE, sliding_window=5), id="mistral, sliding window"),
    pytest.param(Qwen2Config(**SHAPE), id="qwen2"),
    pytest.param(
        Qwen2Config(**SHAPE, use_sliding_window=True, sliding_window=5, max_window_layers=1), id="qwen2, some windows"
    ),
    pytest.param(Qwen3Config(**SHAPE), id="qwen3"),
]
LENGTHS = [11, 1, 17, 12, 3]


def make_model(config: PretrainedConfig, kernel: str) -> nn.Module:
    register_attention()
    torch.manual_seed(0)
    model: nn.Module = AutoModelForCausalLM.from_config(config, attn_implementation=kernel, dtype=torch.float32)
    return model.eval()


def row_inputs(ids: Tensor, lengths: list[int], keep: Tensor) -> dict[str, object]:
    bounds = bounds_of(lengths)
    return {
        "input_ids": ids[None],
        "position_ids": torch.cat([torch.arange(n) for n in lengths])[None],
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
        "logits_to_keep": keep,
        "use_cache": False,
    }


@pytest.mark.parametrize("kernel", [SEGMENTS, VARLEN])
@pytest.mark.parametrize("config", MODELS)
def test_a_model_answers_a_row_of_examples_as_it_answers_each_alone(config: PretrainedConfig, kernel: str) -> None:
    ids = torch.randint(50, (sum(LENGTHS),), generator=torch.Generator().manual_seed(2))
    keep = torch.arange(0, sum(LENGTHS), 2)
    with torch.no_grad():
        row = make_model(config, kernel)(**row_inputs(ids, LENGTHS, keep)).logits[0]
        plain = make_model(config, "eager")
        alone = torch.cat([plain(input_ids=piece[None], use_cache=False).logits[0] for piece in ids.split(LENGTHS)])
        leaking = plain(input_ids=ids[None], use_cache=False).logits[0]
    torch.testing.assert_close(row, alone[keep], rtol=1e-4, atol=1e-4)
    assert (leaking[LENGTHS[0] :] - alone[LENGTHS[0] :]).abs().max() > 0.1


def test_a_model_with_soft_capped_scores_is_refused() -> None:
    config = Gemma2Config(**SHAPE, attn_logit_softcapping=50.0, sliding_window=5)
    model = make_model(config, SEGMENTS)
    with pytest.raises(ModelError, match="softcap"):
        model(**row_inputs(torch.arange(8), [5, 3], torch.arange(8)))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_varlen_compiles_without_breaks_and_not_anew_for_other_lengths(checkpointing: bool) -> None:
    """A new graph for each micro-batch would cost more than compiling saves."""
    model = make_model(LlamaConfig(**SHAPE | {"num_hidden_layers": 1}), VARLEN).train()
    if checkpointing:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, dynamic=True, fullgraph=True)
    graphs = []
    for lengths in (LENGTHS, [5, 9], [23, 2, 2, 7, 1, 1], [44, 18], [8]):
        ids = torch.randint(50, (sum(lengths),))
        inputs = row_inputs(ids, lengths, torch.arange(0, sum(lengths), 2))
        logits = compiled(**inputs).logits
        torch.testing.assert_close(logits, model(**inputs).logits, rtol=1e-4, atol=1e-4)
        logits.sum().backward()
        graphs.append(counter.frame_count)
    assert graphs[1] == graphs[-1] <= 2
