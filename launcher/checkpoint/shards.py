"""Writes and reads the files of a checkpoint; reads only verified ones.

Replicated strategies (single, ddp) write safetensors: each rank an equal share of the trained tensors and their
optimizer state. ZeRO writes DeepSpeed's own files, through a file writer that records each one. Generator states are
per rank.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

ZERO_TAG = "zero"
"""Folder of DeepSpeed's files inside a checkpoint."""


def _share(named: Mapping[str, nn.Parameter], rank: int, world_size: int) -> list[str]:
    """Names this rank writes: largest tensor first, each to the lightest rank."""
    loads = [0] * world_size
    mine: list[str] = []
    for name in sorted(named, key=lambda n: (-named[n].numel(), n)):
        lightest = loads.index(min(loads))
        loads[lightest] += named[name].numel()
        if lightest == rank:
            mine.append(name)
    return mine


def write_replicated(
    folder: Path, *, named: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, rank: int, world_size: int
) -> list[Path]:
    """Writes this rank's share of trained tensors and optimizer state; returns the files. Ranks: all."""
    mine = _share(named, rank, world_size)
    if not mine:
        return []
    weights = {name: named[name].detach().contiguous().cpu() for name in mine}
    states = {
        f"{key}|{name}": value.detach().contiguous().cpu()
        for name in mine
        for key, value in optimizer.state.get(named[name], {}).items()
    }
    paths = [folder / f"model-rank{rank:05d}.safetensors", folder / f"optimizer-rank{rank:05d}.safetensors"]
    try:
        save_file(weights, paths[0])
        save_file(states, paths[1])
    except SafetensorError as error:
        raise OSError(f"{folder}: {error}") from error
    return paths


def read_replicated(folder: Path, *, named: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    """Puts saved tensors and optimizer state back, in place. Ranks: all, each reads everything.

    Raises: KeyError if a trained parameter is missing from the files, ValueError if a shape differs.
    """
    weights = read_replicated_weights(folder)
    with torch.no_grad():
        for name, parameter in named.items():
            if weights[name].shape != parameter.shape:
                raise ValueError(f"{name}: checkpoint has {tuple(weights[name].shape)}, model {tuple(parameter.shape)}")
            parameter.copy_(weights[name])
    optimizer.state.clear()
    for path in sorted(folder.glob("optimizer-rank*.safetensors")):
        for key_and_name, value in load_file(path).items():
            key, _, name = key_and_name.partition("|")
            parameter = named[name]
            optimizer.state[parameter][key] = value.to(parameter.device)


def read_replicated_weights(folder: Path) -> dict[str, Tensor]:
    """All trained tensors of a replicated checkpoint, on the CPU."""
    weights: dict[str, Tensor] = {}
    for path in sorted(folder.glob("model-rank*.safetensors")):
        weights.update(load_file(path))
    return weights


def write_rng(folder: Path, rank: int) -> Path:
    """Saves the generators of this rank: torch, CUDA, NumPy, Python; as tensors, so that reading runs no pickle."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    assert name == "MT19937"
    version, internal, gauss_next = random.getstate()
    tensors = {
        "torch": torch.get_rng_state(),
        "numpy": torch.from_numpy(np.concatenate([keys, [position, has_gauss]]).astype(np.int64)),
        "numpy_gauss": torch.tensor([gauss], dtype=torch.float64),
        "python": torch.tensor([version, *internal], dtype=torch.int64),
        "python_gauss": torch.tensor([float("nan") if gauss_next is None else gauss_next], dtype=torch.float64),
    }
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    path = folder / f"rng-rank{rank:05d}.safetensors"
    save_file(tensors, path)
    return path


def read_rng(folder: Path, rank: int) -> None:
    """Restores the generators of this rank."""
    tensors = load_file(folder / f"rng-rank{rank:05d}.safetensors")
    torch.set_rng_state(tensors["torch"])
    *keys, position, has_gauss = tensors["numpy"].tolist()
    np.random.set_state(("MT19937", np.array(keys, np.uint32), position, has_gauss, float(tensors["numpy_gauss"])))
    version, *internal = tensors["python"].tolist()
    gauss = float(tensors["python_gauss"])
    random.setstate((version, tuple(internal), None if gauss != gauss else gauss))
    if "cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["cuda"])
