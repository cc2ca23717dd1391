"""What of the user's environment reaches a rank, and what its starter adds."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from launcher.runs.rank_environment import (
    RankEnvironment,
    RankNumbers,
    is_watched,
    job_end_time,
    job_environment,
    rank_label,
    rank_numbers,
    ranks_per_node,
    write_names,
)

PASSED = (
    "PATH HOME LD_LIBRARY_PATH CUDA_VISIBLE_DEVICES NCCL_DEBUG GLOO_SOCKET_IFNAME HF_TOKEN LC_ALL WANDB_API_KEY "
    "LAUNCHER_CACHE PYTHONPATH TMPDIR VIRTUAL_ENV HTTPS_PROXY OMP_PROC_BIND "
    "OFI_NCCL_PROTOCOL RCCL_MSCCL_ENABLE CUBLAS_WORKSPACE_CONFIG CUDNN_LOGLEVEL_DBG "
    "TORCHDYNAMO_VERBOSE NVTE_FLASH_ATTN MODULEPATH MODULESHOME LMOD_PKG"
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


def told(**changes: Any) -> RankEnvironment:
    given = {"master_address": "127.0.0.1", "master_port": 4321, "threads": 3, "device": "cuda", "ranks_per_node": 2}
    return RankEnvironment(**{**given, **changes})


def test_a_rank_reads_back_what_its_starter_wrote() -> None:
    end_s = float(int(time.time()) + 600)
    hosts = told(ranks_per_node=4, nodes=("n1", "n2"), end_time_s=end_s)
    found = hosts.variables({"PATH": "/bin"}, numbers=RankNumbers(5, 1, 8))
    assert found["PATH"] == "/bin"
    assert rank_numbers(found) == RankNumbers(rank=5, local_rank=1, world_size=8)
    assert ranks_per_node(found, 8) == 4
    assert [rank_label(found, rank) for rank in (3, 4, 8)] == ["rank 3 on n1", "rank 4 on n2", "rank 8"]
    assert is_watched(found)
    assert job_end_time(found) == end_s
    assert (found["MASTER_ADDR"], found["MASTER_PORT"], found["OMP_NUM_THREADS"]) == ("127.0.0.1", "4321", "3")


def test_whoever_was_not_started_by_launcher_is_alone_unwatched_and_without_a_limit() -> None:
    assert rank_numbers({}) == RankNumbers(0, 0, 1)
    assert not is_watched({})
    assert job_end_time({}) is None
    assert rank_label({"SLURM_STEP_NODELIST": "n[1-2]"}, 3) == "rank 3 (nodes n[1-2])"


def test_ranks_use_the_interface_that_leads_to_the_other_nodes_unless_the_user_names_one() -> None:
    found = told(interface="eth1").variables({"NCCL_SOCKET_IFNAME": "ib0"})
    assert (found["GLOO_SOCKET_IFNAME"], found["NCCL_SOCKET_IFNAME"]) == ("eth1", "ib0")


def test_a_cpu_run_sees_no_gpu_though_the_machine_has_some() -> None:
    job = {"CUDA_VISIBLE_DEVICES": "0,1"}
    on_cpu = told(device="cpu").variables(job, settings=job)
    assert (on_cpu["CUDA_VISIBLE_DEVICES"], on_cpu["DS_ACCELERATOR"]) == ("", "cpu")
    on_gpu = told(device="cuda").variables(job)
    assert on_gpu["CUDA_VISIBLE_DEVICES"] == "0,1" and "DS_ACCELERATOR" not in on_gpu


def test_only_names_are_written_down(tmp_path: Path) -> None:
    write_names(tmp_path / "env.json", {"WANDB_API_KEY": "secret-value", "HOME": "/root"})
    assert json.loads((tmp_path / "env.json").read_text()) == ["HOME", "WANDB_API_KEY"]


def test_ranks_on_gpus_count_them_as_nvidia_smi_and_do_not_fragment_their_memory() -> None:
    assert told().variables({}).items() >= {
        ("CUDA_DEVICE_ORDER", "PCI_BUS_ID"),
        ("PYTORCH_ALLOC_CONF", "expandable_segments:True"),
    }
    assert "PYTORCH_ALLOC_CONF" not in told(device="cpu").variables({})
    own = {"PYTORCH_CUDA_ALLOC_CONF": "backend:cudaMallocAsync", "CUDA_DEVICE_ORDER": "FASTEST_FIRST"}
    found = told().variables(own)
    assert "PYTORCH_ALLOC_CONF" not in found and found.items() >= own.items()
