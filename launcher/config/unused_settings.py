"""Settings without effect in this configuration: an error if given on the command line, a warning if from a file."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, fields
from enum import Enum

from omegaconf import MISSING

from launcher.config.build import problem_at, setting
from launcher.config.cluster_schema import ClusterConfig, ContainerRuntime, HardwareConfig
from launcher.config.model_files import ModelSource, model_source
from launcher.config.schema import DataConfig, MethodKind, RunConfig, Schedule
from launcher.errors import Problem
from launcher.files import as_json


@dataclass(frozen=True, slots=True)
class _Rule:
    """Settings that have an effect only under a condition."""

    keys: tuple[str, ...]
    is_used: Callable[[RunConfig], bool]
    why_not: str
    """Why they have no effect otherwise; {run...} names a setting to quote."""
    hint: str = ""
    """An alternative to leaving them out."""
    warns: bool = False
    """Whether to warn if a file sets them; not where a command-line value is meant to override the file."""


def ineffective_overrides(config: RunConfig, overrides: Collection[str]) -> list[Problem]:
    """A problem for each override that has no effect."""
    default = RunConfig()
    problems = []
    for rule in _RULES:
        keys = [key for key in rule.keys if key in overrides and not _is_noop(config, default, key)]
        if keys and not rule.is_used(config):
            hint = f"{rule.hint}, or leave it out" if rule.hint else "Leave it out"
            problems += [problem_at(config, key, rule.why_not.format(run=config), hint) for key in keys]
    return problems


def unused_warnings(config: RunConfig) -> list[str]:
    """A warning for each setting that has no effect but differs from its default."""
    default = RunConfig()
    warnings = []
    for rule in _RULES:
        keys = [key for key in rule.keys if rule.warns and setting(config, key) != setting(default, key)]
        if keys and not rule.is_used(config):
            given = ", ".join(f"{key} = {as_json(setting(config, key))}" for key in keys)
            warnings.append(f"{given} has no effect: {rule.why_not.format(run=config)}")
    return warnings


def _is_noop(config: RunConfig, default: RunConfig, key: str) -> bool:
    """Whether the value is null, or a default that only turns something off or repeats a choice."""
    value = setting(config, key)
    return value is None or ((not value or isinstance(value, Enum)) and value == setting(default, key))


def _overridden(key: str, winner: str) -> _Rule:
    why = f"{winner} = {{run.{winner}}} overrides it"
    return _Rule((key,), lambda run: setting(run, winner) is None, why, f"Give {winner}=null")


def _has_path(data: DataConfig, prefix: str, *, or_validation: bool = False) -> bool:
    paths = [data.path, data.validation_path if or_validation else None, *(part.path for part in data.mixture)]
    return any(path is not None and path.startswith(prefix) for path in paths)


_SLURM_ONLY = tuple(f"cluster.{spec.name}" for spec in fields(ClusterConfig)[len(fields(HardwareConfig)) :])
_RULES = (
    _Rule(
        ("method.rank", "method.alpha", "method.dropout", "method.target_modules", "method.rslora"),
        lambda run: run.method.kind is not MethodKind.full,
        "it is for adapters, and method.kind is full",
        "Choose method=lora, method=dora or method=qlora",
        warns=True,
    ),
    _Rule(
        ("method.double_quantization",),
        lambda run: run.method.kind is MethodKind.qlora,
        "it is for a 4-bit base, and method.kind is {run.method.kind.value}",
        "Choose method=qlora",
        warns=True,
    ),
    _Rule(
        ("optim.min_lr_ratio",),
        lambda run: run.optim.schedule is not Schedule.constant,
        "the constant schedule does not decay",
        "Choose optim=default (cosine), optim=linear or optim=wsd",
        warns=True,
    ),
    _Rule(
        ("optim.decay_ratio",),
        lambda run: run.optim.schedule is Schedule.wsd,
        "it is for schedule wsd, and optim.schedule is {run.optim.schedule.value}",
        "Choose optim=wsd",
        warns=True,
    ),
    _Rule(
        ("optim.early_stopping_min_delta",),
        lambda run: run.optim.early_stopping_patience > 0,
        "early stopping is off (optim.early_stopping_patience = 0)",
        "Give optim.early_stopping_patience",
        warns=True,
    ),
    _overridden("optim.epochs", "optim.max_steps"),
    _overridden("optim.warmup_ratio", "optim.warmup_steps"),
    _overridden("batch.micro_tokens", "batch.micro_sequences"),
    _overridden("cluster.device_tflops", "cluster.tokens_per_s_per_device"),
    _Rule(
        ("data.hub_split",),
        lambda run: _has_path(run.data, "hub:", or_validation=True),
        "only Hub datasets have splits",
        "Give data.path=hub:owner/name",
    ),
    _Rule(
        ("data.format",),
        lambda run: not run.data.mixture or run.data.validation_path is not None,
        "each source of data.mixture has its own format",
        "Give the format inside data.mixture",
        warns=True,
    ),
    _Rule(  # no warning: the plan warns, as it knows the files
        ("data.validation_fraction",),
        lambda run: not _has_path(run.data, "builtin:"),
        "built-in data has its own validation examples",
    ),
    _Rule(
        ("model.revision",),
        lambda run: run.model.name_or_path == MISSING or model_source(run.model.name_or_path) is ModelSource.hub,
        "only Hub models have revisions, and the model is {run.model.name_or_path}",
    ),
    _Rule(
        _SLURM_ONLY,
        lambda run: run.cluster.is_slurm,
        "it is for Slurm, and cluster.kind is local",
        "Add cluster=slurm, or the file of your site (docs/slurm.md)",
    ),
    _Rule(
        ("cluster.container_image", "cluster.container_mounts"),
        lambda run: not run.cluster.is_slurm or run.cluster.container is not ContainerRuntime.none,
        "cluster.container is none",
        "Give cluster.container=apptainer or cluster.container=pyxis",
    ),
)
