"""Time and cost of a run, from a measured or an estimated speed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from launcher.config.cluster_schema import ClusterConfig
from launcher.config.devices import usable_cores
from launcher.config.schema import ArchitectureConfig, Derived, MethodKind, Precision, RunConfig
from launcher.config.topology import Topology
from launcher.plan.parameters import count_parameters

UTILISATION = 0.35
"""Share of the peak rate that fine-tuning is expected to reach."""
# Largest GPU memory in GiB of a class, its dense 16-bit and fp32 peak rates in TFLOP/s, and a card that has them.
_GPU_CLASSES = (
    (25.0, 71.0, 35.6, "RTX 3090"),
    (50.0, 150.0, 37.4, "A40"),
    (81.0, 312.0, 19.5, "A100"),
    (1000.0, 989.0, 67.0, "H200"),
)
# Precision and CPU flag, and the measured matrix rate of one such core in TFLOP/s (docs/performance.md), its
# instructions, and the utilisation that training reaches. Slower matrix products are a larger part of a step.
_CORE_CLASSES = (
    (Precision.bf16, "amx_bf16", 0.4, "AMX", UTILISATION),
    (Precision.bf16, "avx512_bf16", 0.2, "AVX-512 bf16", 0.5),
    (Precision.fp32, "avx512f", 0.1, "AVX-512", UTILISATION),
)
_CORE_OTHER = 0.05


class Speed(NamedTuple):
    """Expected training speed of one device, and its source."""

    tokens_per_s: float
    source: str


@dataclass(frozen=True, slots=True)
class CostEstimate:
    """Time and price of a run, training alone (evaluation and saving come on top)."""

    total_tokens: int
    tokens_per_s: float
    speed_source: str
    hours: float
    device_hours: float
    cost: float | None
    """In the currency of cluster.price_per_device_hour."""


def expected_speed(
    config: RunConfig, architecture: ArchitectureConfig | None, topology: Topology, threads: int
) -> Speed | None:
    """Tokens per second of one device: measured if given, or from FLOPs; None if the model is unknown."""
    cluster = config.cluster
    if cluster.tokens_per_s_per_device is not None:
        return Speed(cluster.tokens_per_s_per_device, "cluster.tokens_per_s_per_device")
    if architecture is None:
        return None
    peak = _peak(cluster, config.strategy.precision, topology, threads)
    rate = peak.tflops * 1e12 * peak.utilisation / flops_per_token(config, architecture)
    return Speed(rate, f"estimate: {peak.utilisation:.0%} of {peak.tflops:g} TFLOP/s ({peak.source})")


def flops_per_token(config: RunConfig, architecture: ArchitectureConfig) -> float:
    """Training arithmetic per token.

    Per parameter: 2 forward, 2 to pass gradients on, 2 for weight gradients, 2 to recompute; look-ups are free.
    """
    passes = 4.0 if config.method.kind is not MethodKind.full else 6.0
    if config.strategy.activation_checkpointing:
        passes += 2.0
    lookups = 0 if architecture.tied_embeddings else architecture.vocab_size * architecture.hidden_size
    return passes * (count_parameters(architecture) - lookups)


class _Peak(NamedTuple):
    tflops: float
    source: str
    utilisation: float = UTILISATION


def _peak(cluster: ClusterConfig, precision: Precision, topology: Topology, threads: int) -> _Peak:
    stated, is_fp32 = cluster.device_tflops, precision is Precision.fp32
    if stated is not None and (topology.device == "cpu" or not is_fp32):
        return _Peak(stated, "cluster.device_tflops")
    if topology.device == "cpu":
        rate, instructions, utilisation = _core(precision)
        cores = threads or usable_cores()
        return _Peak(rate * cores, f"{cores} cores with {instructions}", utilisation)
    rows = (row for row in _GPU_CLASSES if topology.gpu_memory_gib <= row[0])
    _, half, full, card = next(rows, _GPU_CLASSES[-1])
    if stated is not None:
        source = f"cluster.device_tflops = {stated:g}, scaled to fp32 as on a card like {card}"
        return _Peak(stated * full / half, source)
    return _Peak(full if is_fp32 else half, f"{precision.value} on a card like {card}")


def _core(precision: Precision) -> tuple[float, str, float]:
    """TFLOP/s of one core, by which instructions, and the share of it that training reaches."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    except OSError:
        flags = []
    for of_precision, flag, tflops, instructions, utilisation in _CORE_CLASSES:
        if precision is of_precision and flag in flags:
            return tflops, instructions, utilisation
    return _CORE_OTHER, f"no fast {precision.value}", UTILISATION


def estimate_cost(
    config: RunConfig,
    architecture: ArchitectureConfig | None,
    derived: Derived,
    topology: Topology,
    *,
    epoch_tokens: int,
) -> CostEstimate | None:
    """Hours, device-hours and price of the training; None where no speed can be expected."""
    speed = expected_speed(config, architecture, topology, derived.threads_per_process)
    if speed is None:
        return None
    total_tokens = round(epoch_tokens * derived.total_steps / derived.steps_per_epoch)
    tokens_per_s = speed.tokens_per_s * derived.world_size
    hours = total_tokens / tokens_per_s / 3600
    price = config.cluster.price_per_device_hour
    return CostEstimate(
        total_tokens=total_tokens,
        tokens_per_s=tokens_per_s,
        speed_source=speed.source,
        hours=hours,
        device_hours=hours * derived.world_size,
        cost=None if price is None else hours * derived.world_size * price,
    )
