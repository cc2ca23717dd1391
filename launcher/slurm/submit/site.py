"""What a cluster says it cannot do, found before a job waits for it in vain. Pure; asking is query.py's."""

from __future__ import annotations

from launcher.config.build import one_of
from launcher.config.cluster_schema import ClusterConfig, GpuRequest
from launcher.config.schema import RunConfig
from launcher.config.topology import resolve_topology
from launcher.errors import Problem
from launcher.slurm.client.parse import NodeKind, Partition
from launcher.slurm.client.sbatch import CORES_PER_GPU, cores_per_task

_CPU_STAGES = ("prepare", "export")


def site_problems(
    config: RunConfig, partitions: list[Partition], *, stages: tuple[str, ...] = ("train",)
) -> list[Problem]:
    """Everything the cluster cannot give, all at once. Accounts, limits of users and features are not looked at.

    A job that may run in one of several partitions has a problem only if it fits in none; the best one is reported.
    """
    cluster = config.cluster
    problems = [*_unknown("cluster.partition", cluster.partition, partitions)]
    # A partition that does not exist hides nothing else: what no other one could give is told as well.
    looked_at = partitions if problems else _chosen(cluster.partition, partitions)
    tried = [_misfits(config, partition) for partition in looked_at]
    problems += _fewest(tried) if tried else [_no_default(partitions)]
    if cluster.cpu_partition is not None and any(stage in _CPU_STAGES for stage in stages):
        unknown = _unknown("cluster.cpu_partition", cluster.cpu_partition, partitions)
        chosen = _chosen(cluster.cpu_partition, partitions)
        times = [_time("cluster.stage_walltime_min", cluster.stage_walltime_min, one) for one in chosen]
        problems += unknown or _fewest(times)
    return problems


def site_warnings(config: RunConfig, partitions: list[Partition]) -> list[str]:
    """What may keep the job waiting, but can change while it waits."""
    chosen = _chosen(config.cluster.partition, partitions)
    if chosen and not any(partition.is_up for partition in chosen):
        return [f"partition {chosen[0].name} does not start jobs at present (sinfo -p {chosen[0].name} says more)"]
    working = [sum(kind.count for kind in one.kinds if not _is_out(kind)) for one in chosen]
    if working and max(working) < config.cluster.nodes:
        return [
            f"only {max(working)} nodes of partition {chosen[0].name} work at present, and the job asks for "
            f"{config.cluster.nodes}: it waits until more come back"
        ]
    return []


def _is_out(kind: NodeKind) -> bool:
    return kind.state.startswith(("down", "drain", "fail", "maint", "unk", "power", "inval"))


def _fewest(tried: list[list[Problem]]) -> list[Problem]:
    return sorted(tried, key=len)[0]


def _names(text: str | None) -> list[str]:
    return [name for name in (text or "").split(",") if name]


def _unknown(key: str, text: str | None, partitions: list[Partition]) -> list[Problem]:
    known = [partition.name for partition in partitions]
    return [
        Problem(key, text, f"this cluster has no partition {name!r}", one_of(name, known))
        for name in _names(text)
        if name not in known
    ]


def _no_default(partitions: list[Partition]) -> Problem:
    names = ", ".join(partition.name for partition in partitions) or "none at all"
    return Problem("cluster.partition", None, "this cluster has no default partition", f"Choose one of: {names}")


def _chosen(text: str | None, partitions: list[Partition]) -> list[Partition]:
    if text is None:
        return [partition for partition in partitions if partition.is_default]
    return [partition for partition in partitions if partition.name in _names(text)]


def _misfits(config: RunConfig, partition: Partition) -> list[Problem]:
    """What one partition cannot give to the training job."""
    cluster = config.cluster
    problems = _time("cluster.walltime_min", cluster.walltime_min, partition)
    kinds = partition.kinds
    if resolve_topology(config, []).device == "cuda":
        kinds, found = _with_gpus(cluster, kinds, partition.name)
        problems += found
    for key, value, need, has, unit in _sizes(config, kinds):
        most = max(has, default=0)
        if kinds and need > most:
            why = (
                f"no node of partition {partition.name} has more than {most:,} {unit}, and {need:,} are needed on each"
            )
            is_default = key == "cluster.cpus_per_task" and value is None
            hint = f"Left out it is {CORES_PER_GPU} for each GPU: give fewer" if is_default else "Ask for less"
            problems.append(Problem(key, value, why, hint))
    if problems:
        return problems + _too_many(cluster, partition, partition.nodes, "")
    fitting = sum(kind.count for kind in kinds if _is_big_enough(config, kind))
    return _too_many(cluster, partition, fitting, "" if fitting == partition.nodes else " that have all this")


def _time(key: str, minutes: int | None, partition: Partition) -> list[Problem]:
    limit_s = partition.time_limit_s
    if minutes is None or limit_s is None or 60 * minutes <= limit_s:
        return []
    why = f"partition {partition.name} runs jobs for {limit_s // 60:,} minutes at most"
    return [Problem(key, minutes, why, f"Give {limit_s // 60} or less; a run goes on over several attempts")]


def _with_gpus(cluster: ClusterConfig, kinds: list[NodeKind], name: str) -> tuple[list[NodeKind], list[Problem]]:
    """The kinds of nodes with the GPUs that are needed; all kinds and the problem where there is none."""
    if cluster.gpu_request is GpuRequest.none:
        return kinds, []
    needed = cluster.devices_per_node or 1
    types = sorted({kind for node in kinds for kind in node.gpus})
    if not types:
        why = f"no node of partition {name} has a GPU that Slurm knows of"
        hint = "Use another cluster.partition, or cluster.gpu_request=none where nodes are given out whole"
        return kinds, [Problem("cluster.devices_per_node", cluster.devices_per_node, why, hint)]
    if cluster.gpu_type is not None and cluster.gpu_type not in types:
        named = [kind for kind in types if kind]
        hint = one_of(cluster.gpu_type, named) if named else "Leave it out: this cluster does not name its GPUs"
        return kinds, [
            Problem("cluster.gpu_type", cluster.gpu_type, f"no node of partition {name} has such GPUs", hint)
        ]
    fitting = [kind for kind in kinds if _gpus_of(cluster, kind) >= needed]
    if not fitting:
        most = max(_gpus_of(cluster, kind) for kind in kinds)
        what = f"{cluster.gpu_type} GPUs" if cluster.gpu_type is not None else "GPUs"
        why = f"no node of partition {name} has more than {most} {what}"
        hint = f"Give {most} or less, and more cluster.nodes"
        return kinds, [Problem("cluster.devices_per_node", cluster.devices_per_node, why, hint)]
    return fitting, []


def _gpus_of(cluster: ClusterConfig, kind: NodeKind) -> int:
    return kind.gpu_count if cluster.gpu_type is None else kind.gpus.get(cluster.gpu_type, 0)


def _sizes(config: RunConfig, kinds: list[NodeKind]) -> list[tuple[str, object, int, list[int], str]]:
    """Key, value, what each node must have, what the kinds have, and the unit."""
    cluster = config.cluster
    memory_mib = round(1024 * (cluster.memory_gib_per_node or 0))
    # Where a task gets no cores by name, it is the number of tasks that a node is too small for.
    key, value = (
        ("cluster.cpus_per_task", cluster.cpus_per_task)
        if cores_per_task(config) is not None
        else ("cluster.devices_per_node", cluster.devices_per_node)
    )
    return [
        (key, value, _cores(config), [kind.cpus for kind in kinds], "cores"),
        (
            "cluster.memory_gib_per_node",
            cluster.memory_gib_per_node,
            memory_mib,
            [kind.memory_mib for kind in kinds],
            "MiB of memory",
        ),
    ]


def _cores(config: RunConfig) -> int:
    """Of each node, as the sbatch command asks for them."""
    return (cores_per_task(config) or 1) * (config.cluster.devices_per_node or 1)


def _is_big_enough(config: RunConfig, kind: NodeKind) -> bool:
    return kind.cpus >= _cores(config) and kind.memory_mib >= 1024 * (config.cluster.memory_gib_per_node or 0)


def _too_many(cluster: ClusterConfig, partition: Partition, nodes: int, which: str) -> list[Problem]:
    if cluster.nodes > nodes:
        why = f"partition {partition.name} has {nodes} node{'' if nodes == 1 else 's'}{which}"
        return [Problem("cluster.nodes", cluster.nodes, why, f"Give {nodes} or less" if nodes else "Use another one")]
    if partition.max_nodes is not None and cluster.nodes > partition.max_nodes:
        why = f"a job may have {partition.max_nodes} nodes of partition {partition.name}"
        return [Problem("cluster.nodes", cluster.nodes, why, f"Give {partition.max_nodes} or less")]
    return []
