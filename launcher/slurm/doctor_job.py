"""The inside of a doctor's job, on its first node: python -m launcher.slurm.doctor_job FOLDER TOKEN DEVICE RANKS

RANKS is their number on each node. Starts the probe once on every node, then a sum over all ranks where torch is
installed. What they say lies in FOLDER: probe-N.json by node, link-N.json by rank, job.json from here.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from launcher.errors import WorldError
from launcher.slurm.allocation import Allocation, read_allocation
from launcher.slurm.rendezvous import free_meeting_port, interface_to
from launcher.slurm.srun import step_environment

PROBE_LIMIT_S = 180.0
SUM_LIMIT_S = 150.0


def main(argv: list[str]) -> int:
    folder, token, device, per_node = Path(argv[0]), argv[1], argv[2], int(argv[3])
    allocation = read_allocation(os.environ)
    started = {"host": socket.gethostname(), "nodes": list(allocation.nodes), "job_id": allocation.job_id}
    _write(folder, {**started, "probe_exit": None, "sum_exit": None})
    words = [sys.executable, "-m", "launcher.slurm.doctor_probe", str(folder), token]
    probe_exit = _srun(allocation, 1, words, folder / "probe-%n.json", PROBE_LIMIT_S, {})
    _write(folder, {**started, "probe_exit": probe_exit, "sum_exit": None})
    sum_exit = None
    wants_sum = find_spec("torch") is not None and len(allocation.nodes) * per_node > 1
    if probe_exit == 0 and wants_sum and _all_reached(folder):
        sum_exit = _sum(allocation, device, per_node, folder)
    _write(folder, {**started, "probe_exit": probe_exit, "sum_exit": sum_exit, "ended": True})
    return 0


def _all_reached(folder: Path) -> bool:
    """Whether every node reached every other; else ranks would only wait for each other until their time is over."""
    reports = [json.loads(path.read_text("utf-8")) for path in folder.glob("probe-*.json")]
    return not any(link["error"] for report in reports for link in report["links"])


def _sum(allocation: Allocation, device: str, per_node: int, folder: Path) -> int:
    try:
        port = free_meeting_port(allocation.job_id, allocation.restart, 1)
    except WorldError as error:
        print(f"launcher: {error}", file=sys.stderr)
        return 1
    interface = interface_to(allocation.nodes)
    network = {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface} if interface else {}
    meeting = {"MASTER_ADDR": allocation.nodes[0], "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1", **network}
    words = [sys.executable, "-m", "launcher.train.link_check", device]
    return _srun(allocation, per_node, words, folder / "link-%t.json", SUM_LIMIT_S, meeting)


def _srun(
    allocation: Allocation, per_node: int, words: list[str], output: Path, limit_s: float, further: dict[str, str]
) -> int:
    """Exit code of srun; 124 when it had to be ended."""
    count = len(allocation.nodes)
    argv = [
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
        f"--output={output}",
        *words,
    ]
    environment = {**step_environment(os.environ), **further}
    try:
        return subprocess.run(argv, env=environment, timeout=limit_s, check=False).returncode
    except subprocess.TimeoutExpired:
        print(f"launcher: {' '.join(words[1:3])} did not end within {limit_s:g} s on all nodes", file=sys.stderr)
        return 124


def _write(folder: Path, document: dict[str, object]) -> None:
    draft = folder / ".job.json"
    draft.write_text(json.dumps(document) + "\n", encoding="utf-8")
    draft.replace(folder / "job.json")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
