"""A run that is left alone with random faults. It must finish by itself, on the curve of the run nobody disturbed."""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm import faults
from tests.slurm.cluster import Cluster, start_cluster
from tests.slurm.rig import Goldens, SlurmRun

STEPS = int(os.environ.get("LAUNCHER_SOAK_STEPS", "4000"))
SETTINGS = (
    f"optim.max_steps={STEPS}",
    "optim.lr=1e-3",
    "checkpoint.save_every_steps=20",
    "track.eval_every_steps=0",
    # Random faults may well hit three starts in a row; nobody would want the run to give up for that.
    "fault.max_fruitless_attempts=20",
    "fault.max_attempts=1000",
)
MEAN_PAUSE_S = 20.0
"""Between two faults, on top of what a fault itself takes."""


@pytest.fixture
def small_disk_cluster() -> Iterator[Cluster]:
    """Three nodes whose shared folder is a disk of 200 MiB, mounted before they start so that all of them see it."""
    cluster = start_cluster(3)
    cluster._command("down")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200m,mode=1777", "soak", cluster.shared], check=True)
    try:
        cluster._command("up", "3")
        yield cluster
        cluster.restore()
    finally:
        cluster._command("down")
        subprocess.run(["umount", "--lazy", cluster.shared], check=False)
        cluster.down()


@pytest.mark.nightly
@pytest.mark.parametrize("strategy", ["zero2", "zero3"])
def test_a_run_finishes_by_itself_through_random_faults(
    small_disk_cluster: Cluster, tiny_model: Path, goldens: Goldens, strategy: str
) -> None:
    cluster = small_disk_cluster
    wanted = int(os.environ.get("LAUNCHER_SOAK_FAULTS", "25"))
    seed = int(os.environ.get("LAUNCHER_SOAK_SEED", str(time.time_ns() % 10**6)))
    print(f"\nsoak: LAUNCHER_SOAK_SEED={seed} LAUNCHER_SOAK_FAULTS={wanted} strategy={strategy}", flush=True)
    golden = goldens.losses(cluster, tiny_model, f"strategy={strategy}", *SETTINGS)
    run = SlurmRun.make(cluster, tiny_model, f"strategy={strategy}", *SETTINGS)
    run.submit("--partition=low")
    chance, done, count = random.Random(seed), [], 0
    while count < wanted and not _over(run):
        time.sleep(chance.expovariate(1 / MEAN_PAUSE_S))
        if _over(run):
            break
        fault = chance.choice(faults.ALL)
        told = fault(cluster, run.run_dir, chance)
        count += 1
        done.append(told)
        print(f"  {count:3d} step {max(run.losses(), default=0):5d} attempt {run.num_attempts():3d} {told}", flush=True)
    assert count == wanted, run.story(f"the run ended after {count} faults of {wanted}: {done}")
    run.wait_done(timeout_s=3600)
    assert run.losses() == golden
    print(f"soak: {count} faults, {run.num_attempts()} attempts, all {len(golden)} losses bitwise", flush=True)


def _over(run: SlurmRun) -> bool:
    return run._ended() is not None
