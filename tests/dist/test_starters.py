"""The same entry point under every starter gives the same run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.config.frozen import load_config
from launcher.paths import RunPaths
from launcher.errors import ExitCode
from launcher.runs.metrics import read_metrics
from tests.dist.forkserver import free_port

pytestmark = pytest.mark.dist

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("starters")
    lines = [json.dumps({"prompt": f"What comes after {n}?", "completion": str(n + 1)}) for n in range(60)]
    (place / "train.jsonl").write_text("\n".join(lines) + "\n")
    return place


@pytest.fixture(scope="module")
def settings(tiny_model: Path) -> list[str]:
    return [
        f"model.name_or_path={tiny_model}",
        "data.path=train.jsonl",
        "data.seq_len_tokens=128",
        "strategy=zero2",
        "strategy.precision=fp32",
        "optim.max_steps=3",
        "cluster.device=cpu",
        "cluster.threads_per_process=1",
        "track.wandb=disabled",
    ]


def start(folder: Path, command: list[str], **extra: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **extra},
    )


def finish(*processes: subprocess.Popen[str]) -> list[int]:
    """Exit codes; the output is shown when a test fails."""
    for process in processes:
        print(process.communicate(timeout=300)[0])
    return [process.returncode for process in processes]


def losses(run_dir: Path) -> list[str]:
    return [record.loss.hex() for record in read_metrics(RunPaths(run_dir).metrics).steps]


@pytest.fixture(scope="module")
def reference(folder: Path, settings: list[str]) -> list[str]:
    """Losses of the run as `launcher train` starts it."""
    words = ["train", *settings, "cluster.devices_per_node=2", "name=reference"]
    assert finish(start(folder, [sys.executable, "-m", "launcher", *words])) == [0]
    return losses(folder / "runs" / "reference")


TORCHRUN = ["torch.distributed.run", "--nproc-per-node=2"]
ACCELERATE = ["accelerate.commands.launch", "--use_deepspeed", "--num_processes=2", "--num_machines=1"]


@pytest.mark.parametrize("starter", [TORCHRUN, ACCELERATE], ids=["torchrun", "accelerate launch"])
def test_a_starter_of_the_users_own_makes_the_same_run(
    folder: Path, settings: list[str], reference: list[str], starter: list[str]
) -> None:
    name = starter[0].partition(".")[0]
    port = "--master-port" if name == "torch" else "--main_process_port"
    command = [sys.executable, "-m", *starter, f"{port}={free_port()}", "-m", "launcher.train", *settings]
    # A setting from a shell or from accelerate itself that would make Accelerate drop DeepSpeed without a word.
    assert finish(start(folder, [*command, f"name={name}"], ACCELERATE_USE_CPU="true")) == [0]
    run = folder / "runs" / name
    assert losses(run) == reference
    derived = load_config(RunPaths(run).config).derived
    assert derived is not None and derived.world_size == 2


def srun(folder: Path, tasks: int, *words: str) -> list[int]:
    """Tasks with the variables srun sets, and the rendezvous of slurm/train.sbatch."""
    port = str(free_port())
    return finish(
        *[
            start(
                folder,
                [sys.executable, "-m", "launcher.train", *words],
                SLURM_PROCID=str(rank),
                SLURM_LOCALID="0",
                SLURM_STEP_ID="0",
                SLURM_STEP_NUM_TASKS=str(tasks),
                SLURM_STEP_NUM_NODES=str(tasks),
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=port,
            )
            for rank in range(tasks)
        ]
    )


def test_tasks_of_srun_on_two_nodes_make_the_same_run(folder: Path, settings: list[str], reference: list[str]) -> None:
    assert srun(folder, 2, *settings, "name=srun") == [0, 0]
    run = folder / "runs" / "srun"
    assert losses(run) == reference
    frozen = load_config(RunPaths(run).config)
    assert (frozen.config.cluster.nodes, frozen.config.cluster.devices_per_node) == (2, 1)
    assert srun(folder, 2, "--run", "srun") == [0, 0]  # finished: nothing to do
    assert losses(run) == reference
    assert len(list(RunPaths(run).attempts.iterdir())) == 1


def test_ranks_that_contradict_the_settings_are_refused(folder: Path, settings: list[str]) -> None:
    codes = srun(folder, 2, *settings, "name=never", "cluster.devices_per_node=4")
    assert codes == [ExitCode.USER, ExitCode.USER]
    assert not (folder / "runs" / "never").exists()


def test_a_user_error_has_the_same_exit_code_on_every_rank(folder: Path, settings: list[str]) -> None:
    assert srun(folder, 2, *settings, "optim.epoch=3") == [ExitCode.USER, ExitCode.USER]
