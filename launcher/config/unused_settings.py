"""Settings that the others leave without effect: refused when somebody typed them, a warning when a file holds them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import Enum

from omegaconf import MISSING

from launcher.config.build import plain
from launcher.config.checks import setting
from launcher.config.cluster_schema import ClusterKind, ContainerRuntime
from launcher.config.model_files import ModelSource, model_source
from launcher.config.schema import MethodKind, RunConfig, Schedule
from launcher.errors import Problem


@dataclass(frozen=True, slots=True)
class _Rule:
    """Keys that count only sometimes."""

    keys: tuple[str, ...]
    why_not: Callable[[RunConfig], str]
    """Why they do nothing in this configuration; empty where they count."""
    todo: str
    warns: bool = False
    """Whether a file that holds them is worth a warning; where a typed value is meant to win over a file, it is not."""


def typed_in_vain(config: RunConfig, typed: Collection[str]) -> list[Problem]:
    """A problem for each key that was typed and would do nothing."""
    default = RunConfig()
    problems = []
    for rule in _RULES:
        keys = [key for key in rule.keys if key in typed and not _asks_nothing(config, default, key)]
        why = rule.why_not(config) if keys else ""
        if why:
            problems += [Problem(key, plain(setting(config, key)), why, rule.todo) for key in keys]
    return problems


def idle_warnings(config: RunConfig) -> list[str]:
    """A warning for each setting that does nothing although a file says something else than the default."""
    default = RunConfig()
    warnings = []
    for rule in _RULES:
        keys = [key for key in rule.keys if rule.warns and setting(config, key) != setting(default, key)]
        why = rule.why_not(config) if keys else ""
        if why:
            given = ", ".join(f"{key} = {plain(setting(config, key))}" for key in keys)
            warnings.append(f"{given} does nothing: {why}")
    return warnings


def _asks_nothing(config: RunConfig, default: RunConfig, key: str) -> bool:
    """Whether the value switches off what is off anyway, chooses what is chosen anyway, or was taken away."""
    value = setting(config, key)
    return value is None or ((not value or isinstance(value, Enum)) and value == setting(default, key))


def _of_adapters(config: RunConfig) -> str:
    return "only adapters have it, and method.kind is full" if config.method.kind is MethodKind.full else ""


def _of_4_bits(config: RunConfig) -> str:
    kind = config.method.kind
    return "" if kind is MethodKind.qlora else f"only a 4-bit base has it, and method.kind is {kind.value}"


def _of_a_falling_rate(config: RunConfig) -> str:
    return "the constant schedule stays at the peak" if config.optim.schedule is Schedule.constant else ""


def _of_wsd(config: RunConfig) -> str:
    schedule = config.optim.schedule
    return "" if schedule is Schedule.wsd else f"only schedule wsd has a decay, and optim.schedule is {schedule.value}"


def _of_early_stopping(config: RunConfig) -> str:
    return "" if config.optim.early_stopping_patience else "early stopping is off (optim.early_stopping_patience = 0)"


def _beside(winner: str) -> Callable[[RunConfig], str]:
    def why_not(config: RunConfig) -> str:
        value = setting(config, winner)
        return "" if value is None else f"{winner} = {value} is given as well, and decides"

    return why_not


def _of_the_hub(config: RunConfig) -> str:
    data = config.data
    paths = [data.path, data.validation_path, *(part.path for part in data.mixture)]
    return "" if any(path and path.startswith("hub:") for path in paths) else "only a data set of the Hub has splits"


def _of_one_source(config: RunConfig) -> str:
    is_mixture = bool(config.data.mixture) and config.data.validation_path is None
    return "each part of data.mixture has a format of its own" if is_mixture else ""


def _of_undivided_data(config: RunConfig) -> str:
    data = config.data
    paths = [data.path, *(part.path for part in data.mixture)]
    has_own = any(path and path.startswith("builtin:") for path in paths)
    return "built-in data brings held-out examples of its own" if has_own else ""


def _of_a_hub_model(config: RunConfig) -> str:
    name = config.model.name_or_path
    is_local = name != MISSING and model_source(name) is not ModelSource.hub
    return f"only a model of the Hub has revisions, and the model is {name}" if is_local else ""


def _of_slurm(config: RunConfig) -> str:
    return "" if config.cluster.kind is ClusterKind.slurm else "it is for Slurm jobs, and cluster.kind is local"


def _of_a_container(config: RunConfig) -> str:
    in_none = config.cluster.kind is ClusterKind.slurm and config.cluster.container is ContainerRuntime.none
    return "no container is used (cluster.container = none)" if in_none else ""


_SLURM_KEYS = (
    "partition account qos constraint reservation walltime_min gpu_request gpu_type cpus_per_task memory_gib_per_node "
    "exclusive nodelist exclude licenses mail_user mail_type sbatch_args srun_args modules setup_file environment "
    "container container_image container_mounts prepare cpu_partition stage_walltime_min signal_lead_s"
)
_RULES = (
    _Rule(
        ("method.rank", "method.alpha", "method.dropout", "method.target_modules", "method.rslora"),
        _of_adapters,
        "Choose method=lora, method=dora or method=qlora, or leave it out",
        warns=True,
    ),
    _Rule(("method.double_quantization",), _of_4_bits, "Choose method=qlora, or leave it out", warns=True),
    _Rule(
        ("optim.min_lr_ratio",),
        _of_a_falling_rate,
        "Choose optim=default (cosine), optim=linear or optim=wsd, or leave it out",
        warns=True,
    ),
    _Rule(("optim.decay_ratio",), _of_wsd, "Choose optim=wsd, or leave it out", warns=True),
    _Rule(
        ("optim.early_stopping_min_delta",),
        _of_early_stopping,
        "Give optim.early_stopping_patience, or leave it out",
        warns=True,
    ),
    _Rule(("optim.epochs",), _beside("optim.max_steps"), "Leave it out, or give optim.max_steps=null"),
    _Rule(("optim.warmup_ratio",), _beside("optim.warmup_steps"), "Leave it out, or give optim.warmup_steps=null"),
    _Rule(
        ("batch.micro_tokens",), _beside("batch.micro_sequences"), "Leave it out, or give batch.micro_sequences=null"
    ),
    _Rule(("data.hub_split",), _of_the_hub, "Give data.path=hub:owner/name, or leave it out"),
    _Rule(("data.format",), _of_one_source, "Give the format inside data.mixture, or leave it out", warns=True),
    _Rule(("data.validation_fraction",), _of_undivided_data, "Leave it out"),  # planning warns, it knows the files
    _Rule(("model.revision",), _of_a_hub_model, "Leave it out"),
    _Rule(
        ("cluster.device_tflops",),
        _beside("cluster.tokens_per_s_per_device"),
        "Leave it out, or give cluster.tokens_per_s_per_device=null",
    ),
    _Rule(
        tuple(f"cluster.{name}" for name in _SLURM_KEYS.split()),
        _of_slurm,
        "Add cluster=slurm, or the file of your site (docs/slurm.md), or leave it out",
    ),
    _Rule(
        ("cluster.container_image", "cluster.container_mounts"),
        _of_a_container,
        "Give cluster.container=apptainer or cluster.container=pyxis, or leave it out",
    ),
)
