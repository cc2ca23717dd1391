"""What a job survives, on a real cluster: each curve is compared bit for bit with that of the run nobody disturbed.

The long counts are marked nightly (scripts/test --nightly); docs/reliability.md records when they ran.
"""

from __future__ import annotations

import itertools
import signal
import time
from pathlib import Path

import pytest

from launcher.files import find_record
from launcher.paths import RunPaths
from launcher.runs.metrics import read_metrics
from tests.slurm import faults
from tests.slurm.cluster import Cluster
from tests.slurm.rig import Goldens, SlurmRun
from tests.wandb_files import history_rows

TIMES_PREEMPTED = 10
LONG = ("optim.max_steps=400", "checkpoint.save_every_steps=20", "fault.stop_margin_s=5")
"""Some 20 s of steps here: long enough for a fault in the middle."""
STRATEGIES = ("zero2", "zero3")

pytestmark = pytest.mark.nightly


def steps_of(run: SlurmRun) -> int:
    return max(run.losses(), default=0)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_preempted_ten_times_it_loses_nothing(
    cluster: Cluster, tiny_model: Path, goldens: Goldens, strategy: str
) -> None:
    steps = f"optim.max_steps={50 * (TIMES_PREEMPTED + 2)}"
    settings = (f"strategy={strategy}", steps, *LONG[1:])
    golden = goldens.losses(cluster, tiny_model, *settings)
    run = SlurmRun.make(cluster, tiny_model, *settings)
    run.submit("--partition=low")
    for time_number in range(1, TIMES_PREEMPTED + 1):
        before = run.wait_step(time_number * 50)
        cluster.sbatch(
            *("--partition=high", "--nodes=3", "--exclusive", "--output=/dev/null", "--time=1", "--wrap=sleep 1")
        )
        run.wait_attempt(time_number + 1)
        assert steps_of(run) >= before
    run.wait_done()
    assert run.losses() == golden
    classes = [verdict["verdict_class"] for verdict in run.verdicts()]
    assert classes == ["preempted"] * TIMES_PREEMPTED + ["done"], run.story(str(classes))
    lost = [verdict["step_end"] - verdict["checkpoint_after"] for verdict in run.verdicts()[:-1]]
    assert lost == [0] * TIMES_PREEMPTED, f"steps lost to preemptions: {lost}"


def test_the_time_limit_is_passed_in_four_attempts(cluster: Cluster, tiny_model: Path, goldens: Goldens) -> None:
    """scancel -s USR2 is what Slurm's --signal does; limits themselves are whole minutes (the next test)."""
    settings = ("strategy=zero2", *LONG)
    golden = goldens.losses(cluster, tiny_model, *settings)
    run = SlurmRun.make(cluster, tiny_model, *settings)
    run.submit()
    for number in range(1, 5):
        run.wait_step(number * 70)
        cluster.run(["scancel", "--signal=USR2", run.job_id])
        run.wait_attempt(number + 1)
    run.wait_done()
    assert run.losses() == golden
    assert run.num_attempts() >= 5


def test_a_real_time_limit_of_a_minute_is_met_with_a_save(cluster: Cluster, tiny_model: Path, goldens: Goldens) -> None:
    settings = ("strategy=zero2", "optim.max_steps=900", "fault.stop_margin_s=10")
    golden = goldens.losses(cluster, tiny_model, *settings)
    run = SlurmRun.make(cluster, tiny_model, *settings, "cluster.walltime_min=1")
    run.submit("--time=1", "--signal=USR2@5")
    run.wait_done(timeout_s=900)
    assert run.losses() == golden
    classes = [verdict["verdict_class"] for verdict in run.verdicts()]
    assert classes[-1] == "done" and set(classes[:-1]) == {"timeout"}, run.story(str(classes))
    assert len(classes) >= 2


@pytest.mark.parametrize("fault", ["down", "cut", "kill-slurmd"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_lost_node_is_survived(
    cluster: Cluster, tiny_model: Path, goldens: Goldens, strategy: str, fault: str
) -> None:
    settings = (f"strategy={strategy}", *LONG)
    golden = goldens.losses(cluster, tiny_model, *settings)
    run = SlurmRun.make(cluster, tiny_model, *settings, "fault.step_limit_s=15")
    run.submit()
    run.wait_step(100)
    nodes = sorted({faults.node_of(process) for process in faults.ranks_of(run.run_dir)})
    cluster.node(fault, nodes[-1])
    if fault != "kill-slurmd":  # ranks live on without it, and the run may end before Slurm has noticed
        run.wait_attempt(2, timeout_s=180)
    run.wait_done()
    assert run.losses() == golden
    if fault == "cut":
        cluster.node("join", nodes[-1])
        end = time.monotonic() + 120  # the rank that was cut off finds out by itself
        while faults.ranks_of(run.run_dir) and time.monotonic() < end:
            time.sleep(0.5)


@pytest.mark.parametrize("moment", ["save", "requeue"])
def test_a_controller_that_is_away_for_a_minute_is_waited_for(
    cluster: Cluster, tiny_model: Path, goldens: Goldens, moment: str
) -> None:
    settings = ("strategy=zero2", "optim.max_steps=900", "checkpoint.save_every_steps=20")
    golden = goldens.losses(cluster, tiny_model, *settings)
    run = SlurmRun.make(cluster, tiny_model, *settings)
    run.submit()
    run.wait_step(100)
    if moment == "requeue":
        cluster.run(["scancel", "--signal=USR2", run.job_id])
    cluster.controller("stop")
    before = steps_of(run)
    time.sleep(60)
    if moment == "save":
        assert steps_of(run) > before, "training waited for the controller"
    cluster.controller("start")
    run.wait_done(timeout_s=600)
    assert run.losses() == golden
    assert len(cluster.run(["squeue", "--noheader"]).stdout.split()) == 0
    assert run.num_attempts() == (2 if moment == "requeue" else 1), run.story("attempts")


def test_one_wandb_run_goes_through_five_requeues(cluster: Cluster, tiny_model: Path, goldens: Goldens) -> None:
    settings = ("strategy=zero2", *LONG)
    golden = goldens.losses(cluster, tiny_model, *settings)
    run = SlurmRun.make(cluster, tiny_model, *settings, "track.wandb=offline")
    run.submit()
    for number in range(1, 6):
        run.wait_step(number * 60)
        if number % 2:
            cluster.run(["scancel", "--signal=USR2", run.job_id])
        else:  # a crash beyond the newest checkpoint: those steps are done and logged again
            faults.signal_rank(run.run_dir, signal.SIGKILL, rank=1)
        run.wait_attempt(number + 1)
    run.wait_done()
    assert run.losses() == golden
    paths = RunPaths(run.run_dir)
    assert {path.name for path in paths.tracker("wandb").glob("offline-run-*/*.wandb")} == {
        "run-0123456789abcdef.wandb"
    }
    rows = [row for row in history_rows(paths.tracker("wandb")) if "train/loss" in row]
    sent = {int(str(row["train/global_step"])): float(str(row["train/loss"])).hex() for row in rows}
    assert sent == golden and len(rows) == len(golden)
    assert [record.step for record in read_metrics(paths.metrics).steps] == sorted(golden)


AWKWARD = (
    "start",
    "import",
    "meet",
    "load",
    "rehearse",
    "first step",
    "middle",
    "save",
    "evaluate",
    "last step",
    "end",
)


@pytest.mark.parametrize("way", ["all ranks", "all ranks twice", "rank 1 only"])
@pytest.mark.parametrize("moment", AWKWARD)
def test_a_stop_at_an_awkward_moment_does_no_harm(
    cluster: Cluster, tiny_model: Path, goldens: Goldens, moment: str, way: str
) -> None:
    settings = ("strategy=zero2", "optim.max_steps=60", "checkpoint.save_every_steps=10", "track.eval_every_steps=10")
    golden = goldens.losses(cluster, tiny_model, *settings)
    run = SlurmRun.make(cluster, tiny_model, *settings)
    run.submit()
    _wait_for_moment(run, moment)
    if way == "rank 1 only":
        faults.signal_rank(run.run_dir, signal.SIGTERM, rank=1)
    for _ in range({"all ranks": 1, "all ranks twice": 2}.get(way, 0)):
        cluster.run(["scancel", "--signal=USR2", run.job_id], check=False)
    told = time.monotonic()
    run.wait_done()
    assert run.losses() == golden
    assert time.monotonic() - told < 180
    assert all(verdict["verdict_class"] in ("preempted", "timeout", "done") for verdict in run.verdicts()), run.story(
        ""
    )


def _wait_for_moment(run: SlurmRun, moment: str) -> None:
    """Until the ranks are about there: their own heartbeats tell the phase."""
    from launcher.runs.heartbeat import Beat

    paths = RunPaths(run.run_dir)
    phase = {"first step": "step", "middle": "step", "last step": "step", "end": "finish"}.get(moment, moment)
    step = {"middle": 30, "last step": 59, "save": 10, "evaluate": 10}.get(moment, 0)
    end = time.monotonic() + 120
    while time.monotonic() < end:
        if moment == "start" and faults.ranks_of(run.run_dir):
            return
        beat = find_record(Beat, paths.heartbeat(1, 0))
        if moment == "import" and beat is not None:
            return
        if beat is not None and (beat.phase, beat.step >= step) == (phase, True):
            return
        if steps_of(run) >= (60 if moment == "end" else max(step, 1)) and moment not in ("save", "evaluate"):
            return
        if steps_of(run) > 50 and moment in ("save", "evaluate"):
            return
        time.sleep(0.005)
    raise AssertionError(run.story(f"never saw {moment}"))


def test_no_two_attempts_ever_wrote_side_by_side(cluster: Cluster, tiny_model: Path, goldens: Goldens) -> None:
    """Ranks frozen while their job is requeued elsewhere come back to life in the middle of the next attempt."""
    settings = ("strategy=zero2", *LONG)
    golden = goldens.losses(cluster, tiny_model, *settings)
    run = SlurmRun.make(cluster, tiny_model, *settings)
    run.submit()
    run.wait_step(100)
    old = faults.ranks_of(run.run_dir)
    for process in old:
        process.suspend()
    node = faults.node_of(old[0])
    cluster.run(["scontrol", "update", f"nodename={node}", "state=down", "reason=test"])
    run.wait_attempt(2, timeout_s=180)
    for process in old:
        if process.is_running():
            process.resume()
    run.wait_done()
    assert run.losses() == golden
    pairs = itertools.pairwise(record.attempt for record in read_metrics(RunPaths(run.run_dir).metrics).steps)
    assert all(first <= second for first, second in pairs)
