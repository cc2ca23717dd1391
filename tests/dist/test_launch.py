"""launcher train as users type it, with real ranks: run, stop, go on, cancel."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launcher.files import find_record
from launcher.paths import RunPaths
from launcher.errors import ExitCode, VerdictClass
from launcher.diagnose.verdict import read_verdict
from launcher.runs.rank_end import RankEnd
from launcher.runs.events import read_events
from launcher.runs.metrics import read_metrics

pytestmark = pytest.mark.dist


def launcher(folder: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "launcher", *words],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with examples, where runs go."""
    place = tmp_path_factory.mktemp("launch")
    lines = [json.dumps({"prompt": f"What comes after {n}?", "completion": str(n + 1)}) for n in range(200)]
    (place / "train.jsonl").write_text("\n".join(lines) + "\n")
    return place


@pytest.fixture(scope="module")
def settings(tiny_model: Path) -> list[str]:
    return [
        f"model.name_or_path={tiny_model}",
        "data.path=train.jsonl",
        "data.validation_fraction=0.1",
        "data.seq_len_tokens=128",
        "strategy=ddp",
        "strategy.precision=fp32",
        "cluster.device=cpu",
        "cluster.devices_per_node=2",
        "track.wandb=disabled",
    ]


def losses(run_dir: Path) -> dict[int, float]:
    return {record.step: record.loss for record in read_metrics(RunPaths(run_dir).metrics).steps}


def wait_for_step(run_dir: Path, step: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while max(losses(run_dir), default=0) < step:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def whole_run(folder: Path, settings: list[str]) -> Path:
    """A run that nothing disturbed."""
    process = launcher(folder, "train", *settings, "name=whole", "optim.max_steps=40", "--json")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert json.loads(out)["state"] == "succeeded"
    return folder / "runs" / "whole"


def test_train_leaves_a_complete_run(whole_run: Path) -> None:
    paths = RunPaths(whole_run)
    assert sorted(losses(whole_run)) == list(range(1, 41))
    assert all(paths.rank_log(1, rank).is_file() for rank in (0, 1))
    assert "step 40/40" in paths.rank_log(1, 0).read_text()
    assert (paths.checkpoints / "step-000040" / "manifest.json").is_file()
    (preflight,) = [event.fields for event in read_events(paths.events) if event.event == "rehearsal"]
    seen, planned = preflight["memory_gib"], preflight["planned_gib"]
    assert isinstance(seen, float) and isinstance(planned, float)
    assert f"peak memory of one rank {seen:.1f} GiB, planned {planned:.1f} GiB" in paths.rank_log(1, 0).read_text()


def test_a_run_stopped_by_ctrl_c_goes_on_with_the_same_losses(
    folder: Path, settings: list[str], whole_run: Path
) -> None:
    run_dir = folder / "runs" / "stopped"
    process = launcher(folder, "train", *settings, "name=stopped", "optim.max_steps=40")
    wait_for_step(run_dir, 5, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert process.returncode == ExitCode.PREEMPTED, err
    assert "launcher train --run stopped" in out
    assert max(losses(run_dir)) < 40
    again = launcher(folder, "train", "--run", "stopped")
    out, err = again.communicate(timeout=300)
    assert again.returncode == 0, err
    assert losses(run_dir) == losses(whole_run)


def test_a_cancelled_run_keeps_a_good_checkpoint(folder: Path, settings: list[str]) -> None:
    run_dir = folder / "runs" / "cancelled"
    process = launcher(folder, "train", *settings, "name=cancelled", "optim.max_steps=100000")
    wait_for_step(run_dir, 3, process)
    cancel = launcher(folder, "cancel", "cancelled", "--json")
    out, err = cancel.communicate(timeout=300)
    assert cancel.returncode == 0, err
    document = json.loads(out)
    assert document["state"] == "cancelled"
    assert document["last_good_checkpoint_step"] == document["step"] >= 3
    process.communicate(timeout=300)
    assert launcher(folder, "verify", "cancelled").wait(60) == 0


def test_a_killed_rank_ends_the_run_as_failed_with_its_rank_named(folder: Path, settings: list[str]) -> None:
    run_dir = folder / "runs" / "killed"
    process = launcher(folder, "train", *settings, "name=killed", "optim.max_steps=100000")
    wait_for_step(run_dir, 2, process)
    rank_1 = json.loads(RunPaths(run_dir).process(1).read_text())["ranks"][1]
    os.kill(rank_1, signal.SIGKILL)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGKILL
    assert re.search(r"rank 1\b.* was killed \(SIGKILL\)", err)
    status = launcher(folder, "status", "killed", "--json")
    assert json.loads(status.communicate(timeout=300)[0])["state"] == "failed"


def test_a_signal_to_one_rank_while_it_imports_ends_all_ranks_in_order(folder: Path, settings: list[str]) -> None:
    run_dir = folder / "runs" / "importing"
    process = launcher(folder, "train", *settings, "name=importing", "optim.max_steps=100000")
    pids = RunPaths(run_dir).process(1)
    until = time.monotonic() + 120
    while not pids.is_file() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    os.kill(json.loads(pids.read_text())["ranks"][1], signal.SIGTERM)
    _, err = process.communicate(timeout=300)
    assert process.returncode == ExitCode.PREEMPTED, err
    ends = [find_record(RankEnd, RunPaths(run_dir).rank_end(1, rank)) for rank in (0, 1)]
    assert [end.exit_code for end in ends if end is not None] == [ExitCode.PREEMPTED] * 2
    verdict = read_verdict(run_dir, 1)
    assert verdict is not None and verdict.verdict_class is VerdictClass.preempted
    assert not list(RunPaths(run_dir).checkpoints.glob("step-*"))
