"""Runs over several machines without Slurm: two network namespaces, each a box with its own name and address."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.paths import RunPaths
from launcher.errors import ExitCode
from launcher.runs.run_dir import last_attempt
from launcher.runs.metrics import read_metrics
from tests.dist.two_boxes import ADDRESSES, Boxes, two_boxes, wait_until, why_not

pytestmark = [pytest.mark.dist, pytest.mark.skipif(bool(why_not()), reason=f"runs over boxes NOT TESTED: {why_not()}")]

ROOT = Path(__file__).resolve().parents[2]
LAUNCHER = [sys.executable, "-m", "launcher"]
STEP_LIMIT_S = 10
WAIT_S = 240


@pytest.fixture(scope="module")
def boxes() -> Iterator[Boxes]:
    with two_boxes() as pair:
        yield pair


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("boxes")
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
        "optim.max_steps=60",
        "checkpoint.save_every_steps=10",
        "checkpoint.rehearse=false",
        f"fault.step_limit_s={STEP_LIMIT_S}",
        "fault.meet_limit_s=120",
        "cluster.device=cpu",
        "cluster.threads_per_process=1",
        "track.wandb=disabled",
    ]


@pytest.fixture(scope="module")
def reference(folder: Path, settings: list[str]) -> list[str]:
    """Losses of two ranks on one machine."""
    words = ["train", *settings, "cluster.devices_per_node=2", "name=reference"]
    done = subprocess.run([*LAUNCHER, *words], cwd=folder, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return losses(folder / "runs" / "reference")


def environment(**extra: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **extra}


def losses(run_dir: Path) -> list[str]:
    return [record.loss.hex() for record in read_metrics(RunPaths(run_dir).metrics).steps]


def on(boxes: Boxes, box: int, folder: Path, *words: str, log: str, **extra: str) -> subprocess.Popen[bytes]:
    return boxes.start(box, list(words), cwd=folder, log=folder / log, env=environment(**extra))


def finish(folder: Path, **processes: subprocess.Popen[bytes]) -> list[int]:
    """Exit codes, in order; what each said is shown when the test fails."""
    deadline = time.monotonic() + WAIT_S
    try:
        return [process.wait(timeout=max(1, deadline - time.monotonic())) for process in processes.values()]
    finally:
        for name, process in processes.items():
            process.kill()
            print(f"--- {name}\n{(folder / name).with_suffix('.log').read_text()}")


def test_a_run_over_two_boxes_survives_a_cut_cable_and_ends_as_on_one(
    boxes: Boxes, folder: Path, settings: list[str], reference: list[str]
) -> None:
    run = folder / "runs" / "two"
    hosts = f"cluster.hosts=[{','.join(ADDRESSES)}]"
    first = on(
        boxes, 0, folder, *LAUNCHER, "train", *settings, hosts, "cluster.devices_per_node=1", "name=two", log="a1.log"
    )
    wait_until(lambda: RunPaths(run).config.exists() or first.poll() is not None, WAIT_S, "the run directory")
    second = on(boxes, 1, folder, *LAUNCHER, "train", "--join", "two", log="b1.log")
    wait_until(lambda: len(losses(run)) >= 12 or first.poll() is not None, WAIT_S, "12 steps")
    boxes.cut()
    began = time.monotonic()
    codes = finish(folder, a1=first, b1=second)
    took_s = time.monotonic() - began
    boxes.plug()
    assert all(code not in (ExitCode.DONE, ExitCode.USER) for code in codes), codes
    assert took_s < STEP_LIMIT_S + 45
    assert boxes.processes(0) == boxes.processes(1) == []

    shell = str(boxes.remote_shell(folder))
    again = on(boxes, 0, folder, *LAUNCHER, "train", "--run", "two", "--ssh", log="a2.log", LAUNCHER_REMOTE_SHELL=shell)
    assert finish(folder, a2=again) == [0]
    assert last_attempt(run) == 2
    assert losses(run) == reference
    wait_until(lambda: boxes.processes(1) == [], 30, "the other box to be empty")


@pytest.mark.nightly
def test_a_stop_on_the_first_box_saves_and_ends_both(boxes: Boxes, folder: Path, settings: list[str]) -> None:
    run = folder / "runs" / "stopped"
    words = [*settings, "optim.max_steps=5000", f"cluster.hosts=[{','.join(ADDRESSES)}]", "cluster.devices_per_node=1"]
    words.remove("optim.max_steps=60")
    first = on(boxes, 0, folder, *LAUNCHER, "train", *words, "name=stopped", log="a3.log")
    wait_until(lambda: RunPaths(run).config.exists() or first.poll() is not None, WAIT_S, "the run directory")
    second = on(boxes, 1, folder, *LAUNCHER, "train", "--join", "stopped", log="b3.log")
    wait_until(lambda: len(losses(run)) >= 3 or first.poll() is not None, WAIT_S, "3 steps")
    starter = next(
        p for p in boxes.processes(0) if "stopped" in " ".join(p.cmdline()) and "launcher.train" not in p.cmdline()
    )
    starter.send_signal(signal.SIGINT)
    assert finish(folder, a3=first, b3=second) == [ExitCode.PREEMPTED, ExitCode.PREEMPTED]
    assert max(int(path.name[-6:]) for path in RunPaths(run).checkpoints.glob("step-*")) == len(losses(run))


STARTERS = {
    "torchrun": ["torch.distributed.run", "--nnodes={nodes}", "--nproc-per-node=1", "--node-rank={box}",
                 "--master-addr={address}", "--master-port={port}"],
    "accelerate": ["accelerate.commands.launch", "--use_deepspeed", "--deepspeed_multinode_launcher=standard",
                   "--num_machines={nodes}", "--num_processes={nodes}", "--machine_rank={box}",
                   "--main_process_ip={address}", "--main_process_port={port}"],
}  # fmt: skip


@pytest.mark.parametrize("starter", STARTERS)
@pytest.mark.nightly
def test_a_starter_of_the_users_own_on_each_box_makes_the_same_run(
    boxes: Boxes, folder: Path, settings: list[str], reference: list[str], starter: str
) -> None:
    ports = {"torchrun": "29511", "accelerate": "29512"}
    processes = {}
    for box in range(2):
        words = [word.format(nodes=2, box=box, address=ADDRESSES[0], port=ports[starter]) for word in STARTERS[starter]]
        command = [sys.executable, "-m", *words, "-m", "launcher.train", *settings, f"name={starter}"]
        log = f"{starter}{box}"
        processes[log] = on(boxes, box, folder, *command, log=f"{log}.log", GLOO_SOCKET_IFNAME="eth0")
    assert finish(folder, **processes) == [0, 0]
    assert losses(folder / "runs" / starter) == reference
