"""Real failures of real ranks under `launcher train`, and whether the verdict names what happened to which rank."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from launcher.paths import RunPaths
from launcher.errors import ExitCode, VerdictClass
from launcher.diagnose.verdict import Action, Verdict, read_verdict
from launcher.report.goodput import run_goodput
from launcher.runs.metrics import read_metrics
from tests.dist.conftest import Ranks
from tests.dist.rig import make_data, make_run

pytestmark = pytest.mark.dist

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("verdicts") / "data")


def planned(root: Path, model: Path, data: Path, *settings: str) -> Path:
    """A run of two DDP ranks that nobody has started yet."""
    run = make_run(root, model, data, "strategy=ddp", *settings, world_size=2)
    RunPaths(run).attempt(1).rmdir()
    return run


def start(run: Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "launcher", "train", "--run", str(run)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )


def verdict_of(run: Path, process: subprocess.Popen[str]) -> Verdict:
    output, _ = process.communicate(timeout=300)
    found = read_verdict(run, 1)
    assert found is not None, output
    return found


def test_a_rank_killed_from_outside_is_named(tmp_path: Path, tiny_model: Path, data: Path) -> None:
    run = planned(tmp_path / "run", tiny_model, data, "optim.epochs=10000", "checkpoint.save_every_steps=10")
    process = start(run)
    deadline = time.monotonic() + 200
    while max((step.step for step in read_metrics(RunPaths(run).metrics).steps), default=0) < 12:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    ranks = json.loads(RunPaths(run).process(1).read_text())["ranks"]
    os.kill(ranks[1], signal.SIGKILL)
    found = verdict_of(run, process)
    assert process.returncode == 128 + signal.SIGKILL
    assert (found.verdict_class, found.rank, found.action) == (VerdictClass.out_of_memory_host, 1, Action.requeue)
    assert found.checkpoint_after >= 10 and found.step_end >= 12
    assert 0 < found.device_hours_lost < found.device_hours
    account = run_goodput(run)
    assert sum(account.parts_ms.values()) == account.allocated_ms
    assert account.parts_ms["useful"] > 0 and account.parts_ms["start"] > 0


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path, tiny_model: Path, data: Path) -> None:
    broken = Path(shutil.copytree(tiny_model, tmp_path / "broken"))
    weights = load_file(broken / "model.safetensors")
    next(tensor for name, tensor in weights.items() if "norm" in name)[:] = np.inf
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    run = planned(tmp_path / "run", broken, data, "checkpoint.rehearse=false")
    found = verdict_of(run, process := start(run))
    assert process.returncode == ExitCode.NON_FINITE
    assert (found.verdict_class, found.action) == (VerdictClass.non_finite, Action.stop)
    assert "not finite" in found.summary and "random:" in "\n".join(found.lines)
    assert found.setting == "optim.lr=0.0005"


def test_a_package_that_one_rank_lacks_is_named_with_the_rank(tmp_path: Path, tiny_model: Path, data: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        "import os, sys\nif os.environ.get('RANK') == '1':\n    sys.modules['accelerate'] = None\n"
    )
    run = planned(tmp_path / "run", tiny_model, data, "fault.meet_limit_s=60")
    found = verdict_of(run, start(run, PYTHONPATH=f"{tmp_path / 'site'}:{ROOT}"))
    assert (found.verdict_class, found.rank, found.action) == (VerdictClass.configuration, 1, Action.stop)
    assert "accelerate" in found.summary


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 640 KiB: room for one checkpoint of the tiny model, not for two."""
    folder = tmp_path / "disk"
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=640k", "launcher-test", str(folder)]
    if os.geteuid() != 0 or subprocess.run(words, check=False).returncode:
        pytest.skip("a file system of its own needs root and the right to mount")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_is_named(small_disk: Path, tiny_model: Path, data: Path) -> None:
    run = planned(small_disk / "run", tiny_model, data, "optim.max_steps=2")
    found = verdict_of(run, process := start(run))
    assert process.returncode == ExitCode.CHECKPOINT
    assert (found.verdict_class, found.action) == (VerdictClass.disk, Action.requeue)
    assert "No space left on device" in found.summary
    assert "make room" in found.hint


def test_a_rank_that_takes_no_part_in_the_first_collective_is_named(ranks: Ranks) -> None:
    """By our own limit: that of NCCL ends the process, which then can say nothing."""
    first, second, _ = ranks("meet_with_one_silent", 2, 2.0, world_size=3, check=False)
    for result in (first, second):
        assert result.rc == ExitCode.WORLD
        assert "rank 2" in str(result.value) and "took no part in the first collective" in str(result.value)
        assert "on their cpu, took longer than 2 s" in str(result.value)
