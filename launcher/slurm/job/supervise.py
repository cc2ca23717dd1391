"""One start of a training job, from the run directory to the exit code: attempt, ranks, verdict, requeue."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from launcher.config.frozen import load_prepared
from launcher.config.schema import Derived, RunConfig
from launcher.diagnose.conclude import conclude
from launcher.diagnose.evidence import JobEnd, StarterReport
from launcher.diagnose.verdict import ACTIONS, Action, Verdict, write_verdict
from launcher.errors import ExitCode, SlurmError, VerdictClass
from launcher.paths import RunPaths
from launcher.runs.attempts import AttemptRecord
from launcher.runs.events import last_state, write_event
from launcher.runs.rank_environment import write_names
from launcher.runs.run_dir import last_attempt, new_attempt
from launcher.runs.status import set_state
from launcher.runs.stop_requests import StopRequests
from launcher.slurm.client.parse import JobInfo
from launcher.slurm.client.query import Slurm
from launcher.slurm.job import attempt_records
from launcher.slurm.job.allocation import Allocation
from launcher.slurm.job.rendezvous import free_meeting_port, rank_interface
from launcher.slurm.job.requeue import Requeued, requeue_job
from launcher.slurm.job.resolve_run import check_world
from launcher.slurm.job.retry_io import patiently
from launcher.slurm.job.srun import cores_per_rank, ranks_environment, srun_argv
from launcher.slurm.job.srun_step import StepEnd, run_step

logger = logging.getLogger(__name__)

_ASK_S = 15.0
"""How long to wait for an answer that only makes the record better."""
_REQUEUE_S = 900.0
"""How long to try to get back into the queue while the controller is away."""


def supervise(run_dir: Path, allocation: Allocation) -> int:
    """Makes one attempt of the run in this job, and has the job queued again where the run is to go on.

    Args:
        run_dir: absolute, and the same on all nodes.
    Returns: the exit code of the job.
    Raises:
        LauncherError: the run cannot be started by this job; nothing was changed then.
    """
    paths = RunPaths(run_dir)
    if last_state(paths.events) == "succeeded":
        logger.info("%s has finished; there is nothing left to do", run_dir)
        return ExitCode.DONE
    if paths.cancel.exists():
        logger.warning("%s was cancelled; to go on with it: launcher resume %s", run_dir, run_dir.name)
        set_state(paths, last_attempt(run_dir), "cancelled", "stopped by the user")
        return ExitCode.INTERRUPTED
    config, derived = load_prepared(paths.config)
    check_world(config, derived, allocation)
    slurm = Slurm(retry_s=_ASK_S)
    attempt_records.refuse_beside_other_job(run_dir, allocation, slurm)
    patiently(lambda: attempt_records.judge_lost_attempts(run_dir, allocation), "the verdict of an earlier attempt")
    earlier = attempt_records.decide_for_job(run_dir, allocation) if allocation.restart else None
    if earlier is not None and earlier.action is Action.stop:
        write_verdict(run_dir, earlier)
        return _stop(paths, earlier, _code_of(earlier))
    with StopRequests() as stop:
        attempt = patiently(lambda: new_attempt(run_dir), "a new attempt")
        with _also_into(paths.job_log(attempt)):
            return _attempt(paths, attempt, config, derived, allocation, slurm, stop)


@contextmanager
def _also_into(log: Path) -> Iterator[None]:
    """What the job says goes into the attempt's job.log, too."""
    handler = patiently(lambda: logging.FileHandler(log, encoding="utf-8"), "job.log")
    root = logging.getLogger("launcher")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"))
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()


def _attempt(
    paths: RunPaths,
    attempt: int,
    config: RunConfig,
    derived: Derived,
    allocation: Allocation,
    slurm: Slurm,
    stop: StopRequests,
) -> int:
    run_dir = paths.root
    per_node = derived.devices_per_node
    cores, crowded = cores_per_rank(
        asked=config.cluster.cpus_per_task,
        given=allocation.cpus_per_task,
        on_node=allocation.cpus_per_node,
        ranks=per_node,
    )
    # Before the attempt is recorded: a container that cannot be shown a folder is found here.
    words = srun_argv(config, derived, run_dir=run_dir, attempt=attempt, cpus_per_task=cores, is_crowded=crowded)
    info = _ask(slurm, allocation)
    record = patiently(
        lambda: attempt_records.begin_attempt(run_dir, attempt, derived, allocation, info), "the record of the attempt"
    )
    if crowded:
        logger.warning("%d ranks share %d cores on each node; ask for more", per_node, allocation.cpus_per_node)
    environment = ranks_environment(
        os.environ,
        config,
        derived,
        master_address=allocation.nodes[0],
        master_port=free_meeting_port(allocation.job_id, allocation.restart, attempt),
        cpus_per_task=cores,
        end_time_s=_end_time_s(info),
        interface=rank_interface(allocation.nodes),
        nodes=allocation.nodes,
    )
    patiently(lambda: write_names(paths.attempt(attempt) / "env.json", environment), "env.json")
    logger.info(
        "attempt %d of %s: job %s, restart %d, %d ranks on %s",
        *(attempt, run_dir.name, allocation.name, allocation.restart, derived.world_size, ",".join(allocation.nodes)),
    )
    end = run_step(
        words,
        environment,
        paths=paths,
        attempt=attempt,
        world_size=derived.world_size,
        job_id=allocation.name,
        stop=stop,
    )
    return _conclude(paths, record, end, allocation, slurm, stop)


def _ask(slurm: Slurm, allocation: Allocation) -> JobInfo | None:
    try:
        return slurm.job(allocation.name)
    except SlurmError as error:
        logger.warning("Slurm cannot be asked about this job: %s", error)
        return None


def _end_time_s(info: JobInfo | None) -> float | None:
    """When Slurm ends the job; None without a limit."""
    end: datetime | None = info.ended if info is not None and info.time_limit_s is not None else None
    return None if end is None else end.timestamp()


def _conclude(
    paths: RunPaths, record: AttemptRecord, end: StepEnd, allocation: Allocation, slurm: Slurm, stop: StopRequests
) -> int:
    """Judges and records the attempt, and does what follows. Returns: the exit code of the job."""
    newest = last_attempt(paths.root)
    if newest > record.attempt:
        # This node was suspended or cut off and the run went on elsewhere, where this attempt was judged.
        logger.error("attempt %d ended, superseded by attempt %d", record.attempt, newest)
        return ExitCode.SUPERSEDED
    code = end.exit_code if end.exit_code >= 0 else 128 - end.exit_code
    info = _ask(slurm, allocation) if code != ExitCode.DONE else None
    job = None if info is None else JobEnd(state=info.state, restarted=info.restarts > allocation.restart)
    conclusion = conclude(
        paths,
        record,
        StarterReport(exit_code=code, stopped_by=stop.first, stall=end.stall, job=job),
        decide=lambda judged: attempt_records.decide_for_job(paths.root, allocation, judged),
        keep=patiently,
    )
    verdict = conclusion.verdict
    log = logger.info if verdict.verdict_class is VerdictClass.done else logger.warning
    log("attempt %d ended: %s: %s", record.attempt, verdict.verdict_class.value, verdict.summary)
    match verdict.action:
        case Action.none:
            patiently(lambda: set_state(paths, record.attempt, "succeeded", ""), "the state of the run")
            return ExitCode.DONE
        case Action.stop:
            # A run that only a limit stops is told apart from one that no further attempt could mend.
            return _stop(paths, verdict, code if conclusion.action_alone is Action.stop else ExitCode.GAVE_UP)
        case _:
            return _go_on(paths, verdict, allocation, code)


def _code_of(earlier: Verdict) -> int:
    """Exit code of a job that another one's verdict stops before it begins."""
    if ACTIONS[earlier.verdict_class] is not Action.stop:
        return ExitCode.GAVE_UP
    return max(earlier.exit_code or 0, 0) or ExitCode.BUG


def _stop(paths: RunPaths, verdict: Verdict, code: int) -> int:
    """The run ends here, until somebody has looked. Returns: the exit code of the job, never 75: nobody goes on."""
    is_cancelled = verdict.verdict_class is VerdictClass.cancelled
    if is_cancelled:
        code = ExitCode.INTERRUPTED
    set_state(paths, verdict.attempt, "cancelled" if is_cancelled else "failed", verdict.summary)
    logger.error("%s stops: %s", paths.root.name, verdict.summary)
    if verdict.hint:
        logger.error("what to do: %s", verdict.hint)
    return code or ExitCode.BUG


def _go_on(paths: RunPaths, verdict: Verdict, allocation: Allocation, code: int) -> int:
    without = [verdict.node] if verdict.action is Action.requeue_without_node and verdict.node else []
    requeued = requeue_job(
        Slurm(retry_s=_REQUEUE_S),
        allocation.name,
        restart=allocation.restart,
        without=without,
        num_nodes=len(allocation.nodes),
    )
    # In the queue it is already: a disk that stays full takes only the note of it.
    with suppress(OSError):
        patiently(lambda: _record_requeue(paths, verdict, requeued, allocation), "events.jsonl", wait_s=20.0)
    if requeued.done:
        return ExitCode.PREEMPTED
    # 75 would say that the job comes again.
    return code if code not in (ExitCode.DONE, ExitCode.PREEMPTED) else ExitCode.UNAVAILABLE


def _record_requeue(paths: RunPaths, verdict: Verdict, requeued: Requeued, allocation: Allocation) -> None:
    attempt = verdict.attempt
    if not requeued.done:
        write_event(paths.events, attempt, "requeue_failed", job_id=allocation.name, problem=requeued.problem)
        reason = f"{verdict.summary}; job {allocation.name} could not be queued again: {requeued.problem}"
        set_state(paths, attempt, "failed", reason)
        logger.error("%s. Go on with: launcher resume %s", reason, paths.root.name)
        return
    write_event(
        paths.events,
        attempt,
        "requeue",
        job_id=allocation.name,
        by_slurm=requeued.by_slurm,
        without=list(requeued.excluded),
        reason=verdict.summary,
    )
    # Rank 0 may have called a failure final; the run goes on.
    set_state(paths, attempt, "running", "queued again")
    if requeued.problem:
        logger.warning("%s", requeued.problem)
    logger.warning("job %s is queued again and goes on from the newest checkpoint", allocation.name)
