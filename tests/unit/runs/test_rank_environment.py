"""What of the user's environment reaches a rank."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher.runs.machine_ranks import Place
from launcher.runs.rank_environment import job_environment, rank_environment, write_names

PASSED = (
    "PATH HOME LD_LIBRARY_PATH CUDA_VISIBLE_DEVICES NCCL_DEBUG GLOO_SOCKET_IFNAME HF_TOKEN LC_ALL WANDB_API_KEY "
    "LAUNCHER_CACHE PYTHONPATH TMPDIR VIRTUAL_ENV HTTPS_PROXY OMP_PROC_BIND MODULEPATH MODULESHOME LMOD_PKG"
)
WITHHELD = (
    "ACCELERATE_USE_CPU ACCELERATE_GRADIENT_CLIPPING RANK WORLD_SIZE LOCAL_RANK MASTER_ADDR SLURM_PROCID "
    "TORCHELASTIC_RUN_ID AWS_SECRET_ACCESS_KEY OPENAI_API_KEY GROUP_RANK HFX SSH_AUTH_SOCK"
)


@pytest.mark.parametrize("name", PASSED.split())
def test_what_training_needs_is_passed_on(name: str) -> None:
    assert job_environment({name: "x"}) == {name: "x"}


@pytest.mark.parametrize("name", WITHHELD.split())
def test_stale_ranks_settings_of_accelerate_and_other_secrets_are_not(name: str) -> None:
    assert job_environment({name: "x"}) == {}


def test_a_rank_knows_its_place_and_its_threads() -> None:
    found = rank_environment(
        {"PATH": "/bin"},
        rank=1,
        world_size=2,
        place=Place(num_ranks=2, master_port=4321),
        threads_per_process=3,
        device="cuda",
    )
    assert found["PATH"] == "/bin"
    assert (found["RANK"], found["LOCAL_RANK"], found["WORLD_SIZE"], found["LOCAL_WORLD_SIZE"]) == ("1", "1", "2", "2")
    assert (found["MASTER_ADDR"], found["MASTER_PORT"], found["OMP_NUM_THREADS"]) == ("127.0.0.1", "4321", "3")


def test_a_rank_of_another_machine_counts_from_zero_there_and_goes_by_the_interface_that_leads_out() -> None:
    place = Place(first_rank=4, num_ranks=4, master_address="boxa", master_port=4321, interface="eth1")
    found = rank_environment(
        {"NCCL_SOCKET_IFNAME": "ib0"}, rank=5, world_size=8, place=place, threads_per_process=1, device="cuda"
    )
    assert (found["RANK"], found["LOCAL_RANK"], found["WORLD_SIZE"], found["LOCAL_WORLD_SIZE"]) == ("5", "1", "8", "4")
    assert (found["MASTER_ADDR"], found["GLOO_SOCKET_IFNAME"]) == ("boxa", "eth1")
    assert found["NCCL_SOCKET_IFNAME"] == "ib0"  # the user knows better


def test_a_cpu_run_sees_no_gpu_though_the_machine_has_some() -> None:
    job = {"CUDA_VISIBLE_DEVICES": "0,1"}
    place = Place(num_ranks=1, master_port=1)
    on_cpu = rank_environment(job, rank=0, world_size=1, place=place, threads_per_process=1, device="cpu")
    assert (on_cpu["CUDA_VISIBLE_DEVICES"], on_cpu["DS_ACCELERATOR"]) == ("", "cpu")
    on_gpu = rank_environment(job, rank=0, world_size=1, place=place, threads_per_process=1, device="cuda")
    assert on_gpu["CUDA_VISIBLE_DEVICES"] == "0,1" and "DS_ACCELERATOR" not in on_gpu


def test_only_names_are_written_down(tmp_path: Path) -> None:
    write_names(tmp_path / "env.json", {"WANDB_API_KEY": "secret-value", "HOME": "/root"})
    assert json.loads((tmp_path / "env.json").read_text()) == ["HOME", "WANDB_API_KEY"]
