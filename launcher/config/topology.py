"""Devices and number of processes of a run, known before anything starts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from launcher.config.cluster_schema import Device
from launcher.config.devices import Gpu, smallest_memory_gib
from launcher.config.schema import Attention, Precision, RunConfig, StrategyKind
from launcher.errors import Problem

AMPERE = (8, 0)
"""The first compute capability with bf16 and with the kernels of flash-attention 2."""
ASSUMED_GPU_MEMORY_GIB = 80.0
"""Where neither the settings nor a GPU of this host say."""


@dataclass(frozen=True, slots=True)
class Topology:
    """Device type and processes of a run."""

    device: str
    """cpu or cuda."""
    devices_per_node: int
    nodes: int
    gpu_memory_gib: float = ASSUMED_GPU_MEMORY_GIB
    """Of the smallest GPU; without meaning on a CPU."""
    capability: tuple[int, int] | None = None
    """CUDA compute capability of the oldest GPU; None where it is not known, as for a Slurm job."""

    @property
    def world_size(self) -> int:
        """Ranks of the whole run."""
        return self.devices_per_node * self.nodes


def resolve_topology(config: RunConfig, gpus: list[Gpu]) -> Topology:
    """Devices and ranks of a run, given the GPUs visible here (devices.visible_gpus()).

    By default a local run uses every GPU, one GPU under strategy single, or one process on the CPU. A Slurm job uses
    what its settings say, because it runs on other hosts.
    """
    cluster = config.cluster
    device = str(cluster.device.value)
    if cluster.device is Device.auto:
        device = "cuda" if gpus or cluster.is_slurm else "cpu"
    count = cluster.devices_per_node
    if count is None:
        takes_all = device == "cuda" and not cluster.is_slurm and config.strategy.kind is not StrategyKind.single
        count = max(1, len(gpus)) if takes_all else 1
    memory = cluster.gpu_memory_gib or measured_gpu_memory_gib(config, gpus) or ASSUMED_GPU_MEMORY_GIB
    known = [] if cluster.is_slurm else [gpu.capability for gpu in gpus if gpu.capability is not None]
    return Topology(
        device=device,
        devices_per_node=count,
        nodes=cluster.nodes,
        gpu_memory_gib=memory,
        capability=min(known, default=None) if device == "cuda" else None,
    )


def old_gpu_problems(
    capability: tuple[int, int] | None, precision: Precision, attention: Attention
) -> Iterator[Problem]:
    """What a GPU of this compute capability cannot compute; None: it is not known, or not CUDA's."""
    if capability is None or capability >= AMPERE:
        return
    gpu = f"a GPU of compute capability {capability[0]}.{capability[1]} (before Ampere)"
    if precision is Precision.bf16:
        why = f"{gpu} does not compute in bf16"
        yield Problem("strategy.precision", precision.value, why, "Use strategy.precision=fp16, or fp32")
    if attention in (Attention.varlen, Attention.flash_attention_2):
        why = f"{gpu} has no such kernel"
        yield Problem("model.attention", attention.value, why, "Use model.attention=segments, or auto")


def measured_gpu_memory_gib(config: RunConfig, gpus: list[Gpu]) -> float | None:
    """Memory of the smallest GPU visible here; None where the run is elsewhere, or the driver did not say."""
    return None if config.cluster.is_slurm else smallest_memory_gib(gpus)
