"""The words of srun for the ranks of an attempt, and the environment they get. Pure; nothing is started here."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from launcher.config.cluster_schema import ClusterConfig, ContainerRuntime
from launcher.config.paths import RunPaths, cache_dir
from launcher.config.schema import Derived, RunConfig
from launcher.errors import RunError
from launcher.launch.environment import job_environment

EARLY_EXIT_WAIT_S = 60
"""How long others may go on after the first rank is done: rank 0 still hands the last lines to W&B."""

# srun reads these as its own options; they are given as words instead, or (cores of a GPU) contradict those words.
_SRUN_SETTINGS = (
    "SLURM_CPUS_PER_GPU",
    "SLURM_CPUS_PER_TASK",
    "SLURM_TRES_PER_TASK",
    "SLURM_NTASKS",
    "SLURM_NPROCS",
    "SLURM_NTASKS_PER_NODE",
    "SLURM_NTASKS_PER_GPU",
    "SLURM_NTASKS_PER_SOCKET",
    "SLURM_NTASKS_PER_CORE",
    "SLURM_DISTRIBUTION",
    "SLURM_EXPORT_ENV",
    "SLURM_UMASK",
    "SLURM_JWT",
)


def srun_argv(
    config: RunConfig,
    derived: Derived,
    *,
    run_dir: Path,
    attempt: int,
    cpus_per_task: int,
    is_crowded: bool = False,
    python: str = sys.executable,
) -> list[str]:
    """srun with one task per rank, dealt to the nodes in blocks, each with a log of its own.

    Args:
        run_dir: absolute, and the same on all nodes.
        cpus_per_task: cores of a rank; srun does not take them over from sbatch.
        is_crowded: a node has fewer cores than ranks, so they must share.
    Raises:
        RunError: a path that srun cannot take, or a container without an image.
    """
    log = RunPaths(run_dir).attempt(attempt) / "rank-%4t.log"
    return [
        "srun",
        f"--nodes={derived.world_size // derived.devices_per_node}",
        f"--ntasks={derived.world_size}",
        f"--ntasks-per-node={derived.devices_per_node}",
        f"--cpus-per-task={cpus_per_task}",
        *(["--overcommit"] if is_crowded else []),
        "--distribution=block",
        # The ranks meet by themselves; a site's default plug-in would only be one more thing to fail.
        "--mpi=none",
        # A rank that fails takes the others down at once, instead of leaving them to wait for it on held GPUs.
        "--kill-on-bad-exit=1",
        f"--wait={EARLY_EXIT_WAIT_S}",
        "--input=none",
        "--unbuffered",
        "--export=ALL",
        f"--output={_pattern(RunPaths(run_dir).attempt(attempt))}/{log.name}",
        "--open-mode=append",
        *_container_options(config.cluster, derived, run_dir),
        *config.cluster.srun_args,
        *worker_argv(config.cluster, derived, run_dir=run_dir, attempt=attempt, python=python),
    ]


def stage_argv(words: Sequence[str], *, cpus_per_task: int, python: str = sys.executable) -> list[str]:
    """srun with one task on this node for a command of the launcher, such as export or eval."""
    return [
        "srun",
        "--nodes=1",
        "--ntasks=1",
        f"--cpus-per-task={cpus_per_task}",
        "--mpi=none",
        "--input=none",
        "--unbuffered",
        "--export=ALL",
        python,
        "-m",
        "launcher",
        *words,
    ]


def worker_argv(
    cluster: ClusterConfig, derived: Derived, *, run_dir: Path, attempt: int, python: str = sys.executable
) -> list[str]:
    """The command of one rank, inside its container where there is one."""
    before: list[str] = []
    if cluster.container is not ContainerRuntime.none:
        # The image brings its own Python; the one outside is not there.
        python = "python"
    if cluster.container is ContainerRuntime.apptainer:
        before = ["apptainer", "exec"]
        if derived.device == "cuda":
            before.append("--nv")
        before += [word for mount in mounts(cluster, derived, run_dir) for word in ("--bind", mount)]
        before += ["--pwd", str(Path.cwd()), _image(cluster)]
    return [*before, python, "-m", "launcher.train", "--run", str(run_dir), "--attempt", str(attempt)]


def _container_options(cluster: ClusterConfig, derived: Derived, run_dir: Path) -> list[str]:
    if cluster.container is not ContainerRuntime.pyxis:
        return []
    return [
        f"--container-image={_image(cluster)}",
        f"--container-mounts={','.join(mounts(cluster, derived, run_dir))}",
        f"--container-workdir={Path.cwd()}",
    ]


def _image(cluster: ClusterConfig) -> str:
    if not cluster.container_image:
        raise RunError(
            f"cluster.container = {cluster.container.value!r} without cluster.container_image; give the image, or "
            "cluster.container=none"
        )
    return cluster.container_image


def mounts(cluster: ClusterConfig, derived: Derived, run_dir: Path) -> list[str]:
    """SOURCE:TARGET of everything the ranks need: run, data, model, cache, working folder, and what the site adds.

    Raises:
        RunError: a path with a colon or a comma, which container programs take for a separator.
    """
    needed = [run_dir, Path(derived.data_dir), Path(derived.model_dir), cache_dir(), Path.cwd()]
    found = dict.fromkeys(f"{path}:{path}" for path in needed)
    for path in needed:
        if {",", ":"} & set(str(path)):
            raise RunError(f"{path} cannot be shown to a container: its name holds a comma or a colon; rename it")
    return [*found, *(mount for mount in cluster.container_mounts if mount not in found)]


def _pattern(folder: Path) -> str:
    """A folder as srun wants it in a file name pattern."""
    if "\\" in str(folder):
        raise RunError(
            f"{folder}: a path with a backslash cannot hold the ranks' logs under Slurm; choose another runs_dir"
        )
    return str(folder).replace("%", "%%")


def cores_per_rank(*, asked: int | None, given: int | None, on_node: int, ranks: int) -> tuple[int, bool]:
    """Cores of each rank, and whether ranks must share cores because the node has too few.

    Args:
        asked: cluster.cpus_per_task. given: --cpus-per-task of the job. on_node: cores the job has on a node.
    """
    if on_node < ranks:
        return 1, True
    return max(1, min(asked or given or on_node // ranks, on_node // ranks)), False


def step_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What of the job's environment srun and the ranks get: the allow-list, and what Slurm says of the job."""
    slurm = {name: value for name, value in environ.items() if name.startswith("SLURM_") and name not in _SRUN_SETTINGS}
    return {**job_environment(environ), **slurm}


def ranks_environment(
    environ: Mapping[str, str],
    config: RunConfig,
    derived: Derived,
    *,
    master_address: str,
    master_port: int,
    cpus_per_task: int,
    end_time_s: float | None,
    interface: str = "",
    nodes: Sequence[str] = (),
) -> dict[str, str]:
    """The environment of all ranks; who is which they learn from srun.

    Args:
        end_time_s: when Slurm ends the job, in unix seconds; None without a limit.
        interface: network interface for the ranks, where they would not find it by themselves.
        nodes: of the job, in rank order, so that ranks can name the node of one that does not come.
    """
    threads = config.cluster.threads_per_process or cpus_per_task
    cpu_only = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"} if derived.device == "cpu" else {}
    network = {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface} if interface else {}
    kept = step_environment(environ)
    return {
        "GOMP_SPINCOUNT": "1000",
        **network,
        **kept,
        # Lines reach the log when they are written, not when the rank ends.
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": str(threads),
        **config.cluster.environment,
        **cpu_only,
        **({} if end_time_s is None else {"LAUNCHER_END_TIME_S": f"{end_time_s:.0f}"}),
        # The supervisor watches the ranks' heartbeats and ends them when one hangs.
        "LAUNCHER_WATCHED": "1",
        "LAUNCHER_NODES": ",".join(nodes),
        "LAUNCHER_RANKS_PER_NODE": str(derived.devices_per_node),
        "MASTER_ADDR": master_address,
        "MASTER_PORT": str(master_port),
    }
