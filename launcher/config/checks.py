"""Rules of single settings and across sections. All of them are checked, so that every problem is reported at once."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from omegaconf import MISSING

from launcher.config.build import field_limits
from launcher.config.devices import visible_gpus
from launcher.config.model_files import find_architecture
from launcher.config.path_checks import path_problems
from launcher.config.schema import (
    Attention,
    MethodKind,
    Precision,
    RunConfig,
    Schedule,
    StrategyKind,
    TrackerName,
    WandbMode,
)
from launcher.config.topology import Topology, resolve_topology
from launcher.errors import Problem

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_CODE = re.compile(r"[a-z][a-z0-9_]*")
# Names and addresses; never what a remote shell would take for an option or a user.
_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,254}")


def config_problems(config: RunConfig) -> list[Problem]:
    """Everything wrong with a configuration, as far as it, the files it names and the environment show."""
    gpus = [] if config.cluster.is_slurm else visible_gpus()
    problems = list(_range_problems(config))
    for rule in _RULES:
        problems += rule(config)
    problems += _device_problems(config, resolve_topology(config, gpus))
    problems += path_problems(config)
    return problems


def setting(config: RunConfig, key: str) -> object:
    """Value at a dotted key."""
    value: object = config
    for name in key.split("."):
        value = getattr(value, name)
    return value


def _range_problems(section: Any, prefix: str = "") -> Iterator[Problem]:
    """Numbers outside the limits that the schema states for them."""
    limits = field_limits(section.__class__)
    for spec in fields(section):
        key, value = prefix + spec.name, getattr(section, spec.name)
        if is_dataclass(value):
            yield from _range_problems(value, f"{key}.")
        elif isinstance(value, list):
            for index, item in enumerate(value):
                if is_dataclass(item):
                    yield from _range_problems(item, f"{key}[{index}].")
        elif spec.name in limits and value is not None and (complaint := limits[spec.name].complaint(value)):
            yield Problem(key, value, complaint)


def _name_problems(config: RunConfig) -> Iterator[Problem]:
    allowed = "Use letters, digits, '.', '_' and '-'; start with a letter or digit"
    for key, value in (("name", config.name), ("experiment_name", config.experiment_name)):
        if value is not None and not _NAME.fullmatch(value):
            yield Problem(key, value, "is not a valid run directory name", allowed)
    for code in config.data.allow:
        if not _CODE.fullmatch(code):
            yield Problem(
                "data.allow", code, "is not the code of an audit finding", "Codes look like duplicate_example"
            )
    if not config.track.wandb_project or set("/\\#?%:") & set(config.track.wandb_project):
        yield Problem("track.wandb_project", config.track.wandb_project, "must be a name without / \\ # ? % :")
    for tag in config.track.tags:
        if not 1 <= len(tag) <= 64:
            yield Problem("track.tags", tag, "W&B tags have 1 to 64 characters")


def _data_problems(config: RunConfig) -> Iterator[Problem]:
    data = config.data
    given = [name for name in ("path", "inline", "mixture") if getattr(data, name)]
    if len(given) != 1:
        why = "no examples were given" if not given else f"data.{', data.'.join(given)} exclude each other"
        ways = "Give data.path=FILE, data.inline=[...] or data.mixture=[...], or choose data=next_number"
        yield Problem("data.path", data.path, why, ways if not given else "Keep one of them")
    is_hub = bool(data.path and data.path.startswith("hub:"))
    names = ("validation_path", "validation_fraction", "hub_validation_split")
    validation = [f"data.{name}" for name in names if getattr(data, name)]
    if len(validation) > 1:
        yield Problem(validation[0], setting(config, validation[0]), f"cannot be combined with {validation[1]}")
    if not is_hub:
        for name in ("hub_revision", "hub_validation_split"):
            if getattr(data, name):
                yield Problem(f"data.{name}", getattr(data, name), "only applies to data.path=hub:owner/name")
    network = find_architecture(config.model) if config.model.name_or_path != MISSING else None
    if network is not None and 0 < network.max_position_tokens < data.seq_len_tokens:
        limit = network.max_position_tokens
        why = f"the model supports at most {limit} tokens"
        yield Problem("data.seq_len_tokens", data.seq_len_tokens, why, f"Use {limit} or less")


def has_validation(config: RunConfig) -> bool:
    """Whether there is a validation set."""
    data = config.data
    built_in = data.path is not None and data.path.startswith("builtin:")
    return bool(data.validation_path or data.validation_fraction or data.hub_validation_split or built_in)


def _validation_problems(config: RunConfig) -> Iterator[Problem]:
    if has_validation(config):
        return
    for key in ("optim.early_stopping_patience", "track.eval_every_steps"):
        if value := setting(config, key):
            hint = "Give data.validation_path or data.validation_fraction"
            yield Problem(key, value, "needs a validation set, and there is none", hint)


def _model_problems(config: RunConfig) -> Iterator[Problem]:
    network = config.model.architecture
    if network.hidden_size == 0:
        return
    needed = ("intermediate_size", "num_layers", "num_heads", "num_kv_heads", "vocab_size")
    for name in needed:
        if getattr(network, name) < 1:
            yield Problem(
                f"model.architecture.{name}", getattr(network, name), "must be given along with the other dimensions"
            )
    if min(getattr(network, name) for name in needed) < 1:
        return
    if network.num_heads % network.num_kv_heads:
        why = f"must divide num_heads = {network.num_heads}"
        yield Problem("model.architecture.num_kv_heads", network.num_kv_heads, why)
    if not network.head_dim and network.hidden_size % network.num_heads:
        why = f"must divide hidden_size = {network.hidden_size}, unless head_dim is given"
        yield Problem("model.architecture.num_heads", network.num_heads, why)


def _method_problems(config: RunConfig) -> Iterator[Problem]:
    method, strategy = config.method, config.strategy
    if method.kind is MethodKind.full:
        return
    names = method.target_modules
    if not names:
        hint = "Give all-linear or names such as [q_proj,v_proj]"
        yield Problem("method.target_modules", names, "is empty", hint)
    elif "all-linear" in names and len(names) > 1:
        yield Problem("method.target_modules", names, "all-linear already includes the others", "Give it alone")
    if method.kind is MethodKind.qlora and strategy.kind.sharding.weights:
        why = "ZeRO-3 cannot partition a 4-bit base"
        yield Problem("method.kind", "qlora", why, "Use strategy=ddp or strategy=zero2, or method=lora")
    if method.kind is MethodKind.dora and strategy.kind.sharding.weights:
        why = (
            "DoRA needs whole weight matrices in every layer, and ZeRO-3 partitions them (peft fails in the first step)"
        )
        yield Problem("method.kind", "dora", why, "Use strategy=ddp or strategy=zero2, or method=lora")


def _optim_problems(config: RunConfig) -> Iterator[Problem]:
    optim = config.optim
    if optim.max_steps is not None and (optim.warmup_steps or 0) > optim.max_steps:
        why = f"exceeds the total number of steps (optim.max_steps = {optim.max_steps})"
        yield Problem("optim.warmup_steps", optim.warmup_steps, why)
    if optim.schedule is Schedule.wsd and optim.warmup_steps is None and optim.warmup_ratio + optim.decay_ratio > 1:
        yield Problem("optim.decay_ratio", optim.decay_ratio, "warm-up and decay together exceed the whole run")


def _batch_problems(config: RunConfig) -> Iterator[Problem]:
    batch = config.batch
    if batch.global_tokens is not None and batch.global_sequences is not None:
        hint = "Choose batch=tokens, or set batch.global_sequences=null"
        yield Problem("batch.global_tokens", batch.global_tokens, "batch.global_sequences is set as well", hint)
    if batch.global_tokens is None and batch.global_sequences is None:
        yield Problem("batch.global_sequences", None, "the batch size is missing", "Give it, or batch.global_tokens")
    if batch.micro_sequences and batch.global_sequences and batch.micro_sequences > batch.global_sequences:
        why = f"is more than a whole step (batch.global_sequences = {batch.global_sequences})"
        yield Problem("batch.micro_sequences", batch.micro_sequences, why)


def _strategy_problems(config: RunConfig) -> Iterator[Problem]:
    strategy = config.strategy
    if strategy.offload_optimizer and not strategy.kind.sharding.optimizer:
        hint = "Use strategy=zero2_offload, or leave it out"
        yield Problem("strategy.offload_optimizer", True, f"{strategy.kind.value} cannot offload", hint)
    if strategy.offload_params and not strategy.kind.sharding.weights:
        hint = "Use strategy=zero3_offload, or leave it out"
        yield Problem("strategy.offload_params", True, f"{strategy.kind.value} cannot offload parameters", hint)
    if strategy.compile and (strategy.kind.sharding.weights or strategy.offload_optimizer):
        why = "torch.compile does not work with the hooks that fetch partitioned or offloaded state"
        yield Problem("strategy.compile", True, why, "Use ddp, zero1 or zero2 without offload, or leave it out")


def _wandb_problems(config: RunConfig) -> Iterator[Problem]:
    if config.track.wandb is WandbMode.online and not os.environ.get("WANDB_API_KEY"):
        hint = "Set WANDB_API_KEY to the key from https://wandb.ai/authorize, or use track.wandb=offline"
        yield Problem("track.wandb", "online", "WANDB_API_KEY is not set", hint)
    named = {tracker.value for tracker in config.track.trackers or []}
    if config.track.wandb is WandbMode.disabled:
        named.discard(TrackerName.wandb.value)
    for name in sorted(named):
        if importlib.util.find_spec(name) is None:
            hint = f"Run: pip install 'tunelaunch[{name}]'"
            yield Problem("track.trackers", name, f"the package {name} is not installed", hint)


def _host_problems(config: RunConfig) -> Iterator[Problem]:
    cluster = config.cluster
    if not cluster.hosts:
        return
    if cluster.is_slurm:
        why = "is for runs without Slurm, and cluster.kind is slurm"
        yield Problem("cluster.hosts", cluster.hosts, why, "Leave it out; cluster.nodelist requests particular nodes")
    elif cluster.nodes != len(cluster.hosts):
        why = f"cluster.hosts names {len(cluster.hosts)}"
        yield Problem("cluster.nodes", cluster.nodes, why, "Leave it out, or list as many hosts")
    for host in cluster.hosts:
        if not _HOST.fullmatch(host):
            yield Problem("cluster.hosts", host, "is not a host name or address")
    twice = sorted({host for host in cluster.hosts if cluster.hosts.count(host) > 1})
    if twice:
        yield Problem("cluster.hosts", cluster.hosts, f"names {', '.join(twice)} twice", "List every host once")


def _device_problems(config: RunConfig, topology: Topology) -> Iterator[Problem]:
    """Rules about the kind and number of devices. Whether this machine has them: path_checks.machine_problems."""
    strategy, attention = config.strategy, config.model.attention
    if strategy.kind is StrategyKind.single and topology.world_size > 1:
        why = f"the run has {topology.world_size} processes (cluster.nodes = {topology.nodes})"
        yield Problem("strategy.kind", "single", why, "Use strategy=ddp, zero1, zero2 or zero3")
    if config.cluster.is_slurm and config.cluster.devices_per_node is None:
        why = "the GPUs of a Slurm job cannot be counted in advance"
        yield Problem("cluster.devices_per_node", None, why, "Give the number")
    needs_gpu = attention in (Attention.varlen, Attention.flash_attention_2)
    if topology.device == "cpu":
        if strategy.precision is Precision.fp16:
            why = "CPUs support bf16 and fp32 only"
            yield Problem("strategy.precision", "fp16", why, "Use strategy.precision=bf16")
        if needs_gpu:
            yield Problem("model.attention", attention.value, "requires a GPU", "Use model.attention=auto")
    elif strategy.precision is Precision.fp32 and needs_gpu:
        hint = "Use model.attention=segments, or bf16"
        yield Problem("model.attention", attention.value, "supports bf16 and fp16 only", hint)


_RULES: tuple[Callable[[RunConfig], Iterator[Problem]], ...] = (
    _name_problems,
    _data_problems,
    _validation_problems,
    _model_problems,
    _method_problems,
    _optim_problems,
    _batch_problems,
    _strategy_problems,
    _wandb_problems,
    _host_problems,
)
