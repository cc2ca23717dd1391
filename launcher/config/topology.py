"""Devices and number of processes of a run, known before anything starts."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.config.cluster_schema import Device
from launcher.config.devices import Gpu
from launcher.config.schema import RunConfig, StrategyKind

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
    return Topology(device=device, devices_per_node=count, nodes=cluster.nodes, gpu_memory_gib=memory)


def measured_gpu_memory_gib(config: RunConfig, gpus: list[Gpu]) -> float | None:
    """Memory of the smallest GPU visible here; None where the run is elsewhere, or the driver did not say."""
    known = [] if config.cluster.is_slurm else [gpu.memory_gib for gpu in gpus if gpu.memory_gib is not None]
    return min(known, default=None)
