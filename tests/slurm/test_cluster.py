"""The local cluster itself: scripts/slurm-cluster does to a real Slurm what its verbs say."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.slurm.cluster import SCRIPT, Cluster, start_cluster


def test_jobs_run_on_nodes_with_their_own_names_and_see_the_same_files(cluster: Cluster) -> None:
    result = cluster.run(["srun", "-N3", "bash", "-c", "hostname | tee $(hostname).name"])
    assert sorted(result.stdout.split()) == ["n1", "n2", "n3"]
    assert (cluster.shared / "n3.name").read_text() == "n3\n"
    assert cluster.run(["hostname"], node="n2").stdout == "n2\n"


def test_users_run_jobs_as_themselves(cluster: Cluster) -> None:
    assert cluster.run(["srun", "id", "-un"], user="alice").stdout == "alice\n"
    assert cluster.run(["bash", "-c", "echo $HOME; touch ~/mine"], user="bob").stdout.endswith("/bob\n")


def test_what_a_job_says_with_its_exit_code_comes_back(cluster: Cluster) -> None:
    result = cluster.run(["srun", "bash", "-c", "echo word; exit 7"], check=False)
    assert (result.returncode, result.stdout) == (7, "word\n")


def test_a_job_in_a_higher_partition_takes_the_node_and_the_lower_one_is_requeued(cluster: Cluster) -> None:
    low = cluster.sbatch("-p", "low", "-N3", "--exclusive", "--wrap", "sleep 600")
    cluster.wait_job(low, "RUNNING")
    high = cluster.sbatch("-p", "high", "-N1", "--wrap", "sleep 1")
    cluster.wait_job(high, "COMPLETED")
    assert cluster.wait_job(low, "RUNNING")["Restarts"] == "1"


def test_a_node_that_lost_its_power_loses_the_job_and_comes_back(cluster: Cluster) -> None:
    job = cluster.sbatch("--no-requeue", "-w", "n2", "--wrap", "sleep 600")
    cluster.wait_job(job, "RUNNING")
    cluster.node("down", "n2")
    assert cluster.status()["nodes"][1]["power"] == "off"
    cluster.wait_job(job, "NODE_FAIL")
    cluster.node("up", "n2")
    assert cluster.run(["srun", "-w", "n2", "hostname"]).stdout == "n2\n"


def test_a_cut_node_goes_on_alone_and_joins_again(cluster: Cluster) -> None:
    cluster.node("cut", "n3")
    assert cluster.run(_dial("n3"), check=False).returncode != 0
    assert cluster.run(["hostname"], node="n3").stdout == "n3\n"
    cluster.node("join", "n3")
    cluster.run(_dial("n3"))


def test_a_job_outlives_its_node_daemon(cluster: Cluster) -> None:
    job = cluster.sbatch("-w", "n1", "--wrap", "while [ ! -e enough ]; do sleep 0.1; done")
    cluster.wait_job(job, "RUNNING")
    cluster.node("kill-slurmd", "n1")
    assert cluster.status()["nodes"][0]["slurmd"] == "off"
    cluster.node("up", "n1")
    (cluster.shared / "enough").touch()
    assert cluster.wait_job(job, "COMPLETED")["Restarts"] == "0"


@pytest.mark.parametrize("way", ["stop", "kill"])
def test_jobs_go_on_without_the_controller_which_comes_back_knowing_them(cluster: Cluster, way: str) -> None:
    signs = cluster.shared / way
    job = cluster.sbatch("--wrap", f"touch {signs}.started; while [ ! -e {signs}.enough ]; do sleep 0.1; done")
    _wait_until(Path(f"{signs}.started").exists)
    saved = (cluster.folder / "state" / "job_state").stat().st_mtime_ns
    # The controller saves its state every few seconds, and only when something changed: a job that started since the
    # last time would be lost to a kill. A save that comes after a change of the running job knows that it runs.
    cluster.run(["scontrol", "update", f"JobId={job}", "Comment=started"])
    _wait_until(lambda: way == "stop" or (cluster.folder / "state" / "job_state").stat().st_mtime_ns > saved)
    cluster.controller(way)
    assert cluster.status()["controller"]["slurmctld"] == "off"
    Path(f"{signs}.enough").touch()
    cluster.controller("start")
    cluster.wait_job(job, "COMPLETED")


def test_a_frozen_controller_answers_nobody_until_it_is_started(cluster: Cluster) -> None:
    cluster.controller("freeze")
    assert cluster.status()["controller"]["slurmctld"] == "frozen"
    cluster.controller("start")
    cluster.run(["squeue"])


def test_pretended_gpus_are_given_out_to_jobs(gpu_cluster: Cluster) -> None:
    show = ["bash", "-c", "echo $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES"]
    assert gpu_cluster.run(["srun", "-N2", "--gpus-per-node=2", *show]).stdout.count("0,1") == 2
    assert gpu_cluster.run(["srun", "--gpus=h100:5", "-N1", "true"], check=False).returncode != 0


def test_two_clusters_do_not_meet_and_down_leaves_no_process(cluster: Cluster) -> None:
    other = start_cluster(1, "--kill-wait-s", "2")
    try:
        job = other.sbatch("--wrap", "setsid sleep 86399 & sleep 86399")
        other.wait_job(job, "RUNNING")
        _wait_until(lambda: _anywhere("86399"))
        assert "n2" not in other.run(["sinfo", "-N"]).stdout
        assert job not in cluster.run(["squeue", "-h", "-o", "%A"]).stdout.split()
    finally:
        other.down()
    assert not _anywhere("86399") and not _anywhere(str(other.folder))
    assert cluster.run(["srun", "hostname"]).stdout.startswith("n")


def test_verbs_say_what_is_wrong_and_what_to_do(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "letter").touch()
    for folder, argv, words in [
        (cluster.folder, ["node", "down", "n9"], "No node 'n9' in this cluster. It has: n1 n2 n3"),
        (cluster.folder, ["run"], "no command given"),
        (tmp_path / "none", ["run", "sinfo"], "Start one: scripts/slurm-cluster up 2"),
        (tmp_path, ["up", "2"], "holds other files. Set SLURM_CLUSTER_DIR to a new folder"),
        (cluster.folder, ["up", "many"], "'many' is not a whole number"),
    ]:
        env = {**os.environ, "SLURM_CLUSTER_DIR": str(folder)}
        result = subprocess.run([sys.executable, SCRIPT, *argv], env=env, capture_output=True, text=True)
        assert result.returncode != 0 and words in result.stderr, result.stderr
    assert (tmp_path / "letter").exists()


def _dial(host: str) -> list[str]:
    """Connects to slurmd of a node."""
    return [sys.executable, "-c", f"import socket; socket.create_connection(('{host}', 6818), timeout=1)"]


def _anywhere(word: str) -> bool:
    """Whether a process of this machine has the word in its arguments."""
    found = [path for path in Path("/proc").glob("[0-9]*/cmdline") if path.parent.name != str(os.getpid())]
    return any(word.encode() in _read(path) for path in found)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _wait_until(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
