"""Rules of single settings and across sections. All of them are checked, so that every problem is reported at once."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from omegaconf import MISSING

from launcher.config.build import field_limits, problem_at, setting
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

_VALIDATION = ("data.validation_path", "data.validation_fraction", "data.hub_validation_split")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_CODE = re.compile(r"[a-z][a-z0-9_]*")
# Names and addresses; never what a remote shell would take for an option or a user.
_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,254}")


def config_problems(config: RunConfig) -> list[Problem]:
    """Everything wrong with a configuration, as far as it, the files it names and the environment show."""
    gpus = [] if config.cluster.is_slurm else visible_gpus()
    return [
        *_range_problems(config),
        *_name_problems(config),
        *_data_problems(config),
        *_validation_problems(config),
        *_model_problems(config),
        *_method_problems(config),
        *_optim_problems(config),
        *_batch_problems(config),
        *_strategy_problems(config),
        *_tracker_problems(config),
        *_host_problems(config),
        *_device_problems(config, resolve_topology(config, gpus)),
        *path_problems(config),
    ]


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
            why = "is not the code of an audit finding"
            yield Problem("data.allow", code, why, "Codes look like duplicate_example")
    if not config.track.wandb_project or set("/\\#?%:") & set(config.track.wandb_project):
        yield problem_at(config, "track.wandb_project", "must be a name without / \\ # ? % :")
    for tag in config.track.tags:
        if not 1 <= len(tag) <= 64:
            yield Problem("track.tags", tag, "W&B tags have 1 to 64 characters")


def _data_problems(config: RunConfig) -> Iterator[Problem]:
    data = config.data
    given = [name for name in ("path", "inline", "mixture") if getattr(data, name)]
    if not given:
        hint = "Give data.path=FILE, data.inline=[...] or data.mixture=[...], or choose data=next_number"
        yield problem_at(config, "data.path", "no examples were given", hint)
    elif len(given) > 1:
        yield problem_at(config, "data.path", f"data.{', data.'.join(given)} exclude each other", "Keep one of them")
    validation = [key for key in _VALIDATION if setting(config, key)]
    if len(validation) > 1:
        yield problem_at(config, validation[0], f"cannot be combined with {validation[1]}")
    for key in ("data.hub_revision", "data.hub_validation_split"):
        if setting(config, key) and not (data.path or "").startswith("hub:"):
            yield problem_at(config, key, "only applies to data.path=hub:owner/name")
    architecture = find_architecture(config.model) if config.model.name_or_path != MISSING else None
    limit = architecture.max_position_tokens if architecture is not None else 0
    if 0 < limit < data.seq_len_tokens:
        yield problem_at(
            config, "data.seq_len_tokens", f"the model supports at most {limit} tokens", f"Use {limit} or less"
        )


def has_validation(config: RunConfig) -> bool:
    """Whether there is a validation set."""
    return (config.data.path or "").startswith("builtin:") or any(setting(config, key) for key in _VALIDATION)


def _validation_problems(config: RunConfig) -> Iterator[Problem]:
    if has_validation(config):
        return
    for key in ("optim.early_stopping_patience", "track.eval_every_steps"):
        if setting(config, key):
            hint = "Give data.validation_path or data.validation_fraction"
            yield problem_at(config, key, "needs a validation set, and there is none", hint)


def _model_problems(config: RunConfig) -> Iterator[Problem]:
    dimensions = config.model.architecture
    if dimensions.hidden_size == 0:
        return
    needed = ("intermediate_size", "num_layers", "num_heads", "num_kv_heads", "vocab_size")
    absent = [name for name in needed if getattr(dimensions, name) < 1]
    for name in absent:
        yield problem_at(config, f"model.architecture.{name}", "must be given along with the other dimensions")
    if absent:
        return
    if dimensions.num_heads % dimensions.num_kv_heads:
        yield problem_at(config, "model.architecture.num_kv_heads", f"must divide num_heads = {dimensions.num_heads}")
    if not dimensions.head_dim and dimensions.hidden_size % dimensions.num_heads:
        why = f"must divide hidden_size = {dimensions.hidden_size}, unless head_dim is given"
        yield problem_at(config, "model.architecture.num_heads", why)


_WHY_NOT_ZERO3 = {
    MethodKind.qlora: "ZeRO-3 cannot partition a 4-bit base",
    MethodKind.dora: "DoRA needs whole weight matrices in every layer, and ZeRO-3 partitions them",
}


def _method_problems(config: RunConfig) -> Iterator[Problem]:
    method = config.method
    if method.kind is MethodKind.full:
        return
    if not method.target_modules:
        hint = "Give all-linear or names such as [q_proj,v_proj]"
        yield problem_at(config, "method.target_modules", "is empty", hint)
    elif "all-linear" in method.target_modules and len(method.target_modules) > 1:
        yield problem_at(config, "method.target_modules", "all-linear already includes the others", "Give it alone")
    if config.strategy.kind.sharding.weights and method.kind in _WHY_NOT_ZERO3:
        hint = "Use strategy=ddp or strategy=zero2, or method=lora"
        yield problem_at(config, "method.kind", _WHY_NOT_ZERO3[method.kind], hint)


def _optim_problems(config: RunConfig) -> Iterator[Problem]:
    optim = config.optim
    if optim.max_steps is not None and (optim.warmup_steps or 0) > optim.max_steps:
        why = f"exceeds the total number of steps (optim.max_steps = {optim.max_steps})"
        yield problem_at(config, "optim.warmup_steps", why)
    if optim.schedule is Schedule.wsd and optim.warmup_steps is None and optim.warmup_ratio + optim.decay_ratio > 1:
        yield problem_at(config, "optim.decay_ratio", "warm-up and decay together exceed the whole run")


def _batch_problems(config: RunConfig) -> Iterator[Problem]:
    batch = config.batch
    if batch.global_tokens is not None and batch.global_sequences is not None:
        hint = "Choose batch=tokens, or set batch.global_sequences=null"
        yield problem_at(config, "batch.global_tokens", "batch.global_sequences is set as well", hint)
    if batch.global_tokens is None and batch.global_sequences is None:
        hint = "Give it, or batch.global_tokens"
        yield problem_at(config, "batch.global_sequences", "the batch size is missing", hint)
    if batch.micro_sequences and batch.global_sequences and batch.micro_sequences > batch.global_sequences:
        why = f"is more than a whole step (batch.global_sequences = {batch.global_sequences})"
        yield problem_at(config, "batch.micro_sequences", why)


def _strategy_problems(config: RunConfig) -> Iterator[Problem]:
    strategy, sharding = config.strategy, config.strategy.kind.sharding
    if strategy.offload_optimizer and not sharding.optimizer:
        hint = "Use strategy=zero2_offload, or leave it out"
        yield problem_at(config, "strategy.offload_optimizer", f"{strategy.kind.value} cannot offload", hint)
    if strategy.offload_params and not sharding.weights:
        hint = "Use strategy=zero3_offload, or leave it out"
        yield problem_at(config, "strategy.offload_params", f"{strategy.kind.value} cannot offload parameters", hint)
    if strategy.compile and (sharding.weights or strategy.offload_optimizer):
        why = "torch.compile does not work with the hooks that fetch partitioned or offloaded state"
        yield problem_at(config, "strategy.compile", why, "Use ddp, zero1 or zero2 without offload, or leave it out")


def _tracker_problems(config: RunConfig) -> Iterator[Problem]:
    track = config.track
    if track.wandb is WandbMode.online and not os.environ.get("WANDB_API_KEY"):
        hint = "Set WANDB_API_KEY to the key from https://wandb.ai/authorize, or use track.wandb=offline"
        yield problem_at(config, "track.wandb", "WANDB_API_KEY is not set", hint)
    unused = {TrackerName.wandb.value} if track.wandb is WandbMode.disabled else set()
    for name in sorted({tracker.value for tracker in track.trackers or []} - unused):
        if importlib.util.find_spec(name) is None:
            hint = f"Run: pip install 'tunelaunch[{name}]'"
            yield Problem("track.trackers", name, f"the package {name} is not installed", hint)


def _host_problems(config: RunConfig) -> Iterator[Problem]:
    cluster, key = config.cluster, "cluster.hosts"
    if not cluster.hosts:
        return
    if cluster.is_slurm:
        hint = "Leave it out; cluster.nodelist requests particular nodes"
        yield problem_at(config, key, "is for runs without Slurm, and cluster.kind is slurm", hint)
    elif cluster.nodes != len(cluster.hosts):
        hint = "Leave it out, or list as many hosts"
        yield problem_at(config, "cluster.nodes", f"cluster.hosts names {len(cluster.hosts)}", hint)
    for host in cluster.hosts:
        if not _HOST.fullmatch(host):
            yield Problem(key, host, "is not a host name or address")
    if twice := sorted({host for host in cluster.hosts if cluster.hosts.count(host) > 1}):
        yield problem_at(config, key, f"names {', '.join(twice)} twice", "List every host once")


def _device_problems(config: RunConfig, topology: Topology) -> Iterator[Problem]:
    """Rules about the kind and number of devices. Whether this host has them: path_checks.machine_problems."""
    precision, attention = config.strategy.precision, config.model.attention
    if config.strategy.kind is StrategyKind.single and topology.world_size > 1:
        why = f"the run has {topology.world_size} processes (cluster.nodes = {topology.nodes})"
        yield problem_at(config, "strategy.kind", why, "Use strategy=ddp, zero1, zero2 or zero3")
    if config.cluster.is_slurm and config.cluster.devices_per_node is None:
        why = "the GPUs of a Slurm job cannot be counted in advance"
        yield problem_at(config, "cluster.devices_per_node", why, "Give the number")
    if topology.device == "cpu" and precision is Precision.fp16:
        yield problem_at(config, "strategy.precision", "CPUs support bf16 and fp32 only", "Use strategy.precision=bf16")
    if attention in (Attention.varlen, Attention.flash_attention_2):
        if topology.device == "cpu":
            yield problem_at(config, "model.attention", "requires a GPU", "Use model.attention=auto")
        elif precision is Precision.fp32:
            hint = "Use model.attention=segments, or bf16"
            yield problem_at(config, "model.attention", "supports bf16 and fp16 only", hint)
