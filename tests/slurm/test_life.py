"""The life of a job on the real cluster, by hand with sbatch: it ends as if undisturbed, or stops and says why."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.config.frozen import load_config
from launcher.errors import ExitCode
from launcher.paths import RunPaths
from launcher.runs.events import Event, read_events
from tests.slurm.cluster import ROOT, Cluster
from tests.slurm.faults import kill_rank
from tests.slurm.rig import SlurmRun

TRAIN = ROOT / "slurm" / "train.sbatch"
STEPS = 400
SHAPE = ("--nodes=2", "--ntasks-per-node=1")


@pytest.fixture(scope="module")
def folder(cluster: Cluster) -> Path:
    """Where the user of this module submits from."""
    place = cluster.shared / "life"
    place.mkdir()
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
        "batch.global_sequences=4",
        f"optim.max_steps={STEPS}",
        "checkpoint.save_every_steps=50",
        "cluster.threads_per_process=1",
        "track.wandb=disabled",
    ]


def by_hand(cluster: Cluster, folder: Path, *words: str, name: str, options: tuple[str, ...] = SHAPE) -> SlurmRun:
    """sbatch slurm/train.sbatch SETTINGS, as a user types it; the run directory is made inside the job."""
    output = ["--output", f"{folder}/slurm-%j.out", f"--chdir={folder}"]
    environ = {"LAUNCHER_CACHE": str(cluster.shared / "cache"), "PYTHONPATH": str(ROOT)}
    job = cluster.sbatch(*output, *options, TRAIN, *words, f"name={name}", env=environ)
    return SlurmRun(cluster, folder / "runs" / name, 2, 1, job_id=job, jobs=[job])


@pytest.fixture(scope="module")
def golden(cluster: Cluster, folder: Path, settings: list[str]) -> Iterator[SlurmRun]:
    """A run that nobody disturbed."""
    run = by_hand(cluster, folder, *settings, name="golden")
    run.wait_done(timeout_s=600)
    yield run


def events(run: SlurmRun, name: str) -> list[Event]:
    return [event for event in read_events(RunPaths(run.run_dir).events) if event.event == name]


def final_state(run: SlurmRun) -> object:
    return events(run, "state")[-1].fields["state"]


def classes(run: SlurmRun) -> list[tuple[str, str]]:
    return [(verdict["verdict_class"], verdict["action"]) for verdict in run.verdicts()]


def test_settings_typed_after_sbatch_become_a_run_of_the_job_s_shape(golden: SlurmRun) -> None:
    frozen = load_config(RunPaths(golden.run_dir).config)
    assert frozen.derived is not None
    assert (frozen.derived.world_size, frozen.derived.devices_per_node, frozen.derived.device) == (2, 1, "cpu")
    assert (frozen.config.cluster.kind.value, frozen.config.cluster.partition) == ("slurm", golden_partition(golden))
    assert list(golden.losses()) == list(range(1, STEPS + 1))
    assert classes(golden) == [("done", "none")]
    assert final_state(golden) == "succeeded"


def golden_partition(run: SlurmRun) -> str:
    return run.cluster.job(run.job_id)["Partition"]


def test_a_finished_run_started_again_does_nothing_and_says_so(cluster: Cluster, golden: SlurmRun) -> None:
    again = SlurmRun(cluster, golden.run_dir, 2, 1)
    again.submit()
    again.wait_done()
    assert again.num_attempts() == 1
    said = next(golden.run_dir.parent.glob(f"slurm-{again.job_id}.out")).read_text()
    assert "has finished; there is nothing left to do" in said


def test_a_plan_for_other_nodes_stops_before_any_rank(cluster: Cluster, golden: SlurmRun, folder: Path) -> None:
    words = [*SHAPE, "--output", f"{folder}/other-%j.out", TRAIN, "--run", golden.run_dir]
    words[0] = "--nodes=1"
    events_before = RunPaths(golden.run_dir).events.read_bytes()
    RunPaths(golden.run_dir).events.write_bytes(b"")  # as if it had not finished
    try:
        job = cluster.sbatch(*words)
        record = cluster.wait_job(job, "FAILED")
    finally:
        RunPaths(golden.run_dir).events.write_bytes(events_before)
    assert record["ExitCode"].startswith(f"{int(ExitCode.WORLD)}:")
    assert "planned for 2 x 1 ranks" in (folder / f"other-{job}.out").read_text()


def test_a_job_that_may_not_be_queued_again_saves_and_does_not_claim_to_be(
    cluster: Cluster, folder: Path, settings: list[str]
) -> None:
    run = by_hand(cluster, folder, *settings, name="once", options=(*SHAPE, "--no-requeue"))
    run.wait_step(10, timeout_s=300)
    cluster.run(["scancel", "--signal=USR2", run.job_id])
    record = cluster.wait_job(run.job_id, "FAILED")
    assert record["ExitCode"].startswith(f"{int(ExitCode.UNAVAILABLE)}:")
    assert final_state(run) == "failed" and run.num_attempts() == 1
    assert run.verdicts()[0]["checkpoint_after"] >= 10


def test_preempted_then_warned_then_robbed_of_a_rank_it_ends_as_if_nothing_had_been(
    cluster: Cluster, folder: Path, settings: list[str], golden: SlurmRun
) -> None:
    run = by_hand(cluster, folder, *settings, name="disturbed", options=(*SHAPE, "--partition=low"))
    run.wait_step(10, timeout_s=300)
    cluster.sbatch("--partition=high", "--nodes=3", "--exclusive", "--output=/dev/null", "--wrap=true")
    run.wait_attempt(2)
    run.wait_for(lambda: len(events(run, "resume")) == 1 or None, "a resumed attempt", 300)
    cluster.run(["scancel", "--signal=USR2", run.job_id])
    run.wait_attempt(3)
    run.wait_for(lambda: len(events(run, "resume")) == 2 or None, "another resumed attempt", 300)
    kill_rank(cluster, run.run_dir, random.Random(7))
    run.wait_done(timeout_s=600)
    found = classes(run)
    assert found[:2] == [("preempted", "requeue")] * 2, run.story("verdicts")
    assert found[2][1] in ("requeue", "requeue_without_node") and found[3] == ("done", "none"), run.story("verdicts")
    assert [event.fields["by_slurm"] for event in events(run, "requeue")] == [True, False, False]
    assert run.losses() == golden.losses()
    assert len(list((folder / "runs").glob("disturbed*"))) == 1


def test_ranks_that_always_fail_stop_the_run_after_three_attempts(
    cluster: Cluster, folder: Path, settings: list[str]
) -> None:
    broken = folder / "broken"
    broken.mkdir()
    # Before torch is loaded, and in ranks only: the supervisor has no step.
    (broken / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if 'SLURM_STEP_ID' in os.environ and 'launcher.train' in sys.orig_argv:\n"
        "    print('RuntimeError: injected', file=sys.stderr, flush=True)\n"
        "    os._exit(1)\n"
    )
    path = f"cluster.environment={{PYTHONPATH: '{broken}:{ROOT}'}}"
    run = by_hand(cluster, folder, *settings, path, name="broken")
    record = run.wait_end(timeout_s=300)
    assert record["JobState"] == "FAILED"
    actions = [action for _, action in classes(run)]
    # The same rank fails first twice: then its node is left out, for the cluster has another one.
    assert len(actions) == 3 and set(actions[:2]) <= {"requeue", "requeue_without_node"}, run.story("verdicts")
    assert actions[2] == "stop"
    assert "3 attempts in a row" in run.verdicts()[-1]["summary"]
    assert final_state(run) == "failed"


@pytest.mark.nightly
def test_a_run_outlives_the_loss_of_each_of_its_nodes(
    cluster: Cluster, folder: Path, settings: list[str], golden: SlurmRun
) -> None:
    run = by_hand(cluster, folder, *settings, name="unplugged")
    run.wait_checkpoint(50, timeout_s=300)
    cluster.node("down", "n2")
    run.wait_for(lambda: len(events(run, "resume")) == 1 or None, "a resumed attempt", 300)
    cluster.node("up", "n2")
    # The first node takes the supervisor with it: the next attempt has to tell what happened to this one.
    cluster.node("down", cluster.job(run.job_id)["BatchHost"])
    run.wait_attempt(3, timeout_s=120)
    for name in ("n1", "n2", "n3"):
        cluster.node("up", name)
    run.wait_done(timeout_s=600)
    # What the controller could not tell a node that was off, to end the job, it tells it a minute later, under the same
    # job number; a newer attempt there is then stopped by Slurm itself, saves and goes on.
    found = [kind for kind, _ in classes(run)]
    assert found.count("preempted") <= 1, run.story("verdicts")
    kinds = [kind for kind in found if kind != "preempted"]
    assert kinds == ["node_failure", "node_failure", "done"], run.story("verdicts")
    assert run.losses() == golden.losses()
