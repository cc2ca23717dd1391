"""Runs as Slurm jobs, for proofs: make one, submit it, wait for its end, compare its losses with an undisturbed run.

run = SlurmRun.make(cluster, tiny_model, "strategy=zero2", "optim.max_steps=12")
job = run.submit()
... faults ...
run.wait_done()
assert run.losses() == goldens.losses(cluster, tiny_model, "strategy=zero2", "optim.max_steps=12")
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from launcher.checkpoint.commit import committed
from launcher.paths import RunPaths
from launcher.runs.metrics import read_metrics
from tests.dist.rig import make_data, make_run
from tests.slurm.cluster import ENDED, ROOT, Cluster

_SCRIPT = ROOT / "slurm" / "train.sbatch"
_TAIL_LINES = 25
_NAMES = itertools.count(1)
Answer = TypeVar("Answer")


@dataclass
class SlurmRun:
    """A run directory and the job that works on it."""

    cluster: Cluster
    run_dir: Path
    nodes: int
    ranks_per_node: int
    job_id: str = ""
    jobs: list[str] = field(default_factory=list)

    @classmethod
    def make(
        cls,
        cluster: Cluster,
        model: Path,
        *overrides: str,
        nodes: int = 2,
        ranks_per_node: int = 1,
        data: Path | None = None,
    ) -> SlurmRun:
        """A frozen run of a tiny llama over `nodes` x `ranks_per_node` ranks, in fp32, without any attempt yet.

        Args:
            model: folder of the `tiny_model` fixture.
            overrides: settings; unless given, a step sees 4 sequences, and saving happens only at the end.
            data: folder of tests.dist.rig.make_data; left out: 24 examples of their own.
        """
        folder = cluster.shared / f"run-{next(_NAMES):03d}"
        data = data or make_data(folder / "data")
        place = ["cluster.kind=slurm", f"cluster.nodes={nodes}"]
        run_dir = make_run(folder / "run", model, data, *place, *overrides, world_size=ranks_per_node)
        RunPaths(run_dir).attempt(1).rmdir()  # attempts are the job's to make
        return cls(cluster, run_dir, nodes, ranks_per_node)

    def submit(self, *options: str, user: str | None = None, env: dict[str, str] | None = None) -> str:
        """sbatch slurm/train.sbatch --run RUN, with more sbatch options such as "--partition=low"; gives the job id."""
        shape = [f"--nodes={self.nodes}", f"--ntasks-per-node={self.ranks_per_node}"]
        words = ["--output", f"{self.run_dir.parent}/slurm-%j.out", *shape, *options, _SCRIPT, "--run", self.run_dir]
        self.job_id = self.cluster.sbatch(*words, user=user, env=env)
        self.jobs.append(self.job_id)
        return self.job_id

    def wait_done(self, timeout_s: float = 300) -> dict[str, str]:
        """Waits for the job's end, requeues included; AssertionError with all that was said unless it completed."""
        record = self.wait_end(timeout_s)
        assert record.get("JobState") == "COMPLETED", self.story(f"the job ended as {record.get('JobState')}")
        return record

    def wait_end(self, timeout_s: float = 300) -> dict[str, str]:
        """Waits until the job has ended for good, in whatever way; Slurm's record of it."""
        return self.wait_for(self.ended, f"the end of job {self.job_id}", timeout_s)

    def wait_step(self, step: int, timeout_s: float = 180) -> int:
        """Waits until an optimizer step is in metrics.jsonl; gives the newest one."""
        return self.wait_for(lambda: self._step_at_least(step), f"step {step}", timeout_s)

    def wait_checkpoint(self, step: int = 1, timeout_s: float = 180) -> int:
        """Waits for a committed checkpoint of that step or a later one; gives its step."""
        return self.wait_for(lambda: self._checkpoint_at_least(step), f"a checkpoint of step {step}", timeout_s)

    def wait_attempt(self, attempt: int, timeout_s: float = 120) -> int:
        """Waits until the folder of an attempt is there."""
        return self.wait_for(
            lambda: attempt if RunPaths(self.run_dir).attempt(attempt).is_dir() else None,
            f"attempt {attempt}",
            timeout_s,
        )

    def wait_for(self, ask: Callable[[], Answer | None], what: str, timeout_s: float) -> Answer:
        """Asks until there is an answer; AssertionError with all logs when none comes, or the job ends first."""
        end = time.monotonic() + timeout_s
        while True:
            over = self.ended()  # before the question: what came just before the end counts
            if (answer := ask()) is not None:
                return answer
            if over is not None:
                raise AssertionError(self.story(f"the job ended as {over['JobState']} before {what}"))
            if time.monotonic() > end:
                raise AssertionError(self.story(f"waited {timeout_s:.0f} s in vain for {what}"))
            time.sleep(0.2)

    def ended(self) -> dict[str, str] | None:
        """Slurm's record of the job once it has ended for good."""
        record = self.cluster.job(self.job_id) if self.job_id else {}
        return record if record.get("JobState") in ENDED else None

    def _step_at_least(self, step: int) -> int | None:
        newest = max(self.losses(), default=0)
        return newest if newest >= step else None

    def _checkpoint_at_least(self, step: int) -> int | None:
        newest = max((found.step for found in committed(RunPaths(self.run_dir))), default=0)
        return newest if newest >= step else None

    def losses(self) -> dict[int, str]:
        """Step -> training loss as exact hex; empty before the first step."""
        path = RunPaths(self.run_dir).metrics
        return {record.step: record.loss.hex() for record in read_metrics(path).steps} if path.exists() else {}

    def evaluations(self) -> dict[int, str]:
        """Step -> held-out loss as exact hex."""
        path = RunPaths(self.run_dir).metrics
        return {record.step: record.loss.hex() for record in read_metrics(path).evals} if path.exists() else {}

    def verdicts(self) -> list[dict[str, Any]]:
        """verdict.json of every attempt that has one, in order."""
        return [json.loads(path.read_text()) for path in sorted(RunPaths(self.run_dir).attempts.glob("*/verdict.json"))]

    def num_attempts(self) -> int:
        return len(list(RunPaths(self.run_dir).attempts.iterdir()))

    def story(self, what: str) -> str:
        """What is wrong, then the ends of all logs and verdicts: for the message of a failed test."""
        parts = [f"{what}\n{self.run_dir}", f"scontrol: {self.cluster.job(self.job_id) if self.job_id else 'no job'}"]
        files = [*sorted(self.run_dir.parent.glob("slurm-*.out")), RunPaths(self.run_dir).status]
        for attempt in sorted(RunPaths(self.run_dir).attempts.iterdir()):
            files += [file for file in sorted(attempt.iterdir()) if file.suffix in (".log", ".json", ".txt")]
        files += sorted((self.cluster.folder / "log").glob("slurm*.log"))
        parts += [f"--- {file}\n{_tail(file)}" for file in files if file.is_file() and file.stat().st_size]
        return "\n".join(parts)


@dataclass
class Goldens:
    """Runs that nobody disturbed, each made once a session."""

    made: dict[tuple[object, ...], dict[int, str]] = field(default_factory=dict)

    def losses(
        self, cluster: Cluster, model: Path, *overrides: str, nodes: int = 2, ranks_per_node: int = 1
    ) -> dict[int, str]:
        """Losses by step, as hex, of the same run in the same layout; takes a whole run the first time."""
        key = (model, overrides, nodes, ranks_per_node)
        if key not in self.made:
            run = SlurmRun.make(cluster, model, *overrides, nodes=nodes, ranks_per_node=ranks_per_node)
            run.submit()
            run.wait_done(timeout_s=1800)
            assert run.num_attempts() == 1, run.story("the golden run was disturbed")
            self.made[key] = run.losses()
        return self.made[key]


def _tail(path: Path) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-_TAIL_LINES:])
