"""AdamW with decay on matrices only."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from launcher.config.schema import OptimConfig, StrategyConfig
from launcher.train.optimizer import make_optimizer, trainable_parameters


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(7, 4)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 7)
        self.head.weight = self.embed.weight
        self.frozen = nn.Linear(4, 4).requires_grad_(False)


def test_trainable_parameters_have_names_and_tied_ones_come_once() -> None:
    assert sorted(trainable_parameters(Tiny())) == ["embed.weight", "head.bias", "norm.bias", "norm.weight"]


def test_norms_and_biases_do_not_decay() -> None:
    model = Tiny()
    optimizer = make_optimizer(trainable_parameters(model), OptimConfig(weight_decay=0.1), StrategyConfig())
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    found = {name: decays[id(p)] for name, p in trainable_parameters(model).items()}
    assert found == {"embed.weight": 0.1, "head.bias": 0.0, "norm.bias": 0.0, "norm.weight": 0.0}


def test_a_matrix_that_zero_3_has_emptied_still_decays() -> None:
    shard = nn.Parameter(torch.empty(0))
    shard.ds_shape = torch.Size([4, 4])  # type: ignore[attr-defined]
    optimizer = make_optimizer({"w": shard}, OptimConfig(weight_decay=0.1), StrategyConfig())
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1]


@pytest.mark.parametrize("only", ["embed.weight", "norm.bias"])
def test_no_group_is_empty(only: str) -> None:
    named = {only: trainable_parameters(Tiny())[only]}
    optimizer = make_optimizer(named, OptimConfig(), StrategyConfig())
    assert [len(group["params"]) for group in optimizer.param_groups] == [1]


def test_a_step_is_that_of_the_formula() -> None:
    optim = OptimConfig(weight_decay=0.1, beta1=0.8, beta2=0.95, eps=1e-6)
    weight = nn.Parameter(torch.tensor([[2.0]], dtype=torch.float64))
    optimizer = make_optimizer({"w": weight}, optim, StrategyConfig())
    value, mean, square, rate = 2.0, 0.0, 0.0, 0.01
    for step, gradient in enumerate([0.5, -0.2, 0.7], start=1):
        for group in optimizer.param_groups:
            group["lr"] = rate
        weight.grad = torch.tensor([[gradient]], dtype=torch.float64)
        optimizer.step()
        mean = 0.8 * mean + 0.2 * gradient
        square = 0.95 * square + 0.05 * gradient**2
        value *= 1 - rate * 0.1
        value -= rate * (mean / (1 - 0.8**step)) / ((square / (1 - 0.95**step)) ** 0.5 + 1e-6)
        assert weight.item() == pytest.approx(value, rel=1e-12)


def test_until_the_loop_sets_a_rate_nothing_moves() -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = make_optimizer({"w": weight}, OptimConfig(weight_decay=0.5), StrategyConfig())
    weight.grad = torch.ones(2, 2)
    optimizer.step()
    assert torch.equal(weight, torch.ones(2, 2))
