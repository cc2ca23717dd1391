"""The inside of a doctor's job, on its first node: python -m launcher.doctor.job FOLDER TOKEN DEVICE RANKS

RANKS is the number on each node. Starts the probe once on every node, then a sum over all ranks if torch is installed,
both in the site's container if it has one, like the ranks of a run. FOLDER holds the site's settings (site.json) and
the reports: probe-N.json by node, link-N.json by rank, job.json from here.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from launcher.config.cluster_schema import ClusterConfig, ContainerRuntime
from launcher.doctor.reports import JobReport, NodeReport, read_reports
from launcher.errors import WorldError
from launcher.files import read_record, write_json
from launcher.paths import cache_dir
from launcher.runs.rank_environment import RankEnvironment
from launcher.slurm.client.container import contained, site_options
from launcher.slurm.job.allocation import Allocation, read_allocation
from launcher.slurm.job.rendezvous import free_meeting_port, rank_interface
from launcher.slurm.job.srun import step_argv, step_environment

PROBE_LIMIT_S = 180.0
SUM_LIMIT_S = 150.0
IMAGE_LIMIT_S = 240.0
"""Added if nodes may have to fetch and unpack an image first."""
SITE = "site.json"


def main(argv: list[str]) -> int:
    folder, token, device, per_node = Path(argv[0]), argv[1], argv[2], int(argv[3])
    allocation, cluster = read_allocation(os.environ), read_record(ClusterConfig, folder / SITE)
    report = JobReport(nodes=list(allocation.nodes))
    _write(folder, report)
    limit_s = PROBE_LIMIT_S + (IMAGE_LIMIT_S if cluster.container is not ContainerRuntime.none else 0.0)
    module = ["launcher.doctor.probe", str(folder), token]
    probe = task_argv(cluster, len(allocation.nodes), 1, module, folder=folder, output="probe-%n.json", device=device)
    report = replace(report, probe_exit=_run(probe, limit_s, {**step_environment(os.environ), **cluster.environment}))
    _write(folder, report)
    nodes = read_reports(NodeReport, folder, "probe-*.json")
    # The nodes know: torch may be in the container only.
    can_sum = bool(nodes) and all(node.versions.get("torch") for node in nodes) and len(allocation.nodes) * per_node > 1
    # If a node cannot reach another one, ranks would only wait for each other until the time limit.
    is_connected = not any(link.error for node in nodes for link in node.links)
    if report.probe_exit == 0 and can_sum and is_connected:
        report = replace(report, sum_exit=_sum(cluster, allocation, device, per_node, folder))
    _write(folder, replace(report, ended=True))
    return 0


def _sum(cluster: ClusterConfig, allocation: Allocation, device: str, per_node: int, folder: Path) -> int:
    try:
        port = free_meeting_port(allocation.job_id, allocation.restart, 1)
    except WorldError as error:
        print(f"launcher: {error}", file=sys.stderr)
        return 1
    common = RankEnvironment(
        master_address=allocation.nodes[0],
        master_port=port,
        threads=1,
        device=device,
        ranks_per_node=per_node,
        nodes=allocation.nodes,
        interface=rank_interface(allocation.nodes),
    )
    module = ["launcher.train.allreduce_check", device]
    nodes = len(allocation.nodes)
    argv = task_argv(cluster, nodes, per_node, module, folder=folder, output="link-%t.json", device=device)
    return _run(argv, SUM_LIMIT_S, common.variables(step_environment(os.environ), settings=cluster.environment))


def task_argv(
    cluster: ClusterConfig, nodes: int, per_node: int, module: list[str], *, folder: Path, output: str, device: str
) -> list[str]:
    """srun for `python -m MODULE ...`, `per_node` times on every node, where ranks would run."""
    # A container program fails on a folder that does not exist, and there may be no cache yet.
    shown = [folder, Path.cwd(), *(path for path in [cache_dir().absolute()] if path.is_dir())]
    task = contained(cluster, module, shown=shown, gpus=device == "cuda")
    options = ["--overcommit", "--distribution=block", "--kill-on-bad-exit=0", f"--output={folder / output}"]
    return step_argv(task, site_options(cluster), options, nodes=nodes, tasks_per_node=per_node)


def _run(argv: list[str], limit_s: float, environment: Mapping[str, str]) -> int:
    """Exit code of srun; 124 after the time limit."""
    try:
        return subprocess.run(argv, env=environment, timeout=limit_s, check=False).returncode
    except subprocess.TimeoutExpired:
        module = argv[argv.index("-m") + 1]
        print(f"launcher: {module} did not end within {limit_s:g} s on all nodes", file=sys.stderr)
        return 124


def _write(folder: Path, report: JobReport) -> None:
    write_json(folder / "job.json", report, indent=None, durable=False)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
