"""What follows from the end of an attempt, under any starter: the state of the run, another attempt, the exit code."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress

from launcher.diagnose.conclude import Keep, conclude, keep_once
from launcher.diagnose.evidence import StarterReport
from launcher.diagnose.verdict import ACTIONS, Action, Verdict
from launcher.errors import ExitCode, VerdictClass
from launcher.paths import RunPaths
from launcher.runs.attempts import AttemptRecord
from launcher.runs.events import write_event
from launcher.runs.scheduler import Requeued, Scheduler
from launcher.runs.status import set_state

logger = logging.getLogger(__name__)


def end_attempt(
    paths: RunPaths,
    record: AttemptRecord,
    report: StarterReport,
    *,
    decide: Callable[[Verdict], Verdict] = lambda verdict: verdict,
    keep: Keep = keep_once,
    queue: Scheduler | None = None,
) -> tuple[Verdict, int]:
    """Judges an attempt that has ended, records it, and does what the verdict asks for.

    Args:
        decide, keep: as in `conclude`.
        queue: has the job come again; None where there is no queue, and the user continues the run.
    Returns: the verdict, and the exit code of the job or command.
    """
    verdict, is_recorded = conclude(paths, record, report, decide=decide, keep=keep)
    code = report.exit_code or ExitCode.DONE
    if queue is not None:
        log = logger.info if verdict.action is Action.none else logger.warning
        log("attempt %d ended: %s: %s", verdict.attempt, verdict.verdict_class.value, verdict.summary)
    if verdict.action is Action.none:
        keep(lambda: set_state(paths, verdict.attempt, "succeeded", ""), "the state of the run")
        return verdict, ExitCode.DONE
    if queue is None:
        # After a preemption the run is still running, only not now.
        if code != ExitCode.PREEMPTED or verdict.verdict_class is VerdictClass.cancelled:
            _end_run(paths, verdict, again=not is_recorded)
        return verdict, code
    if verdict.action is Action.stop:
        return verdict, stop_run(paths, verdict, code)
    excluded = [verdict.node] if verdict.action is Action.requeue_without_node and verdict.node else []
    requeued = queue.requeue(record, without=excluded)
    # The job is in the queue already: if the disk stays full, only the record of it is lost.
    with suppress(OSError):
        keep(lambda: _record_requeue(paths, record, verdict, requeued), "events.jsonl", wait_s=20.0)
    if requeued.done:
        return verdict, ExitCode.PREEMPTED
    # 75 would say that the job comes again.
    return verdict, code if code not in (ExitCode.DONE, ExitCode.PREEMPTED) else ExitCode.UNAVAILABLE


def stop_run(paths: RunPaths, verdict: Verdict, code: int) -> int:
    """Ends the run until the user acts.

    Args:
        code: of the attempt.
    Returns: the exit code of the job, never 75: it does not come again. GAVE_UP where only a limit stops it.
    """
    _end_run(paths, verdict)
    logger.error("%s stops: %s", paths.root.name, verdict.summary)
    if verdict.hint:
        logger.error("what to do: %s", verdict.hint)
    if ACTIONS[verdict.verdict_class] is not Action.stop:
        return ExitCode.GAVE_UP
    return ExitCode.INTERRUPTED if verdict.verdict_class is VerdictClass.cancelled else code or ExitCode.BUG


def _end_run(paths: RunPaths, verdict: Verdict, *, again: bool = False) -> None:
    state = "cancelled" if verdict.verdict_class is VerdictClass.cancelled else "failed"
    set_state(paths, verdict.attempt, state, verdict.summary, again=again)


def _record_requeue(paths: RunPaths, record: AttemptRecord, verdict: Verdict, requeued: Requeued) -> None:
    attempt, job_id = record.attempt, record.job_id
    if not requeued.done:
        write_event(paths.events, attempt, "requeue_failed", job_id=job_id, problem=requeued.problem)
        reason = f"{verdict.summary}; job {job_id} could not be queued again: {requeued.problem}"
        set_state(paths, attempt, "failed", reason)
        logger.error("%s. Continue with: launcher resume %s", reason, paths.root.name)
        return
    requeue = {"job_id": job_id, "by_slurm": requeued.by_scheduler, "without": list(requeued.excluded)}
    write_event(paths.events, attempt, "requeue", **requeue, reason=verdict.summary)
    # Rank 0 may have recorded a final failure; the run continues.
    set_state(paths, attempt, "running", "queued again")
    if requeued.problem:
        logger.warning("%s", requeued.problem)
    logger.warning("job %s is queued again and continues from the newest checkpoint", job_id)
