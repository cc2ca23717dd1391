"""The loss is torch's own cross-entropy, summed; only its memory is ours."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from launcher.train.loss import CHUNK_TOKENS, cross_entropy_sum

VOCABULARY = 37
SIZES = [1, 2, CHUNK_TOKENS - 1, CHUNK_TOKENS, CHUNK_TOKENS + 1, 2 * CHUNK_TOKENS, 2 * CHUNK_TOKENS + 5]


def rows(count: int, dtype: torch.dtype, scale: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    dice = torch.Generator().manual_seed(count)
    logits = (torch.randn(count, VOCABULARY, generator=dice) * scale).to(dtype)
    labels = torch.randint(VOCABULARY, (count,), generator=dice)
    return logits.requires_grad_(), labels


def of_torch(logits: torch.Tensor, labels: torch.Tensor, upstream: float) -> tuple[float, torch.Tensor]:
    """Value and gradient through fp64."""
    exact = logits.detach().double().requires_grad_()
    loss = F.cross_entropy(exact, labels, reduction="sum")
    (loss * upstream).backward()
    assert exact.grad is not None
    return loss.item(), exact.grad


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("upstream", [1.0, 0.0, 1 / 4097, 65536.0])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 2**-7), (torch.float16, 2**-9)])
def test_value_and_gradient_are_those_of_torch(count: int, upstream: float, dtype: torch.dtype, close: float) -> None:
    logits, labels = rows(count, dtype)
    loss = cross_entropy_sum(logits, labels)
    (loss * upstream).backward()
    value, gradient = of_torch(logits, labels, upstream)
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(value, rel=1e-5)
    assert logits.grad is not None and logits.grad.dtype == dtype
    within = gradient.abs() < torch.finfo(dtype).max
    smallest = torch.finfo(dtype).smallest_normal
    torch.testing.assert_close(
        logits.grad[within].double(), gradient[within], rtol=close, atol=close * max(upstream * 1e-3, smallest)
    )


def test_a_loss_scale_saves_the_small_probabilities_of_fp16() -> None:
    logits = torch.zeros(1, 2, dtype=torch.float16)
    logits[0, 1] = -17
    logits.requires_grad_()
    (cross_entropy_sum(logits, torch.tensor([0])) * 65536).backward()
    assert logits.grad is not None
    assert logits.grad[0, 1].item() == pytest.approx(65536 * 4.14e-8, rel=0.01)


def test_no_rows_give_no_loss_and_an_empty_gradient() -> None:
    logits, labels = rows(0, torch.float32)
    loss = cross_entropy_sum(logits, labels)
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad is not None and logits.grad.shape == (0, VOCABULARY)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_logits_do_not_overflow(dtype: torch.dtype) -> None:
    logits = torch.full((3, VOCABULARY), -3e4, dtype=dtype)
    logits[:, 5] = 3e4
    logits.requires_grad_()
    loss = cross_entropy_sum(logits, torch.tensor([5, 5, 6]))
    loss.backward()
    assert loss.item() == pytest.approx(6e4, rel=0.01)
    assert logits.grad is not None and logits.grad.isfinite().all()
    assert logits.grad[2, [5, 6]].tolist() == [1.0, -1.0] and not logits.grad[:2].any()


def test_a_forbidden_token_gets_no_gradient() -> None:
    logits, labels = rows(4, torch.float32)
    with torch.no_grad():
        logits[:, 3] = -torch.inf
    cross_entropy_sum(logits, torch.full_like(labels, 4)).backward()
    assert logits.grad is not None and logits.grad.isfinite().all() and not logits.grad[:, 3].any()


def test_logits_are_not_changed() -> None:
    logits, labels = rows(CHUNK_TOKENS + 1, torch.float32)
    before = logits.detach().clone()
    cross_entropy_sum(logits, labels).backward()
    assert torch.equal(logits.detach(), before)


def test_a_gradient_cannot_be_taken_twice_and_be_wrong() -> None:
    logits, labels = rows(3, torch.float32)
    loss = cross_entropy_sum(logits, labels) * 2
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="inplace"):
        loss.backward()


@pytest.mark.parametrize("count", SIZES)
def test_without_a_gradient_it_is_the_same_sum_and_keeps_nothing(count: int) -> None:
    logits, labels = rows(count, torch.bfloat16)
    expected = cross_entropy_sum(logits.detach().requires_grad_(), labels)
    with torch.no_grad():
        found = cross_entropy_sum(logits, labels)
    assert torch.equal(found, expected.detach())
    assert found.grad_fn is None
