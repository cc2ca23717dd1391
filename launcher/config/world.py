"""Which devices a run uses and how many processes that makes, before anything is started."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.config.cluster_schema import ClusterKind, Device
from launcher.config.devices import Gpu
from launcher.config.schema import RunConfig, StrategyKind


@dataclass(frozen=True, slots=True)
class World:
    """What the settings come to on a machine with the given GPUs."""

    device: str
    """cpu or cuda."""
    devices_per_node: int
    nodes: int

    @property
    def size(self) -> int:
        """Ranks of the whole run."""
        return self.devices_per_node * self.nodes


def resolve_world(config: RunConfig, gpus: list[Gpu]) -> World:
    """Device and ranks of a run, given the GPUs visible here (devices.visible_gpus()).

    Left to choose, a local run takes every GPU, or one under strategy single, or one process on the CPU; a job takes
    what its settings say, since this machine is not the one that will run it.
    """
    cluster = config.cluster
    is_job = cluster.kind is ClusterKind.slurm
    device = str(cluster.device.value)
    if cluster.device is Device.auto:
        device = "cuda" if gpus or is_job else "cpu"
    count = cluster.devices_per_node
    if count is None:
        takes_all = device == "cuda" and not is_job and config.strategy.kind is not StrategyKind.single
        count = max(1, len(gpus)) if takes_all else 1
    return World(device=device, devices_per_node=count, nodes=cluster.nodes)
