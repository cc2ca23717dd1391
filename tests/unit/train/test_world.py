"""Who this process is under any starter, and what happens when those who met are not those who were planned."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
import torch

from launcher.config.frozen import load_config
from launcher.errors import CheckpointError, DeviceError, ErrorOnMain, ExitCode, RunError, TorchLacksGpu, WorldError
from launcher.paths import RunPaths
from launcher.runs.rank_environment import rank_numbers
from launcher.train.world import World, gpu_of, join_world, meet, on_main, refuse_torch_without_gpu
from tests.dist.rig import make_data, make_run

ALONE = World(rank=0, size=1, device=torch.device("cpu"))
NAMES = [
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "SLURM_PROCID",
    "SLURM_STEP_ID",
    "SLURM_LOCALID",
    "SLURM_STEP_NUM_TASKS",
    "SLURM_NTASKS",
    "SLURM_JOB_ID",
]


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.setenv(name, "")  # so that it is restored whatever the code under test sets
        monkeypatch.delenv(name)


STARTERS = [
    pytest.param({}, (0, 0, 1), id="nothing"),
    pytest.param({"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8"}, (5, 1, 8), id="torchrun"),
    pytest.param({"RANK": "1", "WORLD_SIZE": "2"}, (1, 0, 2), id="no local rank"),
    pytest.param(
        {"SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4"},
        (3, 1, 4),
        id="srun",
    ),
    pytest.param(
        {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "16", "SLURM_JOB_ID": "7"},
        (0, 0, 1),
        id="bare sbatch",
    ),
    pytest.param(
        {"SLURM_PROCID": "0", "SLURM_STEP_ID": "4294967290", "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"},
        (1, 1, 2),
        id="torchrun inside srun",
    ),
]


@pytest.mark.parametrize(("environment", "place"), STARTERS)
def test_every_starter_is_understood(environment: dict[str, str], place: tuple[int, int, int]) -> None:
    assert rank_numbers(environment) == place


def test_another_number_of_ranks_than_planned_is_refused_before_they_meet(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run", tiny_model, make_data(tmp_path / "data"), "strategy=ddp", world_size=2)
    derived = load_config(RunPaths(run).config).derived
    assert derived is not None
    with pytest.raises(WorldError, match=r"1 process started but the run was planned for 2 \(RANK=0, LOCAL_RANK=0\)"):
        join_world(derived)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(WorldError, match=r"3 processes started but the run was planned for 2 \(RANK=1"):
        join_world(dataclasses.replace(derived, world_size=2))


def test_ranks_without_a_meeting_point_say_how_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(WorldError, match=r"2 processes were started but MASTER_PORT is not set.*torchrun"):
        meet("cpu")


def test_one_rank_needs_no_collectives() -> None:
    assert ALONE.is_main
    assert ALONE.gather("x") == ["x"] and ALONE.from_main(3) == 3
    assert ALONE.any(True) and not ALONE.any(False)
    assert ALONE.sum_(torch.ones(2)).tolist() == [1, 1]
    ALONE.barrier()


def test_work_on_the_main_rank_gives_its_result() -> None:
    assert on_main(ALONE, lambda: 7) == 7


def test_a_disk_that_fails_on_the_main_rank_is_a_checkpoint_error() -> None:
    def full() -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointError, match="No space left on device"):
        on_main(ALONE, full)


def test_an_error_of_ours_stays_what_it_is() -> None:
    def refuse() -> None:
        raise RunError("busy")

    with pytest.raises(RunError, match="busy"):
        on_main(ALONE, refuse)


def test_the_other_ranks_end_with_the_same_exit_code() -> None:
    error = ErrorOnMain("busy", ExitCode.USER, "RunError", {"path": "x"})
    assert (error.exit_code, error.kind, error.data) == (ExitCode.USER, "RunError", {"path": "x"})


@pytest.mark.parametrize(("local_rank", "num_gpus", "gpu"), [(0, 1, 0), (3, 1, 0), (3, 4, 3), (7, 8, 7)])
def test_a_rank_takes_the_gpu_of_its_place_or_the_only_one_it_sees(local_rank: int, num_gpus: int, gpu: int) -> None:
    assert gpu_of(5, local_rank, num_gpus) == gpu


@pytest.mark.parametrize(("num_gpus", "seen"), [(0, "no GPU is"), (7, "7 GPUs are")])
def test_a_rank_without_a_gpu_of_its_own_says_so_and_takes_no_others(num_gpus: int, seen: str) -> None:
    with pytest.raises(DeviceError, match=rf"rank 15 on .* is the node's rank 7, and {seen} visible there"):
        gpu_of(15, 7, num_gpus)


@pytest.mark.parametrize(("num_gpus", "ordinal"), [(1, "0"), (4, "3")])
def test_libraries_are_told_an_ordinal_that_is_there(
    num_gpus: int, ordinal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one GPU a task (--gpus-per-task, most --gpu-bind) each rank sees its own as number 0."""
    monkeypatch.setenv("RANK", "7")
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "8")
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    world = meet("cuda")
    assert (world.rank, chosen) == (7, [torch.device("cuda", int(ordinal))])
    assert (os.environ["LOCAL_RANK"], os.environ["RANK"], os.environ["WORLD_SIZE"]) == (ordinal, "7", "8")


@pytest.mark.parametrize(
    ("cuda", "hip", "installed", "says"),
    [
        (None, None, 0, r"was built without GPU support; install a build for CUDA or ROCm"),
        (None, None, 8, r"was built without GPU support"),
        ("13.0", None, 8, r"has 8 GPUs, and torch .*, built for CUDA 13\.0, sees none: the driver may be too old"),
        (None, "7.0", 1, r"has 1 GPU, and torch .*, built for ROCm 7\.0, sees none"),
    ],
)
def test_a_torch_that_cannot_use_the_gpus_is_not_blamed_on_the_node(
    cuda: str | None, hip: str | None, installed: int, says: str
) -> None:
    with pytest.raises(TorchLacksGpu, match=says):
        refuse_torch_without_gpu(cuda, hip, installed)


def test_a_node_without_gpus_is_left_to_the_node() -> None:
    refuse_torch_without_gpu("13.0", None, 0)


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch is built for CUDA")
def test_a_cpu_build_of_torch_refuses_a_run_planned_for_gpus() -> None:
    with pytest.raises(TorchLacksGpu, match=r"pytorch\.org/get-started"):
        meet("cuda")
