"""Checks of the files a configuration names, and of the packages and GPUs it needs on this host."""

from __future__ import annotations

import difflib
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

from omegaconf import MISSING

from launcher.config.build import one_of, problem_at
from launcher.config.devices import Gpu
from launcher.config.model_files import name_problem
from launcher.config.schema import Attention, MethodKind, RunConfig, WandbMode
from launcher.config.sharding import EngineKind
from launcher.config.topology import measured_gpu_memory_gib, old_gpu_problems, resolve_topology
from launcher.errors import Problem

BUILT_IN_DATA = ("next_number",)
_TRAINING_PACKAGES = ("torch", "transformers", "accelerate", "peft", "safetensors")


def path_problems(config: RunConfig) -> list[Problem]:
    """Files and folders that cannot be used."""
    problems = [*_data_paths(config), *_runs_dir(config)]
    if config.data.chat_template is not None:
        problems += _file("data.chat_template", config.data.chat_template)
    if config.model.name_or_path != MISSING and (problem := name_problem(config.model.name_or_path)):
        problems.append(problem)
    return problems


def machine_problems(config: RunConfig, gpus: list[Gpu]) -> list[Problem]:
    """Packages and GPUs this host lacks for the run: errors for `launcher train`, warnings for a plan.

    Args:
        gpus: devices.visible_gpus(). Nothing is reported for Slurm jobs, which run on other hosts.
    """
    return [] if config.cluster.is_slurm else [*_missing_packages(config), *_missing_gpus(config, gpus)]


def _data_paths(config: RunConfig) -> Iterator[Problem]:
    data = config.data
    named = [("data.path", data.path), ("data.validation_path", data.validation_path)]
    named += [(f"data.mixture[{index}].path", source.path) for index, source in enumerate(data.mixture)]
    for key, path in named:
        if path is not None and path != MISSING:
            yield from _data_path(key, path)


def _data_path(key: str, path: str) -> Iterator[Problem]:
    kind, colon, rest = path.partition(":")
    if colon and kind == "builtin":
        if rest not in BUILT_IN_DATA:
            yield Problem(key, path, "there is no such built-in dataset", one_of(rest, list(BUILT_IN_DATA)))
    elif colon and kind == "hub":
        if rest.count("/") > 1 or not all(rest.split("/")):
            yield Problem(key, path, "is not a Hub dataset", "Write hub:owner/name")
    else:
        yield from _file(key, path, or_folder=True)


def _file(key: str, text: str, *, or_folder: bool = False) -> Iterator[Problem]:
    path = Path(text).expanduser()
    if len(os.fsencode(path.name)) > 255 or len(os.fsencode(path)) > 4095:
        yield Problem(key, f"{text[:60]}...", "is too long for a file name")
    elif path.is_file() or (or_folder and path.is_dir()):
        if not os.access(path, os.R_OK):
            yield Problem(key, text, "cannot be read by this user")
    elif path.exists():
        yield Problem(key, text, "is not a file")
    else:
        yield Problem(key, text, "does not exist", _nearest_file(path))


def _nearest_file(path: Path) -> str:
    """Hint for a path that does not exist."""
    folder = path.parent
    if not folder.is_dir():
        return f"The folder {folder} does not exist either; paths are relative to {Path.cwd()}"
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"Did you mean {folder / near[0]}?" if near else f"Paths are relative to {Path.cwd()}"


def _runs_dir(config: RunConfig) -> Iterator[Problem]:
    path = Path(config.runs_dir).expanduser().absolute()
    if max(map(len, map(os.fsencode, path.parts))) > 255 or len(os.fsencode(path)) > 4000:
        yield Problem("runs_dir", f"{config.runs_dir[:60]}...", "is too long for a folder name")
        return
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    if not existing.is_dir():
        yield Problem("runs_dir", config.runs_dir, f"{existing} is not a folder")
    elif not os.access(existing, os.W_OK | os.X_OK):
        yield Problem("runs_dir", config.runs_dir, f"{existing} is not writable by this user")


def _missing_packages(config: RunConfig) -> Iterator[Problem]:
    needed = [(name, "train", "cluster.kind") for name in _TRAINING_PACKAGES]
    if config.strategy.kind.sharding.engine is EngineKind.zero:
        needed.append(("deepspeed", "train", "strategy.kind"))
    if config.method.kind is MethodKind.qlora:
        needed.append(("bitsandbytes", "qlora", "method.kind"))
    if config.track.wandb is WandbMode.online:
        needed.append(("wandb", "wandb", "track.wandb"))
    if config.model.attention is Attention.flash_attention_2:
        needed.append(("flash_attn", "", "model.attention"))
    for package, extra, key in needed:
        if importlib.util.find_spec(package) is None:
            install = f'pip install "tunelaunch[{extra}]"' if extra else f"pip install {package}"
            yield problem_at(config, key, f"requires {package}, which is not installed", install)


def _missing_gpus(config: RunConfig, gpus: list[Gpu]) -> Iterator[Problem]:
    topology = resolve_topology(config, gpus)
    if topology.device != "cuda":
        return
    yield from old_gpu_problems(topology.capability, config.strategy.precision, config.model.attention)
    if not gpus:
        hint = "Use cluster.device=cpu, or a host with GPUs"
        yield Problem("cluster.device", "cuda", "no GPU is visible on this host", hint)
        return
    if topology.devices_per_node > len(gpus):
        why = f"only {len(gpus)} GPU{'s are' if len(gpus) > 1 else ' is'} visible on this host"
        yield Problem("cluster.devices_per_node", topology.devices_per_node, why, f"Use {len(gpus)} or less")
    given, smallest = config.cluster.gpu_memory_gib, measured_gpu_memory_gib(config, gpus)
    if given is not None and smallest is not None and smallest < 0.97 * given:
        why = f"GPUs here have {smallest:.0f} GiB, less than the plan assumes"
        hint = f"Use {int(smallest)}, or cluster.gpu_memory_gib=null for what is measured"
        yield problem_at(config, "cluster.gpu_memory_gib", why, hint)
