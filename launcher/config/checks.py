"""Rules of one field and across sections; every one is tried, so that all problems come at once."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from omegaconf import MISSING

from launcher.config.cluster_schema import ClusterKind
from launcher.config.devices import visible_gpus
from launcher.config.model_files import architecture
from launcher.config.path_checks import place_problems
from launcher.config.schema import Attention, MethodKind, Precision, RunConfig, Schedule, StrategyKind, WandbMode
from launcher.config.world import World, resolve_world
from launcher.errors import Problem

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_CODE = re.compile(r"[a-z][a-z0-9_]*")
# Names and addresses; never what a remote shell would take for an option or a user.
_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,254}")
_ZERO = (StrategyKind.zero1, StrategyKind.zero2, StrategyKind.zero3)


@dataclass(frozen=True, slots=True)
class _Range:
    """Closed below unless `above`; closed above unless `below`."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False

    def complaint(self, value: float) -> str:
        """Why the value does not fit, or an empty text."""
        if value < self.low or (self.above and value == self.low):
            return f"must be {'more than' if self.above else 'at least'} {self.low:g}"
        if value > self.high or (self.below and value == self.high):
            return f"must be {'less than' if self.below else 'at most'} {self.high:g}"
        return ""


_POSITIVE = _Range(0, above=True)
_COUNT = _Range(1)
_FROM_ZERO = _Range(0)
_SHARE = _Range(0, 1)
_PART = _Range(0, 1, below=True)

RANGES: dict[str, _Range] = {
    "data.validation_fraction": _PART,
    "data.seq_len_tokens": _Range(8, 4_194_304),
    "data.max_input_chars": _COUNT,
    "data.max_output_chars": _COUNT,
    "data.num_workers": _Range(0, 1024),
    "data.seed": _Range(0, 2**32 - 1),
    "seed": _Range(0, 2**32 - 1),
    "method.rank": _Range(1, 4096),
    "method.alpha": _POSITIVE,
    "method.dropout": _PART,
    "optim.epochs": _POSITIVE,
    "optim.max_steps": _COUNT,
    "optim.lr": _Range(0, 1, above=True),
    "optim.lr_multiplier": _POSITIVE,
    "optim.warmup_steps": _FROM_ZERO,
    "optim.warmup_ratio": _PART,
    "optim.decay_ratio": _SHARE,
    "optim.min_lr_ratio": _SHARE,
    "optim.weight_decay": _FROM_ZERO,
    "optim.beta1": _PART,
    "optim.beta2": _PART,
    "optim.eps": _POSITIVE,
    "optim.grad_clip": _FROM_ZERO,
    "optim.early_stopping_patience": _FROM_ZERO,
    "optim.early_stopping_min_delta": _FROM_ZERO,
    "batch.global_sequences": _COUNT,
    "batch.global_tokens": _COUNT,
    "batch.micro_sequences": _COUNT,
    "batch.micro_tokens": _COUNT,
    "checkpoint.save_every_steps": _FROM_ZERO,
    "checkpoint.keep_last": _COUNT,
    "track.eval_every_steps": _FROM_ZERO,
    "cluster.nodes": _COUNT,
    "cluster.devices_per_node": _Range(1, 1024),
    "cluster.threads_per_process": _COUNT,
    "cluster.gpu_memory_gib": _POSITIVE,
    "cluster.host_memory_gib": _POSITIVE,
    "cluster.tokens_per_s_per_device": _POSITIVE,
    "cluster.device_tflops": _POSITIVE,
    "cluster.price_per_device_hour": _FROM_ZERO,
    "cluster.walltime_min": _COUNT,
    "cluster.stage_walltime_min": _COUNT,
    "cluster.cpus_per_task": _COUNT,
    "cluster.memory_gib_per_node": _FROM_ZERO,
    "cluster.signal_lead_s": _Range(1, 65_535),
    "fault.max_attempts": _COUNT,
    "fault.max_fruitless_attempts": _COUNT,
    "fault.meet_limit_s": _POSITIVE,
    "fault.load_limit_s": _POSITIVE,
    "fault.step_limit_s": _POSITIVE,
    "fault.save_limit_s": _POSITIVE,
    "fault.stop_margin_s": _FROM_ZERO,
}


def config_problems(config: RunConfig) -> list[Problem]:
    """Everything wrong with a configuration, as far as it, the files it names and the environment tell."""
    gpus = visible_gpus() if config.cluster.kind is ClusterKind.local else []
    world = resolve_world(config, gpus)
    problems = list(_range_problems(config))
    for rule in _RULES:
        problems += rule(config)
    problems += _device_problems(config, world)
    problems += place_problems(config)
    return problems


def setting(config: RunConfig, key: str) -> object:
    """Value at a dotted key."""
    value: object = config
    for name in key.split("."):
        value = getattr(value, name)
    return value


def _range_problems(config: RunConfig) -> Iterator[Problem]:
    for key, limits in RANGES.items():
        value = setting(config, key)
        if isinstance(value, int | float):
            complaint = limits.complaint(value)
            if complaint:
                yield Problem(key, value, complaint)
    for place, source in enumerate(config.data.mixture):
        if source.weight <= 0:
            yield Problem(
                f"data.mixture[{place}].weight", source.weight, "must be more than 0", "Or leave the source out"
            )


def _name_problems(config: RunConfig) -> Iterator[Problem]:
    allowed = "Use letters, digits, '.', '_' and '-', a letter or digit first"
    for key, value in (("name", config.name), ("experiment_name", config.experiment_name)):
        if value is not None and not _NAME.fullmatch(value):
            yield Problem(key, value, "cannot be the name of a run directory", allowed)
    for code in config.data.allow:
        if not _CODE.fullmatch(code):
            yield Problem(
                "data.allow", code, "is not the code of an audit finding", "Codes look like duplicate_example"
            )
    if not config.track.wandb_project or set("/\\#?%:") & set(config.track.wandb_project):
        yield Problem("track.wandb_project", config.track.wandb_project, "must be a name without any of / \\ # ? % :")
    for tag in config.track.tags:
        if not 1 <= len(tag) <= 64:
            yield Problem("track.tags", tag, "W&B takes tags of 1 to 64 characters")


def _data_problems(config: RunConfig) -> Iterator[Problem]:
    data = config.data
    given = [name for name in ("path", "inline", "mixture") if getattr(data, name)]
    if len(given) != 1:
        why = "no examples were given" if not given else f"only one of data.{', data.'.join(given)} can be used"
        ways = "Give data.path=FILE, or data.inline=[...], or data.mixture=[...], or choose data=next_number"
        yield Problem("data.path", data.path, why, ways if not given else "Leave the others out")
    is_hub = bool(data.path and data.path.startswith("hub:"))
    held_out = [
        f"data.{name}"
        for name in ("validation_path", "validation_fraction", "hub_validation_split")
        if getattr(data, name)
    ]
    if len(held_out) > 1:
        yield Problem(held_out[0], setting(config, held_out[0]), f"cannot be combined with {held_out[1]}", "Give one")
    if not is_hub:
        for name in ("hub_revision", "hub_validation_split"):
            if getattr(data, name):
                yield Problem(f"data.{name}", getattr(data, name), "only applies to data.path=hub:owner/name")
    longest = data.seq_len_tokens
    figures = architecture(config.model) if config.model.name_or_path != MISSING else None
    if figures is not None and 0 < figures.max_position_tokens < longest:
        limit = figures.max_position_tokens
        yield Problem(
            "data.seq_len_tokens", longest, f"the model takes at most {limit} tokens", f"Give {limit} or less"
        )


def has_validation(config: RunConfig) -> bool:
    """Whether anything is held out to measure on."""
    data = config.data
    built_in = data.path is not None and data.path.startswith("builtin:")
    return bool(data.validation_path or data.validation_fraction or data.hub_validation_split or built_in)


def _validation_problems(config: RunConfig) -> Iterator[Problem]:
    if has_validation(config):
        return
    todo = "Give data.validation_path or data.validation_fraction"
    if config.optim.early_stopping_patience > 0:
        value = config.optim.early_stopping_patience
        yield Problem("optim.early_stopping_patience", value, "needs held-out examples, and there are none", todo)
    if config.track.eval_every_steps > 0:
        value = config.track.eval_every_steps
        yield Problem("track.eval_every_steps", value, "needs held-out examples, and there are none", todo)


def _model_problems(config: RunConfig) -> Iterator[Problem]:
    figures = config.model.architecture
    if figures.hidden_size == 0:
        return
    needed = ("intermediate_size", "num_layers", "num_heads", "num_kv_heads", "vocab_size")
    for name in needed:
        if getattr(figures, name) < 1:
            yield Problem(f"model.architecture.{name}", getattr(figures, name), "must be given with the other figures")
    if min(getattr(figures, name) for name in needed) < 1:
        return
    if figures.num_heads % figures.num_kv_heads:
        why = f"must divide num_heads = {figures.num_heads}"
        yield Problem("model.architecture.num_kv_heads", figures.num_kv_heads, why)
    if not figures.head_dim and figures.hidden_size % figures.num_heads:
        why = f"must divide hidden_size = {figures.hidden_size}, unless head_dim is given"
        yield Problem("model.architecture.num_heads", figures.num_heads, why)


def _method_problems(config: RunConfig) -> Iterator[Problem]:
    method, strategy = config.method, config.strategy
    if method.kind is MethodKind.full:
        return
    names = method.target_modules
    if not names:
        yield Problem(
            "method.target_modules", names, "names no layer", "Give all-linear or names such as [q_proj,v_proj]"
        )
    elif "all-linear" in names and len(names) > 1:
        yield Problem("method.target_modules", names, "all-linear already names them all", "Give it alone")
    if method.kind is MethodKind.qlora and strategy.kind is StrategyKind.zero3:
        why = "a 4-bit base cannot be partitioned by ZeRO-3"
        yield Problem("method.kind", "qlora", why, "Use strategy=ddp or strategy=zero2, or method=lora")
    if method.kind is MethodKind.dora and strategy.kind is StrategyKind.zero3:
        why = "DoRA reads whole weight matrices in every layer, which ZeRO-3 has cut up (peft fails in the first step)"
        yield Problem("method.kind", "dora", why, "Use strategy=ddp or strategy=zero2, or method=lora")


def _optim_problems(config: RunConfig) -> Iterator[Problem]:
    optim = config.optim
    if optim.max_steps is not None and (optim.warmup_steps or 0) > optim.max_steps:
        why = f"is more than all steps (optim.max_steps = {optim.max_steps})"
        yield Problem("optim.warmup_steps", optim.warmup_steps, why)
    if optim.schedule is Schedule.wsd and optim.warmup_steps is None and optim.warmup_ratio + optim.decay_ratio > 1:
        yield Problem("optim.decay_ratio", optim.decay_ratio, "warm-up and decay together are more than the whole run")


def _batch_problems(config: RunConfig) -> Iterator[Problem]:
    batch = config.batch
    if batch.global_tokens is not None and batch.global_sequences is not None:
        todo = "Choose batch=tokens, or give batch.global_sequences=null"
        yield Problem("batch.global_tokens", batch.global_tokens, "batch.global_sequences is given as well", todo)
    if batch.global_tokens is None and batch.global_sequences is None:
        yield Problem("batch.global_sequences", None, "the batch has no size", "Give it, or batch.global_tokens")
    if batch.micro_sequences and batch.global_sequences and batch.micro_sequences > batch.global_sequences:
        why = f"one device would take more than the whole step (batch.global_sequences = {batch.global_sequences})"
        yield Problem("batch.micro_sequences", batch.micro_sequences, why)


def _strategy_problems(config: RunConfig) -> Iterator[Problem]:
    strategy = config.strategy
    if strategy.offload_optimizer and strategy.kind not in _ZERO:
        todo = "Use strategy=zero2_offload, or leave it out"
        yield Problem("strategy.offload_optimizer", True, f"{strategy.kind.value} cannot offload", todo)
    if strategy.offload_params and strategy.kind is not StrategyKind.zero3:
        todo = "Use strategy=zero3_offload, or leave it out"
        yield Problem("strategy.offload_params", True, f"{strategy.kind.value} cannot offload parameters", todo)
    if strategy.compile and (strategy.kind is StrategyKind.zero3 or strategy.offload_optimizer):
        why = "compiled graphs break on the hooks that fetch partitioned or offloaded state"
        yield Problem("strategy.compile", True, why, "Use ddp, zero1 or zero2 without offload, or leave it out")


def _wandb_problems(config: RunConfig) -> Iterator[Problem]:
    if config.track.wandb is WandbMode.online and not os.environ.get("WANDB_API_KEY"):
        todo = "Set WANDB_API_KEY to the key from https://wandb.ai/authorize, or use track.wandb=offline"
        yield Problem("track.wandb", "online", "there is no W&B key in the environment", todo)


def _host_problems(config: RunConfig) -> Iterator[Problem]:
    cluster = config.cluster
    if not cluster.hosts:
        return
    if cluster.kind is not ClusterKind.local:
        why = "names the machines of a run without Slurm, and cluster.kind is slurm"
        yield Problem(
            "cluster.hosts", cluster.hosts, why, "Leave it out; cluster.nodelist asks Slurm for certain nodes"
        )
    elif cluster.nodes != len(cluster.hosts):
        why = f"cluster.hosts names {len(cluster.hosts)}"
        yield Problem("cluster.nodes", cluster.nodes, why, "Leave it out, or give as many hosts")
    for host in cluster.hosts:
        if not _HOST.fullmatch(host):
            yield Problem("cluster.hosts", host, "is no host name or address")
    twice = sorted({host for host in cluster.hosts if cluster.hosts.count(host) > 1})
    if twice:
        yield Problem("cluster.hosts", cluster.hosts, f"names {', '.join(twice)} twice", "Name every machine once")


def _device_problems(config: RunConfig, world: World) -> Iterator[Problem]:
    """Rules about the kind and number of devices; whether this machine has them is machine_problems' business."""
    strategy = config.strategy
    if strategy.kind is StrategyKind.single and world.size > 1:
        why = f"{world.size} processes were asked for (cluster.nodes = {world.nodes})"
        yield Problem("strategy.kind", "single", why, "Use strategy=ddp, zero1, zero2 or zero3")
    if config.cluster.kind is ClusterKind.slurm and config.cluster.devices_per_node is None:
        yield Problem(
            "cluster.devices_per_node", None, "a job cannot count GPUs it does not hold yet", "Give the number"
        )
    if world.device == "cpu":
        if strategy.precision is Precision.fp16:
            yield Problem(
                "strategy.precision", "fp16", "a CPU trains in bf16 or fp32 only", "Use strategy.precision=bf16"
            )
        if config.model.attention in (Attention.varlen, Attention.flash_attention_2):
            value = config.model.attention.value
            yield Problem("model.attention", value, "runs on GPUs only", "Use model.attention=auto")
    elif strategy.precision is Precision.fp32 and config.model.attention in (
        Attention.varlen,
        Attention.flash_attention_2,
    ):
        todo = "Use model.attention=segments, or bf16"
        yield Problem("model.attention", config.model.attention.value, "computes in bf16 and fp16 only", todo)


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
