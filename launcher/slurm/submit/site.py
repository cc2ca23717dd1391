"""What a run asks for that the cluster does not have, found before a job waits for it in vain. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable
from operator import attrgetter

from launcher.config.build import one_of, problem_at
from launcher.config.cluster_schema import ClusterConfig, GpuRequest
from launcher.config.schema import RunConfig
from launcher.config.topology import resolve_topology
from launcher.errors import Problem
from launcher.slurm.client.parse import NodeKind, Partition
from launcher.slurm.client.sbatch import CORES_PER_GPU, cores_per_task


def site_problems(
    config: RunConfig, partitions: list[Partition], *, stages: tuple[str, ...] = ("train",)
) -> list[Problem]:
    """Everything the cluster does not have, all at once. Accounts, limits of users and features are not checked.

    A job that may run in one of several partitions has a problem only if it fits in none; the best one is reported.
    """
    cluster = config.cluster
    problems = _unknown("cluster.partition", cluster.partition, partitions)
    # After a partition that does not exist, problems that the job would have in any other one are reported too.
    candidates = partitions if problems else _chosen(cluster.partition, partitions)
    if candidates:
        problems += _fewest([_misfits(config, partition) for partition in candidates])
    else:
        names = ", ".join(partition.name for partition in partitions) or "none at all"
        why = "this cluster has no default partition"
        problems.append(Problem("cluster.partition", None, why, f"Choose one of: {names}"))
    if cluster.cpu_partition is not None and ("prepare" in stages or "export" in stages):
        times = [
            _time("cluster.stage_walltime_min", cluster.stage_walltime_min, partition)
            for partition in _chosen(cluster.cpu_partition, partitions)
        ]
        problems += _unknown("cluster.cpu_partition", cluster.cpu_partition, partitions) or _fewest(times)
    return problems


def site_warnings(config: RunConfig, partitions: list[Partition]) -> list[str]:
    """What may keep the job waiting, but can change while it waits."""
    chosen = _chosen(config.cluster.partition, partitions)
    if not chosen:
        return []
    name = chosen[0].name
    if not any(partition.is_up for partition in chosen):
        return [f"partition {name} does not start jobs at present (sinfo -p {name} says more)"]
    working, wanted = max(partition.working_nodes for partition in chosen), config.cluster.nodes
    if working < wanted:
        text = f"only {working} nodes of partition {name} work at present, and the job asks for {wanted}"
        return [f"{text}: it waits until more come back"]
    return []


def _fewest(tried: list[list[Problem]]) -> list[Problem]:
    return min(tried, key=len)


def _names(text: str | None) -> list[str]:
    return [name for name in (text or "").split(",") if name]


def _unknown(key: str, text: str | None, partitions: list[Partition]) -> list[Problem]:
    known = [partition.name for partition in partitions]
    return [
        Problem(key, text, f"this cluster has no partition {name!r}", one_of(name, known))
        for name in _names(text)
        if name not in known
    ]


def _chosen(text: str | None, partitions: list[Partition]) -> list[Partition]:
    if text is None:
        return [partition for partition in partitions if partition.is_default]
    return [partition for partition in partitions if partition.name in _names(text)]


def _misfits(config: RunConfig, partition: Partition) -> list[Problem]:
    """What the training job asks for that one partition does not have."""
    cluster = config.cluster
    problems = _time("cluster.walltime_min", cluster.walltime_min, partition)
    kinds = partition.kinds
    if resolve_topology(config, []).device == "cuda":
        kinds, found = _with_gpus(cluster, kinds, partition.name)
        problems += found
    needs = _needs(config)
    for key, needed, of_node, unit in needs:
        most = max(map(of_node, kinds), default=0)
        if kinds and needed > most:
            why = f"no node of partition {partition.name} has more than {most:,} {unit}; each needs {needed:,}"
            is_default = key == "cluster.cpus_per_task" and cluster.cpus_per_task is None
            hint = f"The default is {CORES_PER_GPU} for each GPU: give fewer" if is_default else "Ask for less"
            problems.append(problem_at(config, key, why, hint))
    if problems:
        return problems + _too_many(cluster, partition, partition.nodes, "")
    fitting = sum(kind.count for kind in kinds if all(of_node(kind) >= needed for _, needed, of_node, _ in needs))
    return _too_many(cluster, partition, fitting, "" if fitting == partition.nodes else " that have all this")


def _time(key: str, minutes: int | None, partition: Partition) -> list[Problem]:
    limit_s = partition.time_limit_s
    if minutes is None or limit_s is None or 60 * minutes <= limit_s:
        return []
    why = f"partition {partition.name} runs jobs for at most {limit_s // 60:,} minutes"
    return [Problem(key, minutes, why, f"Give {limit_s // 60} or less; a run continues over several attempts")]


def _with_gpus(cluster: ClusterConfig, kinds: list[NodeKind], name: str) -> tuple[list[NodeKind], list[Problem]]:
    """The kinds of nodes with the GPUs that are needed; if there are none, all kinds and the problem."""
    if cluster.gpu_request is GpuRequest.none:
        return kinds, []
    count, kind = cluster.devices_per_node, cluster.gpu_type
    types = sorted({gpu for node in kinds for gpu in node.gpus})
    if not types:
        why = f"no node of partition {name} has a GPU that Slurm knows of"
        hint = "Use another cluster.partition, or cluster.gpu_request=none where nodes are given out whole"
        return kinds, [Problem("cluster.devices_per_node", count, why, hint)]
    if kind is not None and kind not in types:
        named = [gpu for gpu in types if gpu]
        hint = one_of(kind, named) if named else "Leave it out: this cluster does not name its GPUs"
        return kinds, [Problem("cluster.gpu_type", kind, f"no node of partition {name} has such GPUs", hint)]
    gpus = [sum(node.gpus.values()) if kind is None else node.gpus.get(kind, 0) for node in kinds]
    fitting = [node for node, has in zip(kinds, gpus, strict=True) if has >= (count or 1)]
    if fitting:
        return fitting, []
    why = f"no node of partition {name} has more than {max(gpus)} {f'{kind} GPUs' if kind is not None else 'GPUs'}"
    hint = f"Give {max(gpus)} or less, and more cluster.nodes"
    return kinds, [Problem("cluster.devices_per_node", count, why, hint)]


def _needs(config: RunConfig) -> list[tuple[str, int, Callable[[NodeKind], int], str]]:
    """Key, what each node must have, where a node says what it has, and the unit."""
    cluster = config.cluster
    cores = cores_per_task(config)
    # If no cores are requested for a task, it is the number of tasks that a node is too small for.
    key = "cluster.devices_per_node" if cores is None else "cluster.cpus_per_task"
    memory_mib = math.ceil(1024 * (cluster.memory_gib_per_node or 0))
    return [
        (key, (cores or 1) * (cluster.devices_per_node or 1), attrgetter("cpus"), "cores"),
        ("cluster.memory_gib_per_node", memory_mib, attrgetter("memory_mib"), "MiB of memory"),
    ]


def _too_many(cluster: ClusterConfig, partition: Partition, nodes: int, which: str) -> list[Problem]:
    if cluster.nodes > nodes:
        why = f"partition {partition.name} has {nodes} node{'' if nodes == 1 else 's'}{which}"
        return [Problem("cluster.nodes", cluster.nodes, why, f"Give {nodes} or less" if nodes else "Use another one")]
    if partition.max_nodes is not None and cluster.nodes > partition.max_nodes:
        why = f"a job may have {partition.max_nodes} nodes of partition {partition.name}"
        return [Problem("cluster.nodes", cluster.nodes, why, f"Give {partition.max_nodes} or less")]
    return []
