"""A run that is left alone with random faults. It must finish by itself, on the curve of the run nobody disturbed."""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.paths import RunPaths
from tests.slurm import faults
from tests.slurm.cluster import Cluster, start_cluster
from tests.slurm.rig import Goldens, SlurmRun
from tests.wandb_files import history_rows

STEPS_PER_FAULT = 60
STEPS_PER_FAULT_IN_SHORT = 30
SETTINGS = (
    "optim.lr=1e-3",
    "checkpoint.save_every_steps=20",
    "track.eval_every_steps=0",
    "track.wandb=offline",
    # A rank that was cut off waits for the others until this limit: seconds here, not the minutes of real steps.
    "fault.step_limit_s=20",
    # Random faults may well hit three starts in a row; nobody would want the run to give up for that.
    "fault.max_fruitless_attempts=20",
    "fault.max_attempts=1000",
)
AT_ONCE = 0.3
"""Share of faults that follow the one before within seconds, while the run still recovers from it."""


@pytest.fixture
def small_disk_cluster() -> Iterator[Cluster]:
    """Three nodes whose shared folder is a disk of 300 MiB, mounted before they start so that all of them see it."""
    cluster = start_cluster(3)
    cluster._command("down")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300m,mode=1777", "soak", cluster.shared], check=True)
    try:
        cluster._command("up", "3")
        yield cluster
        cluster.restore()
    finally:
        cluster._command("down")
        subprocess.run(["umount", "--lazy", cluster.shared], check=False)
        cluster.down()


BUDGETS = [
    pytest.param("zero3", 0, id="one of each kind"),
    pytest.param("zero2", 50, id="zero2", marks=pytest.mark.nightly),
    pytest.param("zero3", 50, id="zero3", marks=pytest.mark.nightly),
]


@pytest.mark.parametrize(("strategy", "count"), BUDGETS)
def test_a_run_finishes_by_itself_through_random_faults(
    small_disk_cluster: Cluster, tiny_model: Path, goldens: Goldens, strategy: str, count: int
) -> None:
    """`count` faults drawn at random, or one of each kind in random order; paced by steps, not by a clock, so that they
    meet the run in the middle of its work on any machine."""
    cluster = small_disk_cluster
    seed = int(os.environ.get("LAUNCHER_SOAK_SEED", str(time.time_ns() % 10**6)))
    chance = random.Random(seed)
    kinds = draw(chance, int(os.environ.get("LAUNCHER_SOAK_FAULTS", count)) if count else 0)
    print(f"\nsoak: LAUNCHER_SOAK_SEED={seed} faults={len(kinds)} strategy={strategy}", flush=True)
    pace = STEPS_PER_FAULT if count else STEPS_PER_FAULT_IN_SHORT
    settings = (f"strategy={strategy}", f"optim.max_steps={pace * (len(kinds) + 4)}", *SETTINGS)
    golden = goldens.losses(cluster, tiny_model, *settings)
    run = SlurmRun.make(cluster, tiny_model, *settings)
    run.submit("--partition=low")
    for number, (kind, due_step) in enumerate(zip(kinds, due_steps(chance, len(kinds), pace), strict=True), start=1):
        wait_until_due(run, due_step, chance)
        told = kind(cluster, run.run_dir, chance)
        print(f"  {number:3d} step {newest_step(run):5d} attempt {run.num_attempts():3d} {told}", flush=True)

    def over() -> dict[str, str] | None:
        release_lost_job(run)
        return run.ended()

    run.wait_for(over, "the end of the job", timeout_s=3600)
    run.wait_done()
    assert run.losses() == golden
    # However often it was interrupted, what went to W&B is one run, with each step once.
    wandb_folder = RunPaths(run.run_dir).tracker("wandb")
    assert len({path.name for path in wandb_folder.glob("offline-run-*/*.wandb")}) == 1
    rows = [row for row in history_rows(wandb_folder) if "train/loss" in row]
    assert {int(str(row["train/global_step"])): float(str(row["train/loss"])).hex() for row in rows} == golden
    assert len(rows) == len(golden)
    print(f"soak: {len(kinds)} faults, {run.num_attempts()} attempts, all {len(golden)} losses bitwise", flush=True)


def draw(chance: random.Random, count: int) -> list[faults.Fault]:
    if count:
        return [chance.choice(faults.ALL) for _ in range(count)]
    return chance.sample(faults.ALL, len(faults.ALL))


def due_steps(chance: random.Random, count: int, pace: int) -> list[int]:
    """The steps at which faults are due, in order; -1: soon after the fault before."""
    steps = sorted(chance.randrange(5, pace * count) for _ in range(count))
    return [-1 if place and chance.random() < AT_ONCE else step for place, step in enumerate(steps)]


def wait_until_due(run: SlurmRun, due_step: int, chance: random.Random) -> None:
    """AssertionError when the run ends first."""
    end, before = time.monotonic() + chance.uniform(0, 12), newest_step(run)

    def due() -> bool:
        release_lost_job(run)
        if due_step < 0:  # a machine that is quick gets no further in that time than a slow one
            return time.monotonic() > end or newest_step(run) > before + 5
        return newest_step(run) >= due_step

    run.wait_for(lambda: due() or None, f"step {due_step}", timeout_s=600)


def release_lost_job(run: SlurmRun) -> None:
    """What an operator does where Slurm 22.05 starts a job beside its own last start (docs/development.md).

    It drains the node for "Duplicate jobid" and holds the job, so that nothing of ours can run.
    """
    if run.cluster.job(run.job_id).get("Reason") != "launch_failed_requeued_held":
        return
    nodes = run.cluster.run(["sinfo", "--noheader", "--Node", "--format=%N %E"], check=False).stdout
    for node in {line.split()[0] for line in nodes.splitlines() if "Duplicate jobid" in line}:
        run.cluster.run(["scontrol", "update", f"NodeName={node}", "State=RESUME"], check=False)
    run.cluster.run(["scontrol", "release", run.job_id], check=False)
    print(f"  released job {run.job_id}, which Slurm held after a duplicate start", flush=True)


def newest_step(run: SlurmRun) -> int:
    return max(run.losses(), default=0)
