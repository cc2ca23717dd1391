"""What this machine has, found out from its driver, without torch."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.config.compose import compose_config
from launcher.config.devices import Gpu, host_memory_gib, usable_cores, visible_gpus
from launcher.config.topology import resolve_topology
from tests.fake_gpus import A100_40, A100_MIG, GH200, H100, RTX_4090, V100, install_amd, install_nvidia


@pytest.fixture
def two_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_nvidia(monkeypatch, tmp_path, H100, RTX_4090)


def names() -> list[str]:
    return [gpu.name for gpu in visible_gpus()]


@pytest.mark.usefixtures("two_gpus")
def test_gpus_come_with_name_memory_and_capability() -> None:
    first, second = visible_gpus()
    assert (first.name, second.name) == (H100.name, RTX_4090.name)
    assert first.memory_gib == pytest.approx(79.6, abs=0.1)
    assert (first.capability, second.capability) == ((9, 0), (8, 9))


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("variable", "seen"),
    [
        ("", []),
        ("-1", []),
        ("1", [RTX_4090.name]),
        ("1,0", [RTX_4090.name, H100.name]),
        ("0,9,1", [H100.name]),
        ("GPU-11aa-5b,GPU-00aa", [RTX_4090.name, H100.name]),
        ("GPU-00aa-5b,GPU-77,1", [H100.name]),
        ("NoDevFiles", []),
    ],
)
def test_cuda_visible_devices_is_obeyed(variable: str, seen: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert names() == seen


def test_an_old_driver_that_knows_no_capability_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_nvidia(monkeypatch, tmp_path, V100, V100, knows=("name", "uuid", "memory.total"))
    assert visible_gpus() == [Gpu(V100.name, 16.0, None, uuid) for uuid in ("GPU-00aa-5b", "GPU-11aa-5b")]


def test_memory_shared_with_the_cpu_is_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_nvidia(monkeypatch, tmp_path, GH200)
    (gpu,) = visible_gpus()
    assert (gpu.name, gpu.memory_gib, gpu.capability) == (GH200.name, None, (9, 0))


@pytest.mark.parametrize(
    ("variable", "profile", "memory_gib"),
    [
        pytest.param(None, "3g.20gb", 19.0, id="the first slice"),
        pytest.param("MIG-01-slice", "2g.10gb", 9.5, id="by its UUID"),
        pytest.param("MIG-01-slice,MIG-00-slice", "2g.10gb", 9.5, id="CUDA shows one only"),
        pytest.param("0", "3g.20gb", 19.0, id="by the number of its GPU"),
        pytest.param("1", None, 39.999, id="the GPU that is whole"),
    ],
)
def test_a_slice_of_a_gpu_has_its_own_memory(
    variable: str | None, profile: str | None, memory_gib: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_nvidia(monkeypatch, tmp_path, A100_MIG, A100_40)
    if variable is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    (gpu,) = visible_gpus()
    assert gpu.name == (f"{A100_MIG.name} MIG {profile}" if profile else A100_40.name)
    assert gpu.memory_gib == pytest.approx(memory_gib, abs=0.01) and gpu.capability == (8, 0)


@pytest.mark.parametrize(
    ("variables", "seen"),
    [
        ({}, [0, 1, 2, 3]),
        ({"HIP_VISIBLE_DEVICES": "2,0"}, [2, 0]),
        ({"CUDA_VISIBLE_DEVICES": "3"}, [3]),
        ({"ROCR_VISIBLE_DEVICES": "1,2", "HIP_VISIBLE_DEVICES": "1"}, [2]),
        ({"ROCR_VISIBLE_DEVICES": f"GPU-{0xABC0 + 5:016x}"}, [3]),
        ({"HIP_VISIBLE_DEVICES": ""}, []),
    ],
)
def test_gpus_of_amd_are_found_without_a_tool(
    variables: dict[str, str], seen: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    install_amd(monkeypatch, tmp_path, gpus=4)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    uuids = [f"GPU-{0xABC0 + 2 + number:016x}" for number in seen]
    assert visible_gpus() == [Gpu("AMD gfx942", 192.0, None, uuid) for uuid in uuids]


@pytest.mark.parametrize("script", ["exit 9", "echo 'NVIDIA-SMI has failed'", "echo; exit 0"])
def test_a_broken_driver_means_no_gpu(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_nvidia(monkeypatch, tmp_path)
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    assert names() == []


def test_an_nvidia_smi_that_hangs_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_nvidia(monkeypatch, tmp_path, H100, hangs=True)
    monkeypatch.setattr("launcher.config.devices._LIMIT_S", 0.5)
    assert names() == names() == []
    install_nvidia(monkeypatch, tmp_path, H100)
    assert names() == []  # not asked again in this process


def test_without_nvidia_smi_the_drivers_listing_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_amd(monkeypatch, tmp_path, gpus=0)
    (tmp_path / "gpus" / "0000:01:00.0").mkdir(parents=True)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("launcher.config.devices._NVIDIA_DRIVER", tmp_path / "gpus")
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
