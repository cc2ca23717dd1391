"""An attempt whose node was cut off and frozen comes back to life while, or after, its successor works elsewhere.

The node sees the run directory all the time, as it would on a shared file system that is reached over another network.
docs/reliability.md records when all twenty interleavings ran.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from launcher.checkpoint.commit import committed, verify
from launcher.paths import RunPaths
from launcher.runs.events import Event, last_state, read_events
from launcher.runs.metrics import read_metrics
from launcher.runs.status import read_status
from tests.slurm import faults
from tests.slurm.cluster import Cluster
from tests.slurm.rig import Goldens, SlurmRun

SETTINGS = ("strategy=zero2", "optim.max_steps=200", "checkpoint.save_every_steps=5")
SHAPE = {"nodes": 1, "ranks_per_node": 2}


def events_of(run: SlurmRun, attempt: int, name: str) -> list[Event]:
    events = read_events(RunPaths(run.run_dir).events)
    return [event for event in events if (event.attempt, event.event) == (attempt, name)]


def second_is_saving(run: SlurmRun) -> bool:
    return any(RunPaths(run.run_dir).checkpoints.glob(".staging-*-0002"))


def second_has_stepped(run: SlurmRun) -> bool:
    return any(record.attempt == 2 for record in read_metrics(RunPaths(run.run_dir).metrics).steps)


MOMENTS: dict[str, Callable[[SlurmRun], bool]] = {
    "made": lambda run: True,
    "resumed": lambda run: bool(events_of(run, 2, "resume")),
    "stepped": second_has_stepped,
    "saving": second_is_saving,
    "saved": lambda run: bool(events_of(run, 2, "checkpoint")),
    "done": lambda run: last_state(RunPaths(run.run_dir).events) == "succeeded",
}

SEEDS = [pytest.param(0), *(pytest.param(seed, marks=pytest.mark.nightly) for seed in range(1, 20))]


@pytest.mark.parametrize("seed", SEEDS)
def test_an_attempt_that_comes_back_to_life_changes_nothing(
    cluster: Cluster, tiny_model: Path, goldens: Goldens, seed: int
) -> None:
    chance = random.Random(seed)
    moment = list(MOMENTS)[seed % len(MOMENTS)]
    golden = goldens.losses(cluster, tiny_model, *SETTINGS, **SHAPE)
    run = SlurmRun.make(cluster, tiny_model, *SETTINGS, **SHAPE)
    run.submit()
    run.wait_step(chance.randrange(10, 60))
    time.sleep(chance.uniform(0, 0.3))
    node = faults.node_of(faults.ranks_of(run.run_dir)[0])
    cluster.node("cut", node)
    old = save_config(cluster, node, run)
    cluster.run(["scontrol", "update", f"nodename={node}", "state=down", "reason=test"])
    run.wait_attempt(2, timeout_s=180)
    wait_until(
        lambda: MOMENTS[moment](run) or last_state(RunPaths(run.run_dir).events) == "succeeded", 180, moment, run
    )
    told = time.monotonic()
    for process in old:
        process.resume()
    run.wait_done()
    # Its ranks find out by themselves: at the latest when they want to save.
    ranks = [process for process in old if process.is_running() and "launcher.train" in process.cmdline()]
    gone, alive = psutil.wait_procs(ranks, timeout=max(1.0, 60 - (time.monotonic() - told)))
    assert not alive, run.story(f"{len(alive)} old ranks live on, {len(gone)} went")
    cluster.node("join", node)

    paths = RunPaths(run.run_dir)
    status = read_status(paths.status)
    assert run.losses() == golden
    assert (
        last_state(paths.events) == "succeeded"
        and status is not None
        and (status.state, status.attempt) == ("succeeded", 2)
    )
    assert [verdict["verdict_class"] for verdict in run.verdicts()] == ["node_failure", "done"], run.story("verdicts")
    # Frozen between the rename and its event, an attempt tells of a checkpoint much later. What counts is when it was
    # let through to the rename, and that the second attempt went on from no older one.
    second_began = events_of(run, 2, "job_start")[0].time
    prepared = events_of(run, 1, "checkpoint_prepared")
    assert all(event.time <= second_began for event in prepared), run.story("attempt 1 published")
    (went_on_from,) = [event.fields["step"] for event in events_of(run, 2, "resume")] or [0]
    published = [event.fields["step"] for event in events_of(run, 1, "checkpoint")]
    assert max(published, default=0) <= went_on_from, run.story("attempt 1 published behind the second")
    assert not list(paths.checkpoints.glob(".staging-*-0001"))
    assert all(verify(checkpoint) == [] for checkpoint in committed(paths))
    assert committed(paths)[0].manifest.attempt == 2


def save_config(cluster: Cluster, node: str, run: SlurmRun) -> list[psutil.Process]:
    """Stops ranks, srun and supervisor of the run's first attempt, all on one node."""
    guests = next(entry for entry in cluster.status()["nodes"] if entry["name"] == node)["processes"]
    found = [psutil.Process(guest["pid"]) for guest in guests if str(run.run_dir) in guest["argv"]]
    for process in found:
        process.suspend()
    assert len(found) >= 4, found
    return found


def wait_until(condition: Callable[[], bool], timeout_s: float, what: str, run: SlurmRun) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, run.story(f"waited in vain for: {what}")
        time.sleep(0.01)
