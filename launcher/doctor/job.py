"""The inside of a doctor's job, on its first node: python -m launcher.doctor.job FOLDER TOKEN DEVICE RANKS

RANKS is their number on each node. Starts the probe once on every node, then a sum over all ranks where torch is
installed; both in the site's container where it has one, as the ranks of a run. FOLDER holds what the site wants of
them (site.json), and what they say: probe-N.json by node, link-N.json by rank, job.json from here.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from launcher.config.build import build
from launcher.config.cluster_schema import ClusterConfig, ContainerRuntime
from launcher.errors import ConfigErrors, Problem, WorldError
from launcher.files import as_json, write_json
from launcher.paths import cache_dir
from launcher.runs.rank_environment import RankEnvironment
from launcher.slurm.client.container import contained, site_options
from launcher.slurm.job.allocation import Allocation, read_allocation
from launcher.slurm.job.rendezvous import free_meeting_port, rank_interface
from launcher.slurm.job.srun import step_environment

PROBE_LIMIT_S = 180.0
SUM_LIMIT_S = 150.0
IMAGE_LIMIT_S = 240.0
"""Added where nodes may have to fetch and unpack an image first."""
SITE = "site.json"
_SITE_KEYS = ("container", "container_image", "container_mounts", "srun_args", "environment")


def write_site(folder: Path, cluster: ClusterConfig) -> None:
    """What of the site's settings decides how a task starts, for `main` to read in the job."""
    settings = as_json(cluster)
    text = json.dumps({key: settings[key] for key in _SITE_KEYS})
    (folder / SITE).write_text(text + "\n", encoding="utf-8")


def read_site(folder: Path) -> ClusterConfig:
    """What `write_site` wrote."""
    problems: list[Problem] = []
    cluster = build(ClusterConfig, json.loads((folder / SITE).read_text("utf-8")), problems, complete=False)
    if problems:
        raise ConfigErrors(problems)
    return cluster


def main(argv: list[str]) -> int:
    folder, token, device, per_node = Path(argv[0]), argv[1], argv[2], int(argv[3])
    allocation, cluster = read_allocation(os.environ), read_site(folder)
    started = {"host": socket.gethostname(), "nodes": list(allocation.nodes), "job_id": allocation.job_id}
    _write(folder, {**started, "probe_exit": None, "sum_exit": None})
    limit_s = PROBE_LIMIT_S + (IMAGE_LIMIT_S if cluster.container is not ContainerRuntime.none else 0.0)
    words = ["launcher.doctor.probe", str(folder), token]
    argv = step_argv(cluster, allocation, 1, words, folder=folder, output="probe-%n.json", gpus=device == "cuda")
    probe_exit = _run(argv, limit_s, {**step_environment(os.environ), **cluster.environment})
    _write(folder, {**started, "probe_exit": probe_exit, "sum_exit": None})
    sum_exit = None
    reports = _reports(folder)
    # As the nodes say: torch may be in the container only.
    wants_sum = all(report["versions"]["torch"] for report in reports) and len(allocation.nodes) * per_node > 1
    if probe_exit == 0 and reports and wants_sum and _all_reached(reports):
        sum_exit = _sum(cluster, allocation, device, per_node, folder)
    _write(folder, {**started, "probe_exit": probe_exit, "sum_exit": sum_exit, "ended": True})
    return 0


def _reports(folder: Path) -> list[dict[str, Any]]:
    """What the nodes said, in the last line: a container may speak before."""
    texts = [path.read_text("utf-8", errors="replace").strip() for path in sorted(folder.glob("probe-*.json"))]
    return [report for text in texts if text and (report := _report(text.splitlines()[-1])) is not None]


def _report(line: str) -> dict[str, Any] | None:
    """None for a line of something else, such as a container that speaks last."""
    try:
        report = json.loads(line)
    except ValueError:
        return None
    return report if isinstance(report, dict) and {"versions", "links"} <= report.keys() else None


def _all_reached(reports: list[dict[str, Any]]) -> bool:
    """Whether every node reached every other; else ranks would only wait for each other until their time is over."""
    return not any(link["error"] for report in reports for link in report["links"])


def _sum(cluster: ClusterConfig, allocation: Allocation, device: str, per_node: int, folder: Path) -> int:
    try:
        port = free_meeting_port(allocation.job_id, allocation.restart, 1)
    except WorldError as error:
        print(f"launcher: {error}", file=sys.stderr)
        return 1
    interface = rank_interface(allocation.nodes)
    told = RankEnvironment(
        master_address=allocation.nodes[0],
        master_port=port,
        threads=1,
        device=device,
        ranks_per_node=per_node,
        nodes=allocation.nodes,
        interface=interface,
    )
    words = ["launcher.train.allreduce_check", device]
    argv = step_argv(cluster, allocation, per_node, words, folder=folder, output="link-%t.json", gpus=device == "cuda")
    environment = told.variables(step_environment(os.environ), settings=cluster.environment)
    return _run(argv, SUM_LIMIT_S, environment)


def step_argv(
    cluster: ClusterConfig,
    allocation: Allocation,
    per_node: int,
    words: list[str],
    *,
    folder: Path,
    output: str,
    gpus: bool,
) -> list[str]:
    """srun with so many tasks on every node, each `python -m WORDS` where ranks would run."""
    count = len(allocation.nodes)
    # A container program stops at a folder that is not there, and nothing has made a cache yet.
    shown = [folder, Path.cwd(), *(path for path in [cache_dir().absolute()] if path.is_dir())]
    task = contained(cluster, words, shown=shown, gpus=gpus)
    return [
        "srun",
        f"--nodes={count}",
        f"--ntasks={count * per_node}",
        f"--ntasks-per-node={per_node}",
        "--overcommit",
        "--distribution=block",
        "--mpi=none",
        "--input=none",
        "--kill-on-bad-exit=0",
        "--export=ALL",
        f"--output={folder / output}",
        *task.options,
        *site_options(cluster),
        *task.command,
    ]


def _run(argv: list[str], limit_s: float, environment: dict[str, str]) -> int:
    """Exit code of srun; 124 when it had to be ended."""
    try:
        return subprocess.run(argv, env=environment, timeout=limit_s, check=False).returncode
    except subprocess.TimeoutExpired:
        what = argv[argv.index("-m") + 1]
        print(f"launcher: {what} did not end within {limit_s:g} s on all nodes", file=sys.stderr)
        return 124


def _write(folder: Path, document: dict[str, object]) -> None:
    write_json(folder / "job.json", document, indent=None, durable=False)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
