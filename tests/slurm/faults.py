"""Faults done to a running job on the test cluster: each one is the real thing, and is over when the function returns.

A fault finds its victim by the run directory: the processes of ranks carry it in their arguments.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from tests.slurm.cluster import Cluster


def ranks_of(run_dir: Path) -> list[psutil.Process]:
    """The worker processes of a run on all nodes (they are processes of this machine, too), without their children."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        # srun has the same words behind its own.
        if "launcher.train" in words and str(run_dir) in words and "python" in Path(words[0]).name:
            found.append(process)
    return found


def node_of(process: psutil.Process) -> str:
    """Host name inside the process's own namespace; empty when it has gone."""
    with suppress(psutil.Error):
        return str(process.environ().get("SLURMD_NODENAME", ""))
    return ""


def some_rank(run_dir: Path, chance: random.Random, patience_s: float = 90.0) -> psutil.Process:
    """One of the run's ranks; while its job is in the queue they are waited for."""
    end = time.monotonic() + patience_s
    while not (ranks := ranks_of(run_dir)):
        assert time.monotonic() < end, f"no rank of {run_dir} for {patience_s:.0f} s"
        time.sleep(0.1)
    return chance.choice(ranks)


def kill_rank(cluster: Cluster, run_dir: Path, chance: random.Random) -> str:
    """SIGKILL for one rank: what the kernel does when memory runs out."""
    victim = some_rank(run_dir, chance)
    node = node_of(victim)
    with suppress(psutil.Error):
        victim.kill()
    return f"kill_rank on {node}"


def freeze_rank(cluster: Cluster, run_dir: Path, chance: random.Random) -> str:
    """SIGSTOP for a second, then SIGCONT: a machine that swaps. Nobody may take it for a hang."""
    victim = some_rank(run_dir, chance)
    with suppress(psutil.Error):
        victim.suspend()
        time.sleep(1.0)
        victim.resume()
    return "freeze_rank for 1 s"


def unplug_node(cluster: Cluster, run_dir: Path, chance: random.Random) -> str:
    """The power of one of its nodes, and back after a while."""
    node = _some_node(cluster, run_dir, chance)
    cluster.node("down", node)
    time.sleep(8.0)
    cluster.node("up", node)
    return f"unplug_node {node}"


def cut_node(cluster: Cluster, run_dir: Path, chance: random.Random) -> str:
    """The network cable of one of its nodes, long enough for Slurm to give the node up, and back in."""
    node = _some_node(cluster, run_dir, chance)
    cluster.node("cut", node)
    time.sleep(15.0)
    cluster.node("join", node)
    cluster.node("up", node)
    return f"cut_node {node} for 15 s"


def kill_slurmd(cluster: Cluster, run_dir: Path, chance: random.Random) -> str:
    """The daemon of one of its nodes, whose ranks go on; started again before Slurm misses it."""
    node = _some_node(cluster, run_dir, chance)
    cluster.node("kill-slurmd", node)
    time.sleep(2.0)
    cluster.node("up", node)
    return f"kill_slurmd on {node}"


def _some_node(cluster: Cluster, run_dir: Path, chance: random.Random) -> str:
    """A node the run is on now; any, while it is on none."""
    nodes = sorted({node for process in ranks_of(run_dir) if (node := node_of(process))})
    return chance.choice(nodes or ["n1", "n2", "n3"][: cluster.num_nodes])


def restart_controller(cluster: Cluster, run_dir: Path, chance: random.Random) -> str:
    """slurmctld killed and started again five seconds later."""
    cluster.controller("kill")
    time.sleep(5.0)
    cluster.controller("start")
    return "restart_controller"


def preempt(cluster: Cluster, run_dir: Path, chance: random.Random) -> str:
    """A job of a higher partition that wants all nodes for a moment."""
    job = cluster.sbatch(
        "--partition=high",
        f"--nodes={cluster.num_nodes}",
        "--exclusive",
        "--output=/dev/null",
        "--time=1",
        "--wrap=sleep 1",
    )
    with suppress(AssertionError):
        cluster.wait_job(job, timeout_s=60)
    return "preempt"


def fill_disk(cluster: Cluster, run_dir: Path, chance: random.Random) -> str:
    """Not one byte left on the disk of the run for ten seconds. The disk is a small one of its own (`small_disk`)."""
    filler = run_dir.parent / "filler"
    # Without a buffer: what is left in one when the disk is full is written again, and refused again, by close().
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 16))
    time.sleep(10.0)
    filler.unlink(missing_ok=True)
    return "fill_disk for 10 s"


Fault = Callable[[Cluster, Path, random.Random], str]
ALL: tuple[Fault, ...] = (
    kill_rank,
    freeze_rank,
    unplug_node,
    cut_node,
    kill_slurmd,
    restart_controller,
    preempt,
    fill_disk,
)


def signal_rank(run_dir: Path, number: signal.Signals, *, rank: int | None = None) -> int:
    """Sends a signal to one rank, or all; returns how many got it."""
    count = 0
    for process in ranks_of(run_dir):
        with suppress(psutil.Error):
            if rank is None or process.environ().get("SLURM_PROCID") == str(rank):
                os.kill(process.pid, number)
                count += 1
    return count
