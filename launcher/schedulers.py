"""Which scheduler starts a run, and which one has it."""

from __future__ import annotations

from pathlib import Path

from launcher.config.cluster_schema import ClusterConfig, ClusterKind
from launcher.config.frozen import load_config
from launcher.local.scheduler import HostsScheduler, LocalScheduler
from launcher.paths import RunPaths
from launcher.runs.scheduler import Scheduler
from launcher.runs.states import is_submitted
from launcher.slurm.submit.scheduler import SlurmScheduler, refuse_beside_job


def scheduler_for(run_dir: Path, *, remote: bool = False) -> Scheduler:
    """The one that starts the next attempt of a run from here. Inside a Slurm job the ranks start on its nodes.

    Args:
        remote: start the other hosts of cluster.hosts through a remote shell.
    Raises: RunError if another job has the run; SlurmUnavailable if that cannot be asked.
    """
    if _cluster(run_dir).kind is ClusterKind.slurm:
        slurm = SlurmScheduler()
        if slurm.context() is None:
            return slurm
        refuse_beside_job(run_dir)
    return scheduler_here(run_dir, remote=remote)


def scheduler_here(run_dir: Path, *, remote: bool = False) -> Scheduler:
    """The one that starts a run's next attempt without a queue."""
    hosts = _cluster(run_dir).hosts
    return HostsScheduler(hosts, remote=remote) if len(hosts) > 1 else LocalScheduler()


def scheduler_of(*run_dirs: Path) -> Scheduler:
    """The one that has a run, is to run it, or ran it last. Several are a sweep, which is a job array of Slurm."""
    return SlurmScheduler() if len(run_dirs) != 1 or is_submitted(run_dirs[0]) else LocalScheduler()


def _cluster(run_dir: Path) -> ClusterConfig:
    return load_config(RunPaths(run_dir).config).config.cluster
