"""The srun commands of an attempt's ranks and of a stage, and their environment. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from launcher.config.cluster_schema import ClusterConfig
from launcher.config.schema import Derived, RunConfig
from launcher.errors import ConfigErrors, RunError
from launcher.paths import RunPaths
from launcher.runs.rank_environment import RankEnvironment, job_environment
from launcher.slurm.client.container import SrunTask, contained, container_problems, run_folders, site_options
from launcher.slurm.client.option_validation import srun_problems
from launcher.slurm.job.allocation import Allocation

EARLY_EXIT_WAIT_S = 60
"""How long other ranks may run after the first has exited: rank 0 still uploads to W&B."""

# srun reads these as options; we pass them on its command line, or (cores per GPU) they contradict it.
_SRUN_SETTINGS = {
    "SLURM_CPUS_PER_GPU", "SLURM_CPUS_PER_TASK", "SLURM_TRES_PER_TASK", "SLURM_NTASKS", "SLURM_NPROCS",
    "SLURM_NTASKS_PER_NODE", "SLURM_NTASKS_PER_GPU", "SLURM_NTASKS_PER_SOCKET", "SLURM_NTASKS_PER_CORE",
    "SLURM_DISTRIBUTION", "SLURM_EXPORT_ENV", "SLURM_UMASK", "SLURM_JWT",
}  # fmt: skip


def srun_argv(
    config: RunConfig, derived: Derived, *, run_dir: Path, attempt: int, cpus_per_task: int, is_crowded: bool = False
) -> list[str]:
    """srun with one task per rank, distributed to the nodes in blocks, each with its own log.

    Args:
        run_dir: absolute, and the same on all nodes.
        cpus_per_task: cores of a rank; srun does not inherit them from sbatch.
        is_crowded: a node has fewer cores than ranks, so they must share.
    Raises:
        ConfigErrors: options or a container that srun would misread; submit reports them before anything is queued.
        RunError: a path that srun or a container cannot take.
    """
    _refuse_unfit(config)
    command = ["launcher.train", "--run", str(run_dir), "--attempt", str(attempt)]
    task = contained(config.cluster, command, shown=run_folders(run_dir, derived), gpus=derived.device == "cuda")
    options = [
        f"--cpus-per-task={cpus_per_task}",
        *(["--overcommit"] if is_crowded else []),
        "--distribution=block",
        # A rank that fails ends the others at once, so that they do not hold their GPUs waiting for it.
        "--kill-on-bad-exit=1",
        f"--wait={EARLY_EXIT_WAIT_S}",
        "--unbuffered",
        f"--output={_pattern(RunPaths(run_dir).attempt(attempt))}/rank-%4t.log",
        "--open-mode=append",
    ]
    nodes = derived.world_size // derived.devices_per_node
    return step_argv(task, config.cluster.srun_args, options, nodes=nodes, tasks_per_node=derived.devices_per_node)


def stage_argv(
    config: RunConfig, command: Sequence[str], *, shown: Sequence[Path], gpus: bool, cpus_per_task: int
) -> list[str]:
    """srun with one task on this node for a command of the launcher, such as export or eval.

    Args:
        shown, gpus: paths and GPUs it needs inside a container.
    Raises:
        ConfigErrors, RunError: as srun_argv.
    """
    _refuse_unfit(config)
    task = contained(config.cluster, ["launcher", *command], shown=shown, gpus=gpus)
    options = [f"--cpus-per-task={cpus_per_task}", "--unbuffered"]
    return step_argv(task, site_options(config.cluster), options, nodes=1, tasks_per_node=1)


def step_argv(
    task: SrunTask, site_args: Sequence[str], options: Sequence[str], *, nodes: int, tasks_per_node: int
) -> list[str]:
    """srun for a task on every node of the job; the site's options come last and so win."""
    return [
        "srun",
        f"--nodes={nodes}",
        f"--ntasks={nodes * tasks_per_node}",
        f"--ntasks-per-node={tasks_per_node}",
        # Ranks do their own rendezvous; a site's default MPI plug-in is only one more thing that can fail.
        "--mpi=none",
        "--input=none",
        "--export=ALL",
        *options,
        *task.options,
        *site_args,
        *task.command,
    ]


def _refuse_unfit(config: RunConfig) -> None:
    if problems := [*srun_problems(config.cluster), *container_problems(config)]:
        raise ConfigErrors(problems)


def _pattern(folder: Path) -> str:
    """A folder, escaped for srun's file name patterns."""
    if "\\" in str(folder):
        raise RunError(
            f"{folder}: a path with a backslash cannot hold the ranks' logs under Slurm; choose another runs_dir"
        )
    return str(folder).replace("%", "%%")


def cores_per_rank(asked: int | None, allocation: Allocation, ranks: int) -> tuple[int, bool]:
    """Cores of each rank, and whether ranks must share cores because the node has too few.

    Args:
        asked: cluster.cpus_per_task. ranks: on a node.
    """
    share = allocation.cpus_per_node // ranks
    return max(1, min(asked or allocation.cpus_per_task or share, share)), share == 0


def step_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The part of the job's environment for srun and the ranks: the allow-list and Slurm's variables."""
    slurm = {name: value for name, value in environ.items() if name.startswith("SLURM_") and name not in _SRUN_SETTINGS}
    return {**job_environment(environ), **slurm}


def stage_environment(environ: Mapping[str, str], config: RunConfig, *, cpus: int) -> dict[str, str]:
    """The environment of a stage: that of the ranks without the rendezvous."""
    return {
        **step_environment(environ),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": str(cpus),
        **config.cluster.environment,
    }


def ranks_environment(environ: Mapping[str, str], cluster: ClusterConfig, common: RankEnvironment) -> dict[str, str]:
    """The environment of all ranks; srun tells each its rank."""
    inherited = {"GOMP_SPINCOUNT": "1000", **step_environment(environ)}
    return common.variables(inherited, settings=cluster.environment)
