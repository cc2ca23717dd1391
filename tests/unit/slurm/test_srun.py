from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launcher.config.cluster_schema import ClusterConfig, ContainerRuntime
from launcher.config.schema import Derived, RunConfig
from launcher.errors import ConfigErrors, RunError
from launcher.runs.rank_environment import RankEnvironment
from launcher.slurm.job.srun import (
    cores_per_rank,
    ranks_environment,
    srun_argv,
    stage_argv,
    stage_environment,
    step_environment,
)
from tests.made import make_allocation, make_derived

RUN = Path("/shared/runs/one")


def derived(*, nodes: int = 2, per_node: int = 4, device: str = "cuda") -> Derived:
    return make_derived(
        device=device,
        world_size=nodes * per_node,
        devices_per_node=per_node,
        data_dir="/shared/data",
        model_dir="/shared/model",
        threads_per_process=3,
    )


def argv(cluster: ClusterConfig | None = None, *, run_dir: Path = RUN, **world: Any) -> list[str]:
    config = RunConfig(cluster=cluster or ClusterConfig())
    return srun_argv(config, derived(**world), run_dir=run_dir, attempt=3, cpus_per_task=5)


def stage(cluster: ClusterConfig, *, gpus: bool = False) -> list[str]:
    words = ["eval", str(RUN)]
    config = RunConfig(cluster=cluster)
    return stage_argv(config, words, shown=[RUN], gpus=gpus, cpus_per_task=5)


def environment(config: RunConfig | None = None, environ: dict[str, str] | None = None, **given: Any) -> dict[str, str]:
    world = {"master_address": "n1", "master_port": 12345, "threads": 5, "device": "cuda", "ranks_per_node": 4, **given}
    return ranks_environment(environ or {}, (config or RunConfig()).cluster, RankEnvironment(**world))


def test_there_is_one_task_for_each_rank_and_a_failed_one_ends_the_others() -> None:
    words = argv(nodes=2, per_node=4)
    wanted = {"--nodes=2", "--ntasks=8", "--ntasks-per-node=4", "--cpus-per-task=5", "--kill-on-bad-exit=1"}
    assert wanted <= set(words)
    assert words[0] == "srun"
    assert words[-7:] == [sys.executable, "-m", "launcher.train", "--run", str(RUN), "--attempt", "3"]


def test_each_rank_appends_to_a_log_of_its_own_in_the_attempt() -> None:
    words = argv()
    assert f"--output={RUN}/attempts/0003/rank-%4t.log" in words
    assert "--open-mode=append" in words


def test_a_percent_sign_in_a_path_is_no_pattern_of_srun() -> None:
    assert "--output=/shared/50%%/one/attempts/0003/rank-%4t.log" in argv(run_dir=Path("/shared/50%/one"))


def test_a_path_with_a_backslash_is_refused_since_srun_then_knows_no_patterns() -> None:
    with pytest.raises(RunError, match=r"backslash cannot hold the ranks' logs.*choose another runs_dir"):
        argv(run_dir=Path("/shared/a\\b/one"))


def test_what_the_site_adds_comes_last_and_so_wins() -> None:
    words = argv(ClusterConfig(srun_args=["--cpu-bind=cores", "--mpi=pmix"]))
    assert words.index("--mpi=none") < words.index("--mpi=pmix") < words.index(sys.executable)


def test_apptainer_sees_gpus_run_data_model_and_what_the_site_mounts() -> None:
    cluster = ClusterConfig(
        container=ContainerRuntime.apptainer, container_image="/images/a b.sif", container_mounts=["/scratch:/tmp"]
    )
    words = argv(cluster)
    inside = words[words.index("apptainer") :]
    assert inside[:3] == ["apptainer", "exec", "--nv"]
    bound = [inside[place + 1] for place, word in enumerate(inside) if word == "--bind"]
    assert {f"{RUN}:{RUN}", "/shared/data:/shared/data", "/shared/model:/shared/model", "/scratch:/tmp"} <= set(bound)
    assert inside[inside.index("/images/a b.sif") + 1 :][:3] == ["python", "-m", "launcher.train"]
    assert "--nv" not in argv(cluster, device="cpu")


def test_pyxis_gets_image_and_mounts_as_options_of_srun() -> None:
    words = argv(ClusterConfig(container=ContainerRuntime.pyxis, container_image="nvcr.io#nvidia/pytorch:25.01-py3"))
    assert "--container-image=nvcr.io#nvidia/pytorch:25.01-py3" in words
    mounted = next(word for word in words if word.startswith("--container-mounts="))
    assert f"{RUN}:{RUN}," in mounted
    assert words[-7:-4] == ["python", "-m", "launcher.train"]


@pytest.mark.parametrize(
    ("cluster", "key"),
    [
        (ClusterConfig(container=ContainerRuntime.apptainer), "cluster.container_image"),
        (ClusterConfig(srun_args=["/bin/true"]), "cluster.srun_args"),
        (ClusterConfig(srun_args=["--multi-prog"]), "cluster.srun_args"),
    ],
)
def test_a_run_that_was_never_checked_starts_nothing_else(cluster: ClusterConfig, key: str) -> None:
    """As one that was started with sbatch by hand."""
    with pytest.raises(ConfigErrors) as raised:
        argv(cluster)
    assert [problem.key for problem in raised.value.problems] == [key]
    with pytest.raises(ConfigErrors):
        stage(cluster)


def test_a_stage_starts_in_the_container_of_the_ranks() -> None:
    image = "/images/a.sif"
    words = stage(ClusterConfig(container=ContainerRuntime.apptainer, container_image=image), gpus=True)
    inside = words[words.index("apptainer") :]
    assert inside[:3] == ["apptainer", "exec", "--nv"] and f"{RUN}:{RUN}" in inside
    assert inside[inside.index(image) + 1 :] == ["python", "-m", "launcher", "eval", str(RUN)]
    options = ["--container-writable", "--no-container-mount-home", "--cpu-bind=cores"]
    words = stage(ClusterConfig(container=ContainerRuntime.pyxis, container_image="a/b", srun_args=options))
    assert {"--container-image=a/b", "--container-writable", "--no-container-mount-home"} <= set(words)
    assert any(word.startswith(f"--container-mounts={RUN}:{RUN}") for word in words)
    assert "--cpu-bind=cores" not in words  # said of the ranks, which are many
    assert words[-5:] == ["python", "-m", "launcher", "eval", str(RUN)]


def test_without_a_container_a_stage_has_the_python_of_the_job() -> None:
    assert stage(ClusterConfig())[-5:] == [sys.executable, "-m", "launcher", "eval", str(RUN)]


def test_a_stage_gets_the_variables_of_the_site_as_the_ranks_do() -> None:
    config = RunConfig(cluster=ClusterConfig(environment={"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"}))
    found = stage_environment({"PATH": "/bin", "HF_HUB_OFFLINE": "0", "AWS_KEY": "x"}, config, cpus=6)
    assert found == {"PATH": "/bin", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "2"}


@pytest.mark.parametrize(
    ("asked", "given", "on_node", "ranks", "expected"),
    [
        pytest.param(None, None, 32, 8, (4, False), id="the node divided among its ranks"),
        pytest.param(2, None, 32, 8, (2, False), id="as the run asks"),
        pytest.param(None, 3, 32, 8, (3, False), id="as the job asked"),
        pytest.param(16, None, 32, 8, (4, False), id="never more than there are"),
        pytest.param(None, None, 1, 8, (1, True), id="ranks share too few cores"),
    ],
)
def test_cores_of_a_rank(
    asked: int | None, given: int | None, on_node: int, ranks: int, expected: tuple[int, bool]
) -> None:
    assert cores_per_rank(asked, make_allocation(cpus_per_task=given, cpus_per_node=on_node), ranks) == expected


def test_ranks_get_the_allow_list_and_what_slurm_says_of_the_job_only() -> None:
    environ = {
        "PATH": "/bin",
        "WANDB_API_KEY": "k",
        "SLURM_JOB_ID": "7",
        "SLURM_CONF": "/etc/slurm.conf",
        "SLURM_JWT": "secret",
        "SLURM_CPUS_PER_GPU": "4",
        "SLURM_NTASKS_PER_NODE": "1",
        "ACCELERATE_USE_CPU": "1",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "RANK": "3",
    }
    assert step_environment(environ) == {
        "PATH": "/bin",
        "WANDB_API_KEY": "k",
        "SLURM_JOB_ID": "7",
        "SLURM_CONF": "/etc/slurm.conf",
    }


def test_the_ranks_know_where_to_meet_and_when_the_job_ends() -> None:
    found = environment(end_time_s=1_800_000_000.4)
    assert (found["MASTER_ADDR"], found["MASTER_PORT"]) == ("n1", "12345")
    assert found["LAUNCHER_END_TIME_S"] == "1800000000"
    assert "LAUNCHER_END_TIME_S" not in environment(environ={}, end_time_s=None)


def test_the_users_settings_beat_defaults_and_the_runs_beat_the_users() -> None:
    config = RunConfig(cluster=ClusterConfig(environment={"NCCL_SOCKET_IFNAME": "ib0", "NCCL_DEBUG": "INFO"}))
    found = environment(config, {"GOMP_SPINCOUNT": "5", "NCCL_DEBUG": "WARN"}, interface="eth7")
    assert found["GOMP_SPINCOUNT"] == "5"
    assert found["NCCL_DEBUG"] == "INFO"
    assert (found["NCCL_SOCKET_IFNAME"], found["GLOO_SOCKET_IFNAME"]) == ("ib0", "eth7")
    assert found["OMP_NUM_THREADS"] == "5"


def test_a_run_on_the_cpu_sees_no_gpu() -> None:
    found = environment(environ={"CUDA_VISIBLE_DEVICES": "0,1"}, device="cpu")
    assert (found["CUDA_VISIBLE_DEVICES"], found["DS_ACCELERATOR"]) == ("", "cpu")


def test_every_word_reaches_a_program_as_it_is() -> None:
    nasty = ["--comment=$(touch /tmp/x); `id` \"' \\", "--network=a b"]
    words = argv(ClusterConfig(srun_args=nasty))
    told = subprocess.run(["printf", r"%s\0", *words], capture_output=True, text=True, check=True).stdout
    assert told.split("\0")[:-1] == words
