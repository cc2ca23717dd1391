"""One start of a training job, from the run directory to the exit code: attempt, ranks, verdict, requeue."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from launcher.config.frozen import load_prepared
from launcher.config.schema import Derived, RunConfig
from launcher.diagnose.end_attempt import end_attempt, stop_run
from launcher.diagnose.evidence import JobEnd, StarterReport
from launcher.diagnose.restart_policy import decide
from launcher.diagnose.verdict import Action, Verdict, write_verdict
from launcher.errors import ExitCode, SlurmError
from launcher.paths import RunPaths
from launcher.runs.attempts import AttemptRecord
from launcher.runs.events import last_state
from launcher.runs.hang_detector import Stall
from launcher.runs.rank_environment import RankEnvironment, write_names
from launcher.runs.run_dir import last_attempt, new_attempt
from launcher.runs.status import set_state
from launcher.runs.stop_requests import StopRequests, noting_stops
from launcher.slurm.client.parse import JobInfo
from launcher.slurm.client.query import Slurm
from launcher.slurm.job import attempt_records
from launcher.slurm.job.allocation import Allocation
from launcher.slurm.job.rendezvous import free_meeting_port, rank_interface
from launcher.slurm.job.resolve_run import check_world
from launcher.slurm.job.retry_io import patiently
from launcher.slurm.job.srun import cores_per_rank, ranks_environment, srun_argv
from launcher.slurm.job.srun_step import run_step
from launcher.slurm.submit.scheduler import SlurmScheduler

logger = logging.getLogger(__name__)

_ASK_S = 15.0
"""How long to wait for an answer that only improves the record."""


def supervise(run_dir: Path, allocation: Allocation) -> int:
    """Makes one attempt of the run in this job, and requeues the job if the run is to continue.

    Args:
        run_dir: absolute, and the same on all nodes.
    Returns: the exit code of the job.
    Raises:
        LauncherError: this job cannot start the run; nothing was changed then.
    """
    paths = RunPaths(run_dir)
    if last_state(paths.events) == "succeeded":
        logger.info("%s has finished; there is nothing left to do", run_dir)
        return ExitCode.DONE
    if paths.cancel.exists():
        logger.warning("%s was cancelled; to continue it: launcher resume %s", run_dir, run_dir.name)
        set_state(paths, last_attempt(run_dir), "cancelled", "stopped by the user")
        return ExitCode.INTERRUPTED
    config, derived = load_prepared(paths.config)
    check_world(derived, allocation)
    slurm = Slurm(retry_s=_ASK_S)
    attempt_records.refuse_beside_other_job(run_dir, allocation, slurm)
    patiently(lambda: attempt_records.judge_lost_attempts(run_dir, allocation), "the verdict of an earlier attempt")
    earlier = attempt_records.verdicts_of_job(run_dir, allocation)
    if allocation.restart and earlier:
        verdict = decide(config.fault, earlier)
        if verdict.action is Action.stop:
            write_verdict(run_dir, verdict)
            return stop_run(paths, verdict, max(verdict.exit_code or 0, 0))
    with noting_stops() as stop:
        attempt = patiently(lambda: new_attempt(run_dir), "a new attempt")
        with _also_into(paths.job_log(attempt)):
            return _Attempt(paths, attempt, config, derived, allocation, slurm, stop).run()


@contextmanager
def _also_into(log: Path) -> Iterator[None]:
    """Copies the job's log messages into the attempt's job.log."""
    handler = patiently(lambda: logging.FileHandler(log, encoding="utf-8"), "job.log")
    root = logging.getLogger("launcher")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"))
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()


@dataclass(frozen=True, slots=True)
class _Attempt:
    """One attempt, from its record to the exit code of the job."""

    paths: RunPaths
    number: int
    config: RunConfig
    derived: Derived
    allocation: Allocation
    slurm: Slurm
    stop: StopRequests

    def run(self) -> int:
        run_dir, derived, allocation = self.paths.root, self.derived, self.allocation
        cores, crowded = cores_per_rank(self.config.cluster.cpus_per_task, allocation, derived.devices_per_node)
        # Before the attempt is recorded: a folder that cannot be mounted in the container is found here.
        argv = srun_argv(
            self.config, derived, run_dir=run_dir, attempt=self.number, cpus_per_task=cores, is_crowded=crowded
        )
        info = self._job_info()
        record = patiently(
            lambda: attempt_records.record_start(run_dir, self.number, derived, allocation, info),
            "the record of the attempt",
        )
        if crowded:
            numbers = (derived.devices_per_node, allocation.cpus_per_node)
            logger.warning("%d ranks share %d cores on each node; request more", *numbers)
        environment = self._environment(cores, info)
        patiently(lambda: write_names(self.paths.attempt(self.number) / "env.json", environment), "env.json")
        nodes = ",".join(allocation.nodes)
        where = f"job {allocation.name}, restart {allocation.restart}, {derived.world_size} ranks on {nodes}"
        logger.info("attempt %d of %s: %s", self.number, run_dir.name, where)
        return self._end(record, *run_step(argv, environment, self.paths, record, self.stop))

    def _environment(self, cores: int, info: JobInfo | None) -> dict[str, str]:
        """The environment of all ranks; srun tells each its rank."""
        allocation = self.allocation
        end = info.ended if info is not None and info.time_limit_s is not None else None
        common = RankEnvironment(
            master_address=allocation.nodes[0],
            master_port=free_meeting_port(allocation.job_id, allocation.restart, self.number),
            threads=self.config.cluster.threads_per_process or cores,
            device=self.derived.device,
            ranks_per_node=self.derived.devices_per_node,
            nodes=allocation.nodes,
            interface=rank_interface(allocation.nodes),
            end_time_s=end.timestamp() if end is not None else None,
        )
        return ranks_environment(os.environ, self.config.cluster, common)

    def _job_info(self) -> JobInfo | None:
        try:
            return self.slurm.job(self.allocation.name)
        except SlurmError as error:
            logger.warning("Slurm cannot be asked about this job: %s", error)
            return None

    def _end(self, record: AttemptRecord, code: int, stall: Stall | None) -> int:
        """Returns: the exit code of the job."""
        newest = last_attempt(self.paths.root)
        if newest > self.number:
            # This node was suspended or cut off and the run continued elsewhere, where this attempt was judged.
            logger.error("attempt %d ended, superseded by attempt %d", self.number, newest)
            return ExitCode.SUPERSEDED
        code = code if code >= 0 else 128 - code
        info = self._job_info() if code != ExitCode.DONE else None
        job = None if info is None else JobEnd(state=info.state, restarted=info.restarts > self.allocation.restart)
        report = StarterReport(exit_code=code, stopped_by=self.stop.first, stall=stall, job=job)
        queue = SlurmScheduler()
        _, code = end_attempt(self.paths, record, report, decide=self._decide, keep=patiently, queue=queue)
        return code

    def _decide(self, judged: Verdict) -> Verdict:
        """The restart policy, applied to all attempts of this job; the verdict of this one may not be on disk yet."""
        verdicts = attempt_records.verdicts_of_job(self.paths.root, self.allocation)
        return decide(self.config.fault, [*(one for one in verdicts if one.attempt < self.number), judged])
