"""A real Slurm for tests, through scripts/slurm-cluster, the command users have."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "slurm-cluster"
ENDED = (
    "COMPLETED",
    "FAILED",
    "CANCELLED",
    "TIMEOUT",
    "NODE_FAIL",
    "PREEMPTED",
    "OUT_OF_MEMORY",
    "BOOT_FAIL",
    "DEADLINE",
)
_PREFIX = "launcher-test-cluster-"
_PATIENCE_S = 60
_STEP_DAEMON_S = 60


@dataclass(frozen=True)
class Cluster:
    """A running cluster; `shared` is a folder that all nodes and users see and may write to."""

    folder: Path
    shared: Path
    num_nodes: int

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        node: str | None = None,
        user: str | None = None,
        check: bool = True,
        timeout_s: float = 120,
        env: dict[str, str] | None = None,
        cwd: Path | None = None,
        input: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """A command on the login node (or on `node`), in `shared` unless told otherwise.

        AssertionError with its words when it fails and `check` is set.
        """
        place = ["--node", node] if node else []
        identity = ["--user", user] if user else []
        result = subprocess.run(
            [sys.executable, SCRIPT, "run", *place, *identity, "--", *argv],
            env=self.environment() | (env or {}),
            cwd=cwd or self.shared,
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
        if check and result.returncode != 0:
            raise AssertionError(f"{argv} exited with {result.returncode}\n{result.stdout}\n{result.stderr}")
        return result

    def environment(self) -> dict[str, str]:
        """What a user's shell on the login node would have: this environment, and launcher on PATH."""
        path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"
        return {**os.environ, "PATH": path, "SLURM_CLUSTER_DIR": str(self.folder)}

    def node(self, verb: str, name: str) -> None:
        """up, down, cut, join, kill-slurmd: scripts/slurm-cluster node."""
        self._command("node", verb, name)

    def controller(self, verb: str) -> None:
        """stop, kill, freeze, start: scripts/slurm-cluster controller."""
        self._command("controller", verb)

    def status(self) -> dict[str, Any]:
        """What scripts/slurm-cluster status --json says."""
        status: dict[str, Any] = json.loads(self._command("status", "--json"))
        return status

    def sbatch(self, *argv: str | Path, user: str | None = None, env: dict[str, str] | None = None) -> str:
        """Submits and returns the job id."""
        result = self.run(["sbatch", "--parsable", *argv], user=user, env=env)
        return result.stdout.strip().partition(";")[0]

    def job(self, job_id: str) -> dict[str, str]:
        """What the controller knows of a job (an array's first record); empty when it knows nothing or is silent."""
        result = self.run(["scontrol", "--oneliner", "show", "job", job_id], check=False)
        first = result.stdout.partition("\n")[0]
        pairs = (word.partition("=") for word in first.split())
        return {key: value for key, equals, value in reversed(list(pairs)) if equals}

    def wait_job(
        self, job_id: str, states: str | Iterable[str] = ENDED, timeout_s: float = _PATIENCE_S
    ) -> dict[str, str]:
        """Waits until a job is in one of the states and returns its record.

        Fails at once when it has ended in another state, and after `timeout_s` with what the controller says.
        """
        wanted = {states} if isinstance(states, str) else set(states)
        end = time.monotonic() + timeout_s
        while True:
            record = self.job(job_id)
            state = record.get("JobState", "")
            if state in wanted:
                return record
            if time.monotonic() > end or state in ENDED:
                raise AssertionError(f"job {job_id} is {state or 'unknown'}, not {sorted(wanted)}: {record}")
            time.sleep(0.1)

    def cancel_all(self) -> None:
        """Ends every job at once, without the time to save that scancel alone would give."""
        end = time.monotonic() + _PATIENCE_S
        while jobs := self.run(["squeue", "--noheader", "--format=%A"]).stdout.split():
            assert time.monotonic() < end, f"jobs do not end: {self.run(['squeue']).stdout}"
            self.run(["scancel", "--quiet", "--full", "--signal=KILL", *jobs], check=False)
            self.run(["scancel", "--quiet", *jobs], check=False)
            time.sleep(0.1)

    def restore(self) -> list[str]:
        """After a test: no job, all nodes idle. Returns the processes that outlived their jobs, and ends those."""
        status = self.status()
        if status["controller"]["slurmctld"] != "running":
            self.controller("start")
        for node in status["nodes"]:
            if node["power"] != "on" or node["cable"] != "in" or node["slurmd"] != "running":
                self.node("up", node["name"])
        self.cancel_all()
        left, status = self._guests_that_stay()
        for guest in left:
            os.kill(guest["pid"], signal.SIGKILL)
        for node in status["nodes"]:
            if node["slurm_state"] != "idle":
                self.node("up", node["name"])
        return [f"{guest['pid']} {guest['state']} {' '.join(guest['argv'])}" for guest in left]

    def _guests_that_stay(self, timeout_s: float = 20) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Processes of jobs still there after a while, and the status in which they were seen.

        Slurm's own step daemons get longer: every 15 s they try to tell the controller of an end that they could not
        tell while their node was cut off.
        """
        began = time.monotonic()
        while True:
            status = self.status()
            places = [status["controller"], *status["nodes"]]
            guests = [guest for place in places for guest in place["processes"]]
            are_daemons = all(guest["command"] == "slurmstepd" for guest in guests)
            if not guests or time.monotonic() - began > (timeout_s + _STEP_DAEMON_S if are_daemons else timeout_s):
                return guests, status
            time.sleep(0.1)

    def down(self) -> None:
        """Ends the cluster and removes its folders."""
        self._command("down")
        shutil.rmtree(self.folder.parent, ignore_errors=True)

    def _command(self, *argv: str) -> str:
        result = subprocess.run(
            [sys.executable, SCRIPT, *argv], env=self.environment(), capture_output=True, text=True, timeout=300
        )
        assert result.returncode == 0, f"slurm-cluster {' '.join(argv)}: {result.stderr}"
        return result.stdout


def start_cluster(num_nodes: int, *options: str) -> Cluster:
    """Starts a cluster in a folder that every user may enter, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir="/tmp"))
    folder.chmod(0o755)
    shared = folder / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    cluster = Cluster(folder / "slurm", shared, num_nodes)
    cluster._command("up", str(num_nodes), *options)
    return cluster


def remove_forgotten() -> None:
    """Ends the clusters of test sessions that were killed."""
    for folder in Path("/tmp").glob(f"{_PREFIX}*-*"):
        pid = folder.name.removeprefix(_PREFIX).partition("-")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            Cluster(folder / "slurm", folder / "shared", 0).down()


def why_no_cluster() -> str:
    """Why no cluster can run here; empty when one can."""
    result = subprocess.run([sys.executable, SCRIPT, "check"], capture_output=True, text=True, timeout=60)
    return "" if result.returncode == 0 else result.stderr.strip().removeprefix("slurm-cluster: ")
