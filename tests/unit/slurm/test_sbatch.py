"""The sbatch command: what is asked for, and that a user's text is one word of it or refused."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from launcher.config.cluster_schema import ContainerRuntime, Device, GpuRequest
from launcher.config.compose import compose_config
from launcher.config.schema import ArchitectureConfig, MethodKind
from launcher.errors import ConfigErrors
from launcher.slurm.client.sbatch import job_variables, sbatch_argv, sbatch_environment, sbatch_problems
from tests.unit.slurm.recipes import KEY, job_config, request


def options(argv: list[str]) -> dict[str, str]:
    """Options of a command by name."""
    return {word.partition("=")[0]: word.partition("=")[2] for word in argv if word.startswith("--")}


def test_a_plain_run_asks_for_its_nodes_gpus_and_ranks() -> None:
    assert sbatch_argv(job_config(), request()) == [
        "sbatch",
        "--parsable",
        "--job-name=lora",
        f"--comment=launcher:{KEY}",
        "--output=/runs/lora/slurm-%j.out",
        "--open-mode=append",
        "--requeue",
        "--export=HOME,PATH",
        "--nodes=2",
        "--ntasks-per-node=4",
        "--cpus-per-task=4",
        "--gpus-per-node=4",
        "--signal=USR2@120",
        "/share/slurm/train.sbatch",
        "--run",
        "/runs/lora",
    ]


@pytest.mark.parametrize(
    ("cluster", "word"),
    [
        ({"partition": "gpu,gpu2"}, "--partition=gpu,gpu2"),
        ({"account": "lab"}, "--account=lab"),
        ({"qos": "high"}, "--qos=high"),
        ({"constraint": "ib&(a|b)"}, "--constraint=ib&(a|b)"),
        ({"reservation": "course"}, "--reservation=course"),
        ({"walltime_min": 90}, "--time=90"),
        ({"gpu_type": "h100"}, "--gpus-per-node=h100:4"),
        ({"gpu_request": GpuRequest.gres}, "--gres=gpu:4"),
        ({"gpu_request": GpuRequest.gres, "gpu_type": "a100"}, "--gres=gpu:a100:4"),
        ({}, "--cpus-per-task=4"),
        ({"cpus_per_task": 6}, "--cpus-per-task=6"),
        ({"cpus_per_task": 6, "gpu_request": GpuRequest.none}, "--cpus-per-task=6"),
        ({"cpus_per_task": 6, "device": Device.cpu}, "--cpus-per-task=6"),
        ({"memory_gib_per_node": 1.5}, "--mem=1536M"),
        ({"memory_gib_per_node": 0.0}, "--mem=0"),
        ({"exclusive": True}, "--exclusive"),
        ({"nodelist": "n[1-2,7]"}, "--nodelist=n[1-2,7]"),
        ({"exclude": "n3"}, "--exclude=n3"),
        ({"licenses": "a:1,b@c:2"}, "--licenses=a:1,b@c:2"),
        ({"mail_user": "ann@uni.example"}, "--mail-user=ann@uni.example"),
        ({"mail_type": "END,FAIL"}, "--mail-type=END,FAIL"),
        ({"signal_lead_s": 300}, "--signal=USR2@300"),
        ({"sbatch_args": ["--switches=1"]}, "--switches=1"),
    ],
)
def test_every_setting_of_a_site_becomes_one_word(cluster: dict[str, object], word: str) -> None:
    argv = sbatch_argv(job_config(**cluster), request())
    assert argv.count(word) == 1
    assert argv.index(word) < argv.index("/share/slurm/train.sbatch")


@pytest.mark.parametrize("cluster", [{"device": Device.cpu}, {"gpu_request": GpuRequest.none}])
def test_no_gpu_is_asked_for_where_none_is_given_out(cluster: dict[str, object]) -> None:
    asked = options(sbatch_argv(job_config(**cluster), request()))
    assert not {"--gpus-per-node", "--gres"} & set(asked)


@pytest.mark.parametrize("stage", ["prepare", "export"])
def test_a_stage_without_gpus_goes_to_its_own_partition(stage: str) -> None:
    config = job_config(
        partition="gpu", cpu_partition="cpu", constraint="ib", account="lab", walltime_min=900, stage_walltime_min=60,
        memory_gib_per_node=500.0, exclusive=True, licenses="x:1", sbatch_args=["--switches=1"], nodelist="n[1-2]",
    )  # fmt: skip
    asked = options(sbatch_argv(config, request(stage, after="17")))
    assert asked["--partition"] == "cpu" and asked["--account"] == "lab" and asked["--time"] == "60"
    assert asked["--nodes"] == "1" and asked["--ntasks-per-node"] == "1"
    assert asked["--dependency"] == "afterok:17" and asked["--kill-on-invalid-dep"] == "yes"
    assert asked["--comment"] == f"launcher:{KEY}:{stage}"
    of_training = {"--gpus-per-node", "--constraint", "--mem", "--exclusive", "--licenses", "--switches", "--nodelist"}
    assert not of_training & set(asked)


def test_evaluation_takes_one_gpu_of_the_training_partition() -> None:
    asked = options(sbatch_argv(job_config(partition="gpu", cpu_partition="cpu"), request("eval")))
    assert (asked["--partition"], asked["--nodes"], asked["--gpus-per-node"]) == ("gpu", "1", "1")


@pytest.mark.parametrize(
    ("model", "memory_gib", "gpus"),
    [("llama3_1_8b", 80.0, "1"), ("llama3_1_8b", 16.0, "2"), ("llama3_1_70b", 80.0, "2"), ("llama3_1_70b", 24.0, "7")],
)
def test_evaluation_takes_as_many_gpus_as_hold_the_model(model: str, memory_gib: float, gpus: str) -> None:
    config = job_config(gpu_memory_gib=memory_gib, memory_gib_per_node=480.0, devices_per_node=8)
    config.model = compose_config([f"model={model}", "data=next_number"]).model
    asked = options(sbatch_argv(config, request("eval")))
    assert (asked["--nodes"], asked["--ntasks-per-node"], asked["--gpus-per-node"]) == ("1", "1", gpus)
    assert int(asked["--mem"].removesuffix("M")) >= 480 * 1024 * int(gpus) / 8
    assert "--gpus-per-node" not in options(sbatch_argv(config, request("export")))


@pytest.mark.parametrize("stage", ["prepare", "export", "eval"])
@pytest.mark.parametrize(
    ("cluster", "expected"),
    [
        pytest.param({"memory_gib_per_node": 480.0}, "122880M", id="the part of a node that goes with a GPU"),
        pytest.param({"memory_gib_per_node": 40.0}, "16384M", id="but enough to work with"),
        pytest.param({"memory_gib_per_node": 8.0}, "8192M", id="and never more than the node"),
        pytest.param({"memory_gib_per_node": 0.0}, "16384M", id="all of a node of unknown size"),
        pytest.param({"memory_gib_per_node": 0.0, "host_memory_gib": 480.0}, "122880M", id="all of a known one"),
        pytest.param({"memory_gib_per_node": 0.0, "gpu_request": GpuRequest.none}, "0", id="nodes are given out whole"),
        pytest.param({"memory_gib_per_node": 64.0, "devices_per_node": 1}, "65536M", id="training has no more"),
        pytest.param({}, None, id="the site decides"),
    ],
)
def test_a_stage_leaves_the_memory_of_the_other_gpus_to_others(
    stage: str, cluster: dict[str, object], expected: str | None
) -> None:
    assert options(sbatch_argv(job_config(**cluster), request(stage))).get("--mem") == expected


@pytest.mark.parametrize(
    ("stage", "method", "expected"),
    [
        ("export", MethodKind.full, 60),
        ("eval", MethodKind.full, 60),
        ("export", MethodKind.lora, 30),
        ("prepare", MethodKind.full, 16),
    ],
)
def test_a_stage_that_holds_the_weights_gets_room_for_them(stage: str, method: MethodKind, expected: int) -> None:
    config = job_config(memory_gib_per_node=0.0)
    config.method.kind = method
    config.model.architecture = ArchitectureConfig(  # Llama 3 8B
        hidden_size=4096, intermediate_size=14336, num_layers=32, num_heads=32, num_kv_heads=8, vocab_size=128256
    )
    asked = options(sbatch_argv(config, request(stage)))["--mem"]
    assert round(int(asked.removesuffix("M")) / 1024) == expected


def test_a_sweep_is_one_array_with_a_throttle() -> None:
    asked = options(sbatch_argv(job_config(), request(members=12, throttle=3)))
    assert (asked["--array"], asked["--output"]) == ("0-11%3", "/runs/lora/slurm-%A_%a.out")
    assert options(sbatch_argv(job_config(), request(members=2)))["--array"] == "0-1"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("partition", "gpu cpu"),
        ("partition", "--wrap=id"),
        ("partition", ""),
        ("account", "lab;id"),
        ("qos", "a\nb"),
        ("constraint", "$(id)"),
        ("reservation", "`id`"),
        ("gpu_type", "h100:8"),
        ("gpu_type", "a,license:4"),
        ("nodelist", "./hosts"),
        ("exclude", "/etc/passwd"),
        ("licenses", "a b"),
        ("mail_user", "-s x"),
        ("mail_user", "a@b;id"),
        ("mail_type", "END FAIL"),
        ("account", "a\0b"),
        ("account", "x" * 65_536),
        ("qos", "a\u2028b"),
        ("qos", "\udc80"),
        ("cpu_partition", "'x'"),
        ("setup_file", "-x"),
        ("setup_file", "a\nb"),
    ],
)
def test_text_that_slurm_would_take_otherwise_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(ConfigErrors) as raised:
        sbatch_argv(job_config(**{name: value}), request())
    assert [problem.key for problem in raised.value.problems] == [f"cluster.{name}"]


@pytest.mark.parametrize(
    "word",
    [
        "--wrap=id", "--wra=id", "--export=ALL", "--output=x", "-W", "-a1-9", "--array=1", "id", "--", "", "--switches",
        "--depend=afterok:1", "--par", "--wait", "--no-requeue", "--signal=KILL@1", "--nodefile=/etc/passwd", "--n=9",
        "--uid=0", "--job-name=x", "--comment=y", "--switches=1\n", "--get-user-env", "-- wrap", "--SWITCHES=1",
    ],
)  # fmt: skip
def test_further_options_cannot_undo_the_launchers_own(word: str) -> None:
    problems = sbatch_problems(job_config(sbatch_args=[word]))
    assert [problem.key for problem in problems] == ["cluster.sbatch_args"]


@pytest.mark.parametrize(
    "word", ["--switches=1", "--hold", "--nice=10", "--bb=capacity=1", "--gres-flags=enforce-binding"]
)
def test_further_options_of_a_site_pass(word: str) -> None:
    assert sbatch_problems(job_config(sbatch_args=[word])) == []


@pytest.mark.parametrize(
    "word",
    [
        "--ntasks=9", "--nodes=1", "--output=x", "--kill-on-bad-exit=0", "--kill=0", "--wait=0", "--export=NONE",
        "--time=1", "--multi-prog", "--multi", "--task-prolog=/x", "--task-epilog=/x", "--prolog=/x", "--epilog=/x",
        "--bcast", "--bcast=/x", "--task-p=/x", "--pty", "--jobid=7", "--container-image=x",
        "--container=/bundle", "--cont=x",
        "--relative=1", "--exclude=n1", "/bin/sh", "id", "--", "", "-n9", "-l", "--mem", "--cpu-bind", "--network=a\n",
        "--MPI=none", "--test-only", "--label", "--distribution=cyclic", "--chdir=/", "--overcommit", "--signal=9@1",
    ],
)  # fmt: skip
def test_further_options_of_srun_can_neither_undo_the_launchers_own_nor_become_the_program(word: str) -> None:
    problems = sbatch_problems(job_config(srun_args=[word]))
    assert [problem.key for problem in problems] == ["cluster.srun_args"]
    assert problems[0].value == word


@pytest.mark.parametrize(
    "word",
    [
        "--cpu-bind=cores", "--mpi=pmix", "--gpu-bind=none", "--mem=0", "--mem-bind=local", "--exact", "--overlap",
        "--network=sn_all", "--container-mount-home", "--no-container-remap-root", "--container-name=x",
        "--bb=capacity=1", "--gres=gpu:4", "--verbose", "--hint=nomultithread",
    ],
)  # fmt: skip
def test_further_options_of_srun_for_a_site_pass(word: str) -> None:
    assert sbatch_problems(job_config(srun_args=[word])) == []


def test_an_option_that_runs_a_program_is_refused_with_another_way() -> None:
    (problem,) = sbatch_problems(job_config(srun_args=["--task-prolog=/site/prolog"]))
    assert "--task-prolog would run something else than the ranks" in str(problem)
    assert "cluster.setup_file" in problem.hint


@pytest.mark.parametrize("folder", ["/runs/100%", "/runs/%j", "/runs/a\\b", "/runs/a\nb"])
def test_a_folder_slurm_would_rename_is_refused(folder: str) -> None:
    config = job_config()
    config.runs_dir = folder
    assert [problem.key for problem in sbatch_problems(config)] == ["runs_dir"]
    with pytest.raises(ConfigErrors):
        sbatch_argv(job_config(), request(log_dir=Path(folder)))


def test_a_warning_longer_than_the_whole_limit_is_refused() -> None:
    assert [p.key for p in sbatch_problems(job_config(walltime_min=2))] == ["cluster.signal_lead_s"]
    assert sbatch_problems(job_config(walltime_min=3)) == []


def test_all_that_is_wrong_is_said_at_once() -> None:
    config = job_config(partition="a b", mail_user="x y", sbatch_args=["--wrap=id"], modules=["$(id)"])
    config.cluster.srun_args = ["--ntasks=1", "--multi-prog"]
    config.cluster.container, config.cluster.container_mounts = ContainerRuntime.pyxis, ["/a,b:/c"]
    config.cluster.environment = {"A-B": "x", "SLURM_X": "y", "OK": "a\0"}
    keys = [problem.key for problem in sbatch_problems(config)]
    assert keys == [
        "cluster.partition",
        "cluster.mail_user",
        "cluster.sbatch_args",
        "cluster.srun_args",
        "cluster.srun_args",
        "cluster.modules",
        "cluster.environment",
        "cluster.environment.SLURM_X",
        "cluster.environment.OK",
        "cluster.container_image",
        "cluster.container_mounts",
    ]


def test_the_job_gets_listed_variables_and_what_its_script_needs(tmp_path: Path) -> None:
    setup = tmp_path / "site.sh"
    setup.touch()
    cluster = job_config(modules=["cuda/12.4", "gcc"], setup_file=str(setup)).cluster
    environ = {
        "HOME": "/h",
        "AWS_SECRET_ACCESS_KEY": "s",
        "WANDB_API_KEY": "k",
        "LC_a,ALL": "x",
        "LAUNCHER_PYTHON": "old",
    }
    assert job_variables(cluster, environ) == {
        "HOME": "/h",
        "WANDB_API_KEY": "k",
        "LAUNCHER_PYTHON": sys.executable,
        "LAUNCHER_SETUP_FILE": str(setup),
        "LAUNCHER_MODULES": "cuda/12.4 gcc",
    }


def test_no_value_of_a_variable_is_in_the_command() -> None:
    argv = sbatch_argv(job_config(), request(variables=["WANDB_API_KEY"]))
    assert "--export=WANDB_API_KEY" in argv


def test_a_name_that_is_no_variable_is_refused() -> None:
    with pytest.raises(ConfigErrors):
        sbatch_argv(job_config(), request(variables=["A,ALL"]))


def test_an_enclosing_job_and_a_users_sbatch_wait_leave_no_mark() -> None:
    environ = {"SLURM_JOB_ID": "9", "SLURM_CONF": "/c", "SBATCH_WAIT": "1", "SBATCH_ACCOUNT": "lab", "PATH": "/bin"}
    assert sbatch_environment(environ, {"X": "y"}) == {
        "SLURM_CONF": "/c",
        "SBATCH_ACCOUNT": "lab",
        "PATH": "/bin",
        "X": "y",
    }


def test_a_lone_colon_which_sbatch_drops_is_refused() -> None:
    with pytest.raises(ConfigErrors, match="colon"):
        sbatch_argv(job_config(), request(script_args=["--run", ":"]))
