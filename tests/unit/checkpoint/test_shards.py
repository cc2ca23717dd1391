"""Tensors, optimizer state and generators come back bit for bit, from any number of ranks."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from launcher.checkpoint.shards import (
    _share,
    read_replicated,
    read_replicated_weights,
    read_rng,
    write_replicated,
    write_rng,
)

SHAPES = {"embed.weight": (50, 8), "layer.weight": (8, 8), "layer.bias": (8,), "norm.weight": (8,), "scale": ()}


def parameters(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, nn.Parameter]:
    dice = torch.Generator().manual_seed(seed)
    return {name: nn.Parameter(torch.randn(shape, generator=dice).to(dtype)) for name, shape in SHAPES.items()}


def adamw(named: dict[str, nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(named.values(), lr=0.01, fused=True)


def train(named: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        loss = sum(((p - 1) ** 2).sum() for p in named.values())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[union-attr]
        optimizer.step()


def write(folder: Path, named: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, ranks: int) -> list[Path]:
    folder.mkdir()
    return [
        path
        for rank in range(ranks)
        for path in write_replicated(folder, named=named, optimizer=optimizer, rank=rank, world_size=ranks)
    ]


@pytest.mark.parametrize("ranks", [1, 2, 3, 9])
def test_every_tensor_is_written_by_exactly_one_rank(tmp_path: Path, ranks: int) -> None:
    named = parameters(0)
    optimizer = adamw(named)
    train(named, optimizer, 1)
    paths = write(tmp_path / "c", named, optimizer, ranks)
    assert sorted(paths) == sorted((tmp_path / "c").iterdir())
    names: Counter[str] = Counter()
    for path in paths:
        with safe_open(path, "pt") as file:  # type: ignore[no-untyped-call]
            names.update(file.keys())
    wanted = [*SHAPES, *(f"{key}|{name}" for name in SHAPES for key in ("step", "exp_avg", "exp_avg_sq"))]
    assert names == Counter(wanted)


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=30), st.integers(1, 4))
def test_ranks_write_like_amounts(sizes: list[int], ranks: int) -> None:
    named = {f"p{i}": nn.Parameter(torch.empty(size)) for i, size in enumerate(sizes)}
    shares = [_share(named, rank, ranks) for rank in range(ranks)]
    assert sorted(name for share in shares for name in share) == sorted(named)
    loads = [sum(named[name].numel() for name in share) for share in shares]
    assert max(loads) - min(loads) <= max(sizes)


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_and_optimizer_come_back_bit_for_bit_and_go_on_alike(
    tmp_path: Path, ranks: int, dtype: torch.dtype
) -> None:
    named = parameters(0, dtype)
    optimizer = adamw(named)
    train(named, optimizer, 3)
    write(tmp_path / "c", named, optimizer, ranks)

    fresh = parameters(1, dtype)
    other = adamw(fresh)
    train(fresh, other, 1)  # state that must not survive
    read_replicated(tmp_path / "c", named=fresh, optimizer=other)
    for steps in (0, 2):
        train(named, optimizer, steps)
        train(fresh, other, steps)
        for name in SHAPES:
            assert torch.equal(fresh[name], named[name])
            state, restored = optimizer.state[named[name]], other.state[fresh[name]]
            assert restored.keys() == state.keys()
            assert all(torch.equal(restored[key], state[key]) for key in state)
            assert all(restored[key].dtype == state[key].dtype for key in state)


def test_an_optimizer_that_has_not_stepped_comes_back_empty(tmp_path: Path) -> None:
    named = parameters(0)
    write(tmp_path / "c", named, adamw(named), 2)
    fresh = parameters(1)
    other = adamw(fresh)
    train(fresh, other, 1)
    read_replicated(tmp_path / "c", named=fresh, optimizer=other)
    assert not other.state


def test_reading_keeps_the_parameter_objects(tmp_path: Path) -> None:
    named = parameters(0)
    write(tmp_path / "c", named, adamw(named), 1)
    fresh = parameters(1)
    pointers = {name: p.data_ptr() for name, p in fresh.items()}
    read_replicated(tmp_path / "c", named=fresh, optimizer=adamw(fresh))
    assert {name: p.data_ptr() for name, p in fresh.items()} == pointers


def test_tensors_that_are_not_contiguous_are_written(tmp_path: Path) -> None:
    named = {"w": nn.Parameter(torch.arange(6.0).reshape(2, 3).T)}
    write(tmp_path / "c", named, adamw(named), 1)
    assert torch.equal(read_replicated_weights(tmp_path / "c")["w"], named["w"])


def test_a_missing_tensor_is_an_error(tmp_path: Path) -> None:
    named = parameters(0)
    write(tmp_path / "c", named, adamw(named), 2)
    (tmp_path / "c" / "model-rank00001.safetensors").unlink()
    with pytest.raises(KeyError):
        read_replicated(tmp_path / "c", named=named, optimizer=adamw(named))


def test_another_shape_is_an_error_that_names_the_tensor(tmp_path: Path) -> None:
    named = parameters(0)
    write(tmp_path / "c", named, adamw(named), 1)
    grown = {**parameters(0), "layer.bias": nn.Parameter(torch.zeros(9))}
    with pytest.raises(ValueError, match=r"layer.bias: checkpoint has \(8,\), model \(9,\)"):
        read_replicated(tmp_path / "c", named=grown, optimizer=adamw(grown))


def test_a_disk_that_refuses_is_an_os_error(tmp_path: Path) -> None:
    named = parameters(0)
    with pytest.raises(OSError, match=str(tmp_path / "missing")):
        write_replicated(tmp_path / "missing", named=named, optimizer=adamw(named), rank=0, world_size=1)


def draws() -> list[object]:
    """Something from every generator, the buffered halves of normal pairs included."""
    return [
        torch.rand(3).tolist(),
        torch.randn(3).tolist(),
        np.random.random(3).tolist(),
        np.random.standard_normal(),
        random.random(),
        random.gauss(0, 1),
        random.getrandbits(100),
    ]


@pytest.fixture
def dice() -> None:
    """Seeds every generator."""
    torch.manual_seed(11)
    np.random.seed(12)
    random.seed(13)


@pytest.mark.usefixtures("dice")
@pytest.mark.parametrize("before", range(4))
def test_generators_go_on_where_they_were(tmp_path: Path, before: int) -> None:
    for _ in range(before):  # an odd number of normal draws leaves half a pair in NumPy and in Python
        draws()
    write_rng(tmp_path, 0)
    wanted = [draws() for _ in range(3)]
    torch.manual_seed(99)
    np.random.seed(99)
    random.seed(99)
    draws()
    read_rng(tmp_path, 0)
    assert [draws() for _ in range(3)] == wanted


@pytest.mark.usefixtures("dice")
def test_saving_moves_no_generator(tmp_path: Path) -> None:
    torch.manual_seed(5)
    wanted = torch.rand(2).tolist()
    torch.manual_seed(5)
    write_rng(tmp_path, 0)
    assert torch.rand(2).tolist() == wanted


@pytest.mark.usefixtures("dice")
def test_ranks_have_generators_of_their_own(tmp_path: Path) -> None:
    wanted = []
    for rank in (0, 1):
        torch.manual_seed(rank)
        assert write_rng(tmp_path, rank).name == f"rng-rank{rank:05d}.safetensors"
        wanted.append(torch.rand(2).tolist())
    for rank in (1, 0):
        read_rng(tmp_path, rank)
        assert torch.rand(2).tolist() == wanted[rank]


def test_generator_files_hold_tensors_only(tmp_path: Path) -> None:
    path = write_rng(tmp_path, 0)
    copy = tmp_path / "copy.safetensors"
    save_file(load_file(path), copy)
    assert load_file(copy).keys() >= {"torch", "numpy", "python"}
