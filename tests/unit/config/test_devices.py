"""What this machine has, learned from its driver, without torch."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.config.compose import compose_config
from launcher.config.devices import Gpu, host_memory_gib, usable_cores, visible_gpus
from launcher.config.topology import resolve_topology


@pytest.fixture
def two_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An nvidia-smi on the path that answers as the real one does on a machine with two GPUs."""
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 81559'\necho 'NVIDIA L4, 23034'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def names() -> list[str]:
    return [gpu.name for gpu in visible_gpus()]


@pytest.mark.usefixtures("two_gpus")
def test_gpus_come_with_name_and_memory() -> None:
    first, second = visible_gpus()
    assert (first.name, second.name) == ("NVIDIA H100 80GB HBM3", "NVIDIA L4")
    assert first.memory_gib == pytest.approx(79.6, abs=0.1)


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("variable", "seen"),
    [
        ("", []),
        ("-1", []),
        ("1", ["NVIDIA L4"]),
        ("1,0", ["NVIDIA L4", "NVIDIA H100 80GB HBM3"]),
        ("0,9,1", ["NVIDIA H100 80GB HBM3"]),
        ("GPU-8a1,GPU-8a2", ["GPU-8a1", "GPU-8a2"]),
        ("NoDevFiles", []),
    ],
)
def test_cuda_visible_devices_is_obeyed(variable: str, seen: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert names() == seen


@pytest.mark.parametrize("script", ["exit 9", "echo 'NVIDIA-SMI has failed'", "echo; exit 0"])
def test_a_broken_driver_means_no_gpu(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr("launcher.config.devices._DRIVER", tmp_path / "none")
    assert names() == []


def test_without_nvidia_smi_the_drivers_listing_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gpus" / "0000:01:00.0").mkdir(parents=True)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("launcher.config.devices._DRIVER", tmp_path / "gpus")
    assert visible_gpus() == [Gpu("0000:01:00.0", None)]


def test_cores_and_memory_are_positive() -> None:
    assert usable_cores() >= 1
    assert host_memory_gib() > 0.5


@pytest.mark.parametrize(
    ("overrides", "gpus", "device", "ranks"),
    [
        ([], 0, "cpu", 1),
        ([], 4, "cuda", 1),  # single takes one
        (["strategy=ddp"], 4, "cuda", 4),
        (["strategy=ddp"], 0, "cpu", 1),
        (["strategy=zero2", "cluster.devices_per_node=2"], 4, "cuda", 2),
        (["strategy=ddp", "cluster.device=cpu", "cluster.devices_per_node=2"], 4, "cpu", 2),
        (["strategy=ddp", "cluster.device=cuda"], 0, "cuda", 1),
        (["strategy=ddp", "cluster=slurm", "cluster.nodes=3"], 0, "cuda", 24),
    ],
)
def test_ranks_follow_strategy_and_devices(overrides: list[str], gpus: int, device: str, ranks: int) -> None:
    topology = resolve_topology(compose_config(["experiment=quickstart", *overrides]), [Gpu("x", 80.0)] * gpus)
    assert (topology.device, topology.world_size) == (device, ranks)


@pytest.mark.parametrize(
    ("overrides", "gpus", "memory_gib"),
    [
        pytest.param([], [24.0], 24.0, id="measured"),
        pytest.param([], [80.0, 40.0], 40.0, id="the smallest one"),
        pytest.param(["cluster.gpu_memory_gib=20"], [24.0], 20.0, id="given"),
        pytest.param([], [None], 80.0, id="the driver does not say"),
        pytest.param([], [], 80.0, id="no GPU here"),
        pytest.param(
            ["cluster=slurm", "strategy=ddp", "cluster.gpu_memory_gib=null"], [24.0], 80.0, id="a job runs elsewhere"
        ),
    ],
)
def test_memory_of_a_gpu_is_measured_unless_it_is_given(
    overrides: list[str], gpus: list[float | None], memory_gib: float
) -> None:
    config = compose_config(["experiment=quickstart", *overrides])
    assert resolve_topology(config, [Gpu("x", each) for each in gpus]).gpu_memory_gib == memory_gib
