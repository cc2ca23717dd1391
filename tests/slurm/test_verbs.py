"""status, logs, cancel and resume of runs that are jobs: while they wait, while they train, and through a requeue."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from launcher.paths import RunPaths
from tests.dist.rig import make_data, make_run
from tests.slurm.cluster import Cluster
from tests.slurm.rig import Goldens, SlurmRun

LONG = ("strategy=ddp", "optim.max_steps=400", "checkpoint.save_every_steps=20")
PATIENCE_S = 120


@dataclass(frozen=True)
class LoginNode:
    """A folder with runs/ on the login node, and launcher there."""

    cluster: Cluster
    folder: Path
    model: Path

    def launcher(self, *words: str | Path, check: bool = True, path: str = "") -> subprocess.CompletedProcess[str]:
        env = {"PATH": f"{path}:{os.environ['PATH']}"} if path else {}
        command = [sys.executable, "-m", "launcher", *words]
        return self.cluster.run(command, cwd=self.folder, check=check, env=env)

    def status(self, name: str | Path) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.launcher("status", name, "--json").stdout)
        return document

    def make_run(self, name: str) -> Path:
        """A run for two nodes, of which nothing was queued yet."""
        data = self.folder / "data"
        place = ["cluster.kind=slurm", "cluster.nodes=2", "strategy=ddp"]
        run_dir = make_run(self.folder / "runs" / name, self.model, data if data.is_dir() else make_data(data), *place)
        RunPaths(run_dir).attempt(1).rmdir()
        return run_dir


@pytest.fixture
def login(cluster: Cluster, tmp_path: Path, tiny_model: Path) -> LoginNode:
    return LoginNode(cluster, tmp_path, tiny_model)


@pytest.fixture
def busy(cluster: Cluster) -> str:
    """A job that holds all nodes, so that others wait; its id."""
    blocker = cluster.sbatch(f"--nodes={cluster.num_nodes}", "--exclusive", "--output=/dev/null", "--wrap", "sleep 600")
    cluster.wait_job(blocker, "RUNNING")
    return blocker


@pytest.fixture
def counted_squeue(cluster: Cluster, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A folder for PATH whose squeue is the real one and writes a line for every call; and the file of those lines."""
    real = cluster.run(["sh", "-c", "command -v squeue"]).stdout.strip()
    folder, calls = tmp_path / "bin", tmp_path / "calls"
    folder.mkdir()
    (folder / "squeue").write_text(f'#!/bin/sh\necho "$@" >>{calls}\nexec {real} "$@"\n')
    (folder / "squeue").chmod(0o755)
    yield str(folder), calls


def test_a_job_that_waits_is_shown_cancelled_and_taken_up_again(login: LoginNode, cluster: Cluster, busy: str) -> None:
    run_dir = login.make_run("one")
    login.launcher("resume", "one")
    waiting = login.status("one")
    assert (waiting["state"], waiting["job_state"], waiting["attempt"]) == ("queued", "PENDING", 0)
    assert waiting["queue_reason"] in ("Resources", "Priority")
    second = login.launcher("resume", "one", check=False)
    assert second.returncode == 2 and waiting["job_id"] in second.stderr

    said = login.launcher("cancel", "one").stdout
    assert "one: cancelled before its first step" in said and "launcher resume one" in said
    assert cluster.job(waiting["job_id"])["JobState"] == "CANCELLED"
    assert login.status("one")["state"] == "cancelled"
    again = login.launcher("cancel", "one", check=False)
    assert again.returncode == 2 and "nothing to cancel" in again.stderr

    login.launcher("resume", "one")
    waiting = login.status("one")
    assert waiting["state"] == "queued" and not RunPaths(run_dir).cancel.exists()
    # Somebody who knows only Slurm:
    cluster.run(["scancel", waiting["job_id"]])
    cluster.wait_job(waiting["job_id"], "CANCELLED")
    gone = login.status("one")
    assert (gone["state"], gone["reason"]) == ("cancelled", f"job {waiting['job_id']} was cancelled before it began")


def test_a_held_job_says_why_and_how_it_is_released(login: LoginNode, cluster: Cluster, busy: str) -> None:
    login.make_run("one")
    login.launcher("resume", "one")
    job_id = login.status("one")["job_id"]
    cluster.run(["scontrol", "uhold", job_id])
    held = login.status("one")
    assert (held["state"], held["queue_reason"], held["todo"]) == (
        "queued",
        "JobHeldUser",
        f"scontrol release {job_id}",
    )


def test_a_table_of_many_runs_asks_slurm_once(login: LoginNode, busy: str, counted_squeue: tuple[str, Path]) -> None:
    for name in ("one", "two", "three"):
        login.make_run(name)
        login.launcher("resume", name)
    path, calls = counted_squeue
    rows = login.launcher("status", path=path).stdout.splitlines()
    assert [row.split()[:2] for row in rows[1:]] == [[name, "queued"] for name in ("one", "two", "three")]
    assert len(calls.read_text().splitlines()) == 1


def test_without_an_answer_the_runs_own_record_is_shown_and_said_to_be(
    login: LoginNode, cluster: Cluster, busy: str
) -> None:
    login.make_run("one")
    login.launcher("resume", "one")
    cluster.controller("stop")
    unknown = login.status("one")
    assert (unknown["state"], unknown["alive"]) == ("queued", None)
    assert unknown["not_asked"] and unknown["job_id"]
    assert "Slurm cannot be asked" in login.launcher("status").stdout


def test_a_sweep_is_one_array_with_a_grid_and_is_cancelled_as_a_whole(
    login: LoginNode, cluster: Cluster, busy: str
) -> None:
    settings = [
        f"model.name_or_path={login.model}", "data=next_number", "data.seq_len_tokens=256", "cluster=slurm",
        "cluster.device=cpu", "cluster.devices_per_node=1", "strategy=ddp", "method=full",
    ]  # fmt: skip
    login.launcher("submit", *settings, "name=grid", "optim.lr=1e-3,1e-4", "seed=1,2")
    grid = login.status("grid")
    assert [member["state"] for member in grid["members"]] == ["queued"] * 4
    assert [member["differs"] for member in grid["members"]] == [
        {"optim.lr": rate, "seed": seed} for rate in ("1e-3", "1e-4") for seed in ("1", "2")
    ]
    login.launcher("cancel", "grid/01")
    assert [member["state"] for member in login.status("grid")["members"]].count("cancelled") == 1
    login.launcher("cancel", "grid")
    assert [member["state"] for member in login.status("grid")["members"]] == ["cancelled"] * 4
    assert cluster.run(["squeue", "--noheader", "--format=%A"]).stdout.split() == [busy]


def test_a_run_is_watched_requeued_cancelled_and_taken_up_again_as_if_nothing_had_been(
    login: LoginNode, cluster: Cluster, tiny_model: Path, goldens: Goldens
) -> None:
    golden = goldens.losses(cluster, tiny_model, *LONG)
    run = SlurmRun.make(cluster, tiny_model, *LONG)
    run.submit()
    run.wait_step(1)
    seen = login.status(run.run_dir)
    assert (seen["state"], seen["alive"], seen["job_id"]) == ("running", True, run.job_id)
    assert len(seen["nodes"]) == 2 and seen["attempts"][0]["job_id"] == run.job_id
    with following(login, run.run_dir) as follower:
        cluster.run(["scontrol", "requeue", run.job_id])
        run.wait_attempt(2)
        run.wait_for(lambda: max(run.losses()) > saved_before(run) or None, "a step of attempt 2", PATIENCE_S)
        said = login.launcher("cancel", run.run_dir, "--wait", str(PATIENCE_S)).stdout
        good = max(step for step in checkpoint_steps(run.run_dir))
        assert f"The last good checkpoint is step {good}" in said
        assert "quality of a cancelled model is not known" in said
        out, err = follower.communicate(timeout=PATIENCE_S)
    cancelled = login.status(run.run_dir)
    assert (cancelled["state"], cancelled["step"], cancelled["alive"]) == ("cancelled", good, False)
    assert cancelled["verdicts"][-1]["verdict_class"] == "cancelled"
    # Both attempts are in what was followed, in their order, and it ended because the run did.
    assert "--- attempt 2 ---" in out and "[job]" in out
    assert out.index("attempt 1 of run") < out.index("--- attempt 2 ---") < out.index("attempt 2 of run")
    assert "run: cancelled at step" in err

    queued = json.loads(login.launcher("resume", run.run_dir, "--json").stdout)
    run.job_id = queued["job_id"]
    run.wait_done()
    assert login.status(run.run_dir)["state"] == "succeeded"
    assert run.losses() == golden


def following(login: LoginNode, run_dir: Path) -> subprocess.Popen[str]:
    """launcher logs -f on the login node."""
    command = [sys.executable, "-m", "launcher", "logs", "-f", str(run_dir)]
    script = Path(__file__).resolve().parents[2] / "scripts" / "slurm-cluster"
    return subprocess.Popen(
        [sys.executable, script, "run", "--", *command],
        env=login.cluster.environment(),
        cwd=login.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def checkpoint_steps(run_dir: Path) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in RunPaths(run_dir).checkpoints.glob("step-*")]


def saved_before(run: SlurmRun) -> int:
    """Step the second attempt goes on from; far away while it has not said so."""
    lines = [json.loads(line) for line in RunPaths(run.run_dir).events.read_text().splitlines()]
    resumed = [line["step"] for line in lines if line["event"] == "resume" and line["attempt"] >= 2]
    return int(resumed[-1]) if resumed else sys.maxsize
