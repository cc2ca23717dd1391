"""What many tests need made: derived values, a run directory, the facts of a dataset, the resources of a job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from launcher.config.schema import Derived, RunConfig
from launcher.plan.plan import DataFacts
from launcher.runs.run_dir import create_run
from launcher.slurm.job.allocation import Allocation


def make_derived(**changes: Any) -> Derived:
    """Derived values of a short run of one rank on the CPU, but for the changes."""
    values: dict[str, Any] = {
        "run_id": "abc123",
        "model_dir": "model",
        "data_dir": "prepared",
        "data_key": "key",
        "device": "cpu",
        "world_size": 1,
        "devices_per_node": changes.get("world_size", 1),
        "threads_per_process": 1,
        "num_packs": 8,
        "global_sequences": 4,
        "micro_sequences": 2,
        "grad_accum_steps": 1,
        "steps_per_epoch": 2,
        "total_steps": 4,
        "peak_lr": 1e-4,
        "warmup_steps": 0,
        "attention": "segments",
    }
    return Derived(**{**values, **changes})


def make_run(runs_dir: Path, name: str | None = "one", *, nodes: int = 1, **derived: Any) -> Path:
    """A run directory under `runs_dir` as a starter makes it, with its data in place. Returns it."""
    config = RunConfig(name=name, runs_dir=str(runs_dir), experiment_name="trial")
    config.model.name_or_path = "model"
    config.cluster.nodes = nodes
    data = runs_dir.parent / "prepared"
    data.mkdir(parents=True, exist_ok=True)
    world_size = derived.pop("world_size", 1)
    values = {"data_dir": str(data), "world_size": world_size, "devices_per_node": world_size // nodes, **derived}
    return create_run(config, make_derived(**values), {"steps": 4})


def make_facts(num_packs: int, *, pack_tokens: float, longest: int) -> DataFacts:
    """Facts of a dataset with the given number of packs, their mean length and the longest one."""
    return DataFacts(
        examples=num_packs,
        validation_examples=0,
        tokens=round(num_packs * pack_tokens),
        supervised_tokens=num_packs,
        num_packs=num_packs,
        max_pack_tokens=longest,
        max_pack_supervised=1,
    )


def make_allocation(nodes: int = 1, **given: Any) -> Allocation:
    """The resources of job 7, on n1, n2, ..."""
    return Allocation(**{"job_id": "7", "nodes": tuple(f"n{number + 1}" for number in range(nodes)), **given})
