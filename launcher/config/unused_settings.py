"""Settings without effect in this configuration: an error if given on the command line, a warning if from a file."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, fields
from enum import Enum

from omegaconf import MISSING

from launcher.config.checks import setting
from launcher.config.cluster_schema import ClusterConfig, ContainerRuntime, HardwareConfig
from launcher.config.model_files import ModelSource, model_source
from launcher.config.schema import MethodKind, RunConfig, Schedule
from launcher.errors import Problem
from launcher.files import as_json


@dataclass(frozen=True, slots=True)
class _Rule:
    """Settings that have an effect only under a condition."""

    keys: tuple[str, ...]
    why_not: Callable[[RunConfig], str]
    """Why they have no effect in this configuration; empty if they have one."""
    hint: str
    warns: bool = False
    """Whether to warn if a file sets them; not where a command-line value is meant to override the file."""


def ineffective_overrides(config: RunConfig, overrides: Collection[str]) -> list[Problem]:
    """A problem for each override that has no effect."""
    default = RunConfig()
    problems = []
    for rule in _RULES:
        keys = [key for key in rule.keys if key in overrides and not _is_noop(config, default, key)]
        why = rule.why_not(config) if keys else ""
        if why:
            problems += [Problem(key, as_json(setting(config, key)), why, rule.hint) for key in keys]
    return problems


def unused_warnings(config: RunConfig) -> list[str]:
    """A warning for each setting that has no effect but differs from its default."""
    default = RunConfig()
    warnings = []
    for rule in _RULES:
        keys = [key for key in rule.keys if rule.warns and setting(config, key) != setting(default, key)]
        why = rule.why_not(config) if keys else ""
        if why:
            given = ", ".join(f"{key} = {as_json(setting(config, key))}" for key in keys)
            warnings.append(f"{given} has no effect: {why}")
    return warnings


def _is_noop(config: RunConfig, default: RunConfig, key: str) -> bool:
    """Whether the value is null, or a default that only turns something off or repeats a choice."""
    value = setting(config, key)
    return value is None or ((not value or isinstance(value, Enum)) and value == setting(default, key))


def _without_adapters(config: RunConfig) -> str:
    return "it is for adapters, and method.kind is full" if config.method.kind is MethodKind.full else ""


def _without_4_bits(config: RunConfig) -> str:
    kind = config.method.kind
    return "" if kind is MethodKind.qlora else f"it is for a 4-bit base, and method.kind is {kind.value}"


def _without_decay(config: RunConfig) -> str:
    return "the constant schedule does not decay" if config.optim.schedule is Schedule.constant else ""


def _without_wsd(config: RunConfig) -> str:
    schedule = config.optim.schedule
    return "" if schedule is Schedule.wsd else f"it is for schedule wsd, and optim.schedule is {schedule.value}"


def _without_early_stopping(config: RunConfig) -> str:
    return "" if config.optim.early_stopping_patience else "early stopping is off (optim.early_stopping_patience = 0)"


def _overridden_by(winner: str) -> Callable[[RunConfig], str]:
    def why_not(config: RunConfig) -> str:
        value = setting(config, winner)
        return "" if value is None else f"{winner} = {value} overrides it"

    return why_not


def _without_hub_data(config: RunConfig) -> str:
    data = config.data
    paths = [data.path, data.validation_path, *(part.path for part in data.mixture)]
    return "" if any(path and path.startswith("hub:") for path in paths) else "only Hub datasets have splits"


def _of_mixture(config: RunConfig) -> str:
    is_mixture = bool(config.data.mixture) and config.data.validation_path is None
    return "each source of data.mixture has its own format" if is_mixture else ""


def _of_builtin_data(config: RunConfig) -> str:
    data = config.data
    paths = [data.path, *(part.path for part in data.mixture)]
    has_own = any(path and path.startswith("builtin:") for path in paths)
    return "built-in data has its own validation examples" if has_own else ""


def _of_local_model(config: RunConfig) -> str:
    name = config.model.name_or_path
    is_local = name != MISSING and model_source(name) is not ModelSource.hub
    return f"only Hub models have revisions, and the model is {name}" if is_local else ""


def _without_slurm(config: RunConfig) -> str:
    return "" if config.cluster.is_slurm else "it is for Slurm, and cluster.kind is local"


def _without_container(config: RunConfig) -> str:
    in_none = config.cluster.is_slurm and config.cluster.container is ContainerRuntime.none
    return "cluster.container is none" if in_none else ""


_RULES = (
    _Rule(
        ("method.rank", "method.alpha", "method.dropout", "method.target_modules", "method.rslora"),
        _without_adapters,
        "Choose method=lora, method=dora or method=qlora, or leave it out",
        warns=True,
    ),
    _Rule(("method.double_quantization",), _without_4_bits, "Choose method=qlora, or leave it out", warns=True),
    _Rule(
        ("optim.min_lr_ratio",),
        _without_decay,
        "Choose optim=default (cosine), optim=linear or optim=wsd, or leave it out",
        warns=True,
    ),
    _Rule(("optim.decay_ratio",), _without_wsd, "Choose optim=wsd, or leave it out", warns=True),
    _Rule(
        ("optim.early_stopping_min_delta",),
        _without_early_stopping,
        "Give optim.early_stopping_patience, or leave it out",
        warns=True,
    ),
    _Rule(("optim.epochs",), _overridden_by("optim.max_steps"), "Leave it out, or give optim.max_steps=null"),
    _Rule(
        ("optim.warmup_ratio",), _overridden_by("optim.warmup_steps"), "Leave it out, or give optim.warmup_steps=null"
    ),
    _Rule(
        ("batch.micro_tokens",),
        _overridden_by("batch.micro_sequences"),
        "Leave it out, or give batch.micro_sequences=null",
    ),
    _Rule(("data.hub_split",), _without_hub_data, "Give data.path=hub:owner/name, or leave it out"),
    _Rule(("data.format",), _of_mixture, "Give the format inside data.mixture, or leave it out", warns=True),
    _Rule(("data.validation_fraction",), _of_builtin_data, "Leave it out"),  # the plan warns; it knows the files
    _Rule(("model.revision",), _of_local_model, "Leave it out"),
    _Rule(
        ("cluster.device_tflops",),
        _overridden_by("cluster.tokens_per_s_per_device"),
        "Leave it out, or give cluster.tokens_per_s_per_device=null",
    ),
    _Rule(
        tuple(f"cluster.{spec.name}" for spec in fields(ClusterConfig)[len(fields(HardwareConfig)) :]),
        _without_slurm,
        "Add cluster=slurm, or the file of your site (docs/slurm.md), or leave it out",
    ),
    _Rule(
        ("cluster.container_image", "cluster.container_mounts"),
        _without_container,
        "Give cluster.container=apptainer or cluster.container=pyxis, or leave it out",
    ),
)
