"""Runs and clusters for tests of the submission."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from launcher.config.cluster_schema import ClusterConfig, ClusterKind, Device
from launcher.config.schema import RunConfig
from launcher.slurm.client.parse import NodeKind, Partition
from launcher.slurm.client.sbatch import JobRequest

KEY = "0123456789abcdef"


def job_config(**cluster: object) -> RunConfig:
    """A run of two nodes with four GPUs each, unless told otherwise."""
    config = RunConfig(name="lora", runs_dir="/runs")
    base = ClusterConfig(kind=ClusterKind.slurm, device=Device.cuda, nodes=2, devices_per_node=4)
    config.cluster = replace(base, **cluster)  # type: ignore[arg-type]
    return config


def request(stage: str = "train", **fields: object) -> JobRequest:
    """A job of that run."""
    base = JobRequest(
        stage=stage,
        job_name="lora",
        key=KEY,
        script=Path(f"/share/slurm/{stage}.sbatch"),
        script_args=["--run", "/runs/lora"],
        log_dir=Path("/runs/lora"),
        variables=["HOME", "PATH"],
    )
    return replace(base, **fields)  # type: ignore[arg-type]


def gpu_partition(name: str = "gpu", **fields: object) -> Partition:
    """Four nodes with eight H100 each, two with four A100."""
    base = Partition(
        name=name,
        is_default=True,
        time_limit_s=86_400,
        kinds=[
            NodeKind(count=4, cpus=64, memory_mib=512_000, gpus={"h100": 8}, state="idle"),
            NodeKind(count=2, cpus=32, memory_mib=256_000, gpus={"a100": 4}, state="mix"),
        ],
    )
    return replace(base, **fields)  # type: ignore[arg-type]


def cpu_partition() -> Partition:
    return Partition(name="cpu", time_limit_s=3600, kinds=[NodeKind(count=3, cpus=16, memory_mib=64_000, state="idle")])
