"""The cause of the end of an attempt: the first that the evidence supports, with the rank and node to blame."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field, replace

from launcher.diagnose.error_patterns import GPU_FAULT, class_of
from launcher.diagnose.evidence import Evidence
from launcher.diagnose.failed_ranks import Failure, class_of_code, find_failures, kind_of, named
from launcher.diagnose.log_tail import error_block, exception_line, traceback_place
from launcher.diagnose.srun_messages import MessageKind
from launcher.diagnose.stacks import find_hang
from launcher.errors import OUR_ERRORS, TIME_LIMIT, ExitCode, HostLost, HostNotStarted, LauncherError, VerdictClass
from launcher.runs.jsonl import seconds_between
from launcher.runs.states import SLURM_WAITING_STATES

_LONGEST = 500
"""Characters of a summary."""


@dataclass(frozen=True, slots=True)
class Cause:
    """Why an attempt ended, before its cost and remedy are known."""

    verdict_class: VerdictClass
    summary: str
    rank: int | None = None
    node: str = ""
    exit_code: int | None = None
    lines: list[str] = field(default_factory=list)
    place: str = ""
    error: str = ""
    """The line that names the error, for the remedy."""


def find_cause(evidence: Evidence) -> Cause:
    """The cause. Pure.

    A cause outside the ranks (cancelled, a lost node) comes before the errors of the ranks, which are then its effects.
    An error that a rank names comes before a stop that was under way, because it kept the stop from ending well. A rank
    that was killed and left no error counts only where no stop was requested.
    """
    failures = find_failures(evidence)
    spoken = [failure for failure in failures if failure.spoke and not failure.is_echo]
    mute = [failure for failure in failures if not failure.spoke]
    return (
        _finished(evidence)
        or _superseded(failures)
        or _cancelled(evidence)
        or _node_lost(evidence)
        or _hung(evidence, failures)
        or _start_failed(evidence)
        or _first_died(evidence, spoken, mute)
        or (_rank_failed(evidence, spoken[0]) if spoken else None)
        or _stopped(evidence)
        or (_rank_died(evidence, mute[0]) if mute else None)
        or _lost_each_other(failures)
        or _unexplained(evidence)
    )


def _finished(evidence: Evidence) -> Cause | None:
    succeeded = any(event.event == "state" and event.fields.get("state") == "succeeded" for event in evidence.events)
    if evidence.exit_code == ExitCode.DONE or (evidence.exit_code is None and succeeded):
        return Cause(VerdictClass.done, "finished", exit_code=0)
    return None


def _superseded(failures: list[Failure]) -> Cause | None:
    for failure in sorted(failures, key=lambda failure: failure.is_echo):
        if failure.verdict_class is VerdictClass.superseded:
            summary = "a newer attempt of the run has started; this one may not publish checkpoints any more"
            return _of_rank(failure, VerdictClass.superseded, summary)
    return None


def _cancelled(evidence: Evidence) -> Cause | None:
    by_user = evidence.cancelled or evidence.report.stopped_by == "user" or evidence.exit_code == ExitCode.INTERRUPTED
    if by_user or evidence.slurm_state == "CANCELLED":
        return Cause(VerdictClass.cancelled, f"cancelled, {_how_saved(evidence)}")
    return None


def _node_lost(evidence: Evidence) -> Cause | None:
    lost = evidence.report.error
    if isinstance(lost, HostLost) and lost.is_silent:
        return _node_failure(evidence, str(lost.data["node"]), [f"launcher: {lost}"])
    messages = evidence.messages_of(MessageKind.node_failure)
    if not messages and evidence.slurm_state not in ("NODE_FAIL", "BOOT_FAIL"):
        return None
    node = next((message.node for message in messages if message.node), "")
    if not node:
        # The one node none of whose ranks left a record of its end, while others did.
        silent = {rank.node for rank in evidence.ranks} - {rank.node for rank in evidence.ranks if rank.end is not None}
        node = silent.pop() if len(silent) == 1 else ""
    return _node_failure(evidence, node, [message.line for message in messages][:4])


def _node_failure(evidence: Evidence, node: str, lines: list[str]) -> Cause:
    return Cause(
        VerdictClass.node_failure,
        f"node {node} failed" if node else "a node of the job failed",
        rank=next((rank.rank for rank in evidence.ranks if rank.node == node), None) if node else None,
        node=node,
        lines=lines,
    )


def _hung(evidence: Evidence, failures: list[Failure]) -> Cause | None:
    stall = evidence.report.stall
    # Where nobody watches, a rank that hangs ends itself.
    by_itself = evidence.exit_code == ExitCode.HANG or any(failure.code == ExitCode.HANG for failure in failures)
    found = find_hang(evidence) if stall is not None or by_itself else None
    if found is None:
        return None
    where = f" at {found.place}" if found.place else ""
    beat, silent = found.rank.beat, "no heartbeat"
    if stall is not None:
        silent += f" for {stall.silent_s:.0f} s in phase {stall.phase} (limit {stall.limit_s:.0f} s)"
    elif beat is not None:
        silent += f" in phase {beat.phase} for longer than {beat.limit_s:.0f} s"
    return Cause(
        VerdictClass.hang,
        f"{named(found.rank)} hung{where}: {silent}; {found.why}",
        rank=found.rank.rank,
        node=found.rank.node,
        lines=error_block(found.rank.stacks) or error_block(found.rank.log),
        place=found.place,
    )


def _start_failed(evidence: Evidence) -> Cause | None:
    """srun could not start the ranks, or not all."""
    messages = evidence.messages_of(MessageKind.start_failed)
    if not messages or any(rank.end is not None for rank in evidence.ranks):
        return None
    first = messages[0]
    # A program that is not there, or a request Slurm cannot meet, will not be there next time either.
    is_settings = "execve" in first.line or "Only allocated" in first.line or "nable to" in first.line
    where = f" on {first.node}" if first.node else ""
    return Cause(
        VerdictClass.configuration if is_settings else VerdictClass.node_failure,
        f"the ranks could not be started{where}: {first.line.partition('error: ')[2] or first.line}",
        node=first.node,
        lines=[message.line for message in messages][:6],
        error=first.line,
    )


def _rank_failed(evidence: Evidence, failure: Failure) -> Cause:
    verdict_class, end = failure.verdict_class or VerdictClass.bug, failure.rank.end
    is_ours = end is not None and kind_of(end) in OUR_ERRORS
    if end is not None and end.message.strip():
        error = end.message.strip().splitlines()[0]
    else:
        error = exception_line(failure.lines).removeprefix("error: ")
    # Our own errors are sentences; those of others often mean little without their name.
    if end is not None and end.error and not is_ours:
        error = f"{end.error}: {error}"
    if verdict_class is VerdictClass.non_finite:
        # All ranks agree on it and say the same: what is to blame is the step, not a rank.
        return replace(_of_rank(failure, verdict_class, error), rank=None, node="", place="")
    if verdict_class is VerdictClass.rendezvous:
        # A rank that reports missing ranks is not to blame; the first one that is missing is.
        missing = end.data.get("ranks") if end is not None else None
        first = missing[0] if isinstance(missing, list) and missing else None
        blamed = next((rank for rank in evidence.ranks if rank.rank == first), None)
        cause = replace(_of_rank(failure, verdict_class, f"{named(failure.rank)}: {error or 'failed'}"), node="")
        return replace(cause, summary=error[:_LONGEST], node=blamed.node, rank=blamed.rank) if blamed else cause
    is_gpu = verdict_class is VerdictClass.node_failure and not is_ours
    if is_gpu and GPU_FAULT.search("\n".join([error, *failure.lines])):
        error = f"its GPU failed: {error}"
    return _of_rank(failure, verdict_class, f"{named(failure.rank)}: {error or 'failed'}")


def _stopped(evidence: Evidence) -> Cause | None:
    """Somebody asked the attempt to leave: the time limit, the scheduler, or a signal."""
    said = {message.kind for message in evidence.messages}
    stopped_by = evidence.report.stopped_by
    asked = {stopped_by}
    asked |= {str(rank.end.data.get("stopped_by", "")) for rank in evidence.ranks if rank.end is not None}
    preempted = [event.fields for event in evidence.events if event.event == "preempted"]
    asked |= {str(fields.get(name, "")) for fields in preempted for name in ("reason", "signal")}
    how = _how_saved(evidence)
    timed_out = MessageKind.time_limit in said or evidence.slurm_state in ("TIMEOUT", "DEADLINE")
    if timed_out or TIME_LIMIT in asked or (signal.SIGUSR2.name in asked and _near_time_limit(evidence)):
        return Cause(VerdictClass.timeout, f"the time limit came, {how}")
    by_preemption = MessageKind.preempted in said or evidence.slurm_state == "PREEMPTED"
    is_requeued = evidence.slurm_state in SLURM_WAITING_STATES or MessageKind.requeued in said
    by_slurm = by_preemption or is_requeued or MessageKind.cancelled in said
    if by_slurm or stopped_by or _saved(evidence) or evidence.exit_code == ExitCode.PREEMPTED:
        by = stopped_by or ("Slurm" if by_slurm else "a signal")
        what = "preempted" if by_preemption else f"stopped by {by}"
        return Cause(VerdictClass.preempted, f"{what}, {how}")
    return None


def _near_time_limit(evidence: Evidence) -> bool:
    """Whether a SIGUSR2 is the one that Slurm sends some time before the limit; anybody may send it."""
    if evidence.config is None or (limit_min := evidence.config.cluster.walltime_min) is None:
        return False
    # Slurm looks at the clock twice a minute, and a job may have been given a little less than it asked for.
    lead_s = evidence.config.cluster.signal_lead_s
    return seconds_between(evidence.started, evidence.ended) >= 60 * limit_min - lead_s - 60


def _saved(evidence: Evidence) -> bool:
    """Whether a rank reports that it saved because it was asked to stop."""
    return any(rank.end is not None and rank.end.exit_code == ExitCode.PREEMPTED for rank in evidence.ranks)


def _how_saved(evidence: Evidence) -> str:
    if not _saved(evidence):
        return "before it could save"
    if evidence.step_end <= evidence.step_start:
        return "before it had trained"
    return f"saved at step {evidence.checkpoint_after}"


def _first_died(evidence: Evidence, spoken: list[Failure], mute: list[Failure]) -> Cause | None:
    """A rank that a signal ended before another one failed with an error that points at nothing of its own."""
    # A rank that is killed while the ranks meet is missed by the others.
    unsaid = (None, VerdictClass.rendezvous)
    if not spoken or not mute or spoken[0].verdict_class not in unsaid or _stopped(evidence) is not None:
        return None
    died = mute[0]
    is_first = died.order < spoken[0].order and died.code is not None and died.code < 0
    return _rank_died(evidence, died) if is_first else None


def _rank_died(evidence: Evidence, failure: Failure) -> Cause | None:
    """A rank that left no error, though no stop was requested."""
    out_of_memory = evidence.messages_of(MessageKind.out_of_memory)
    name, code = named(failure.rank), failure.code
    # A rank that was killed says nothing; who saw it says how.
    seen = [one.line for one in evidence.messages if failure.rank.rank in one.ranks or one in out_of_memory]
    failure = replace(failure, lines=[*failure.lines[-6:], *seen])
    # Nobody saw the end of the attempt at all, or its ranks never began.
    began = any(rank.end is not None or rank.log or rank.beat is not None for rank in evidence.ranks)
    if code is None and (evidence.exit_code is None or not began):
        return None
    if out_of_memory or evidence.slurm_state == "OUT_OF_MEMORY":
        return _of_rank(failure, VerdictClass.out_of_memory_host, f"{name} was killed: the node was out of memory")
    if code in (None, -signal.SIGKILL, 128 + signal.SIGKILL):
        text = f"{name} was killed (SIGKILL) though no stop was requested; most often the node was out of memory"
        return _of_rank(failure, VerdictClass.out_of_memory_host, text)
    if code == -signal.SIGBUS:
        text = f"{name} was ended by SIGBUS; most often shared memory (/dev/shm) was full"
        return _of_rank(failure, VerdictClass.out_of_memory_host, text)
    if code < 0:
        return _of_rank(failure, VerdictClass.bug, f"{name} was ended by {signal.Signals(-code).name}")
    text = f"{name} ended with exit code {code} and left no message"
    return _of_rank(failure, class_of_code(code) or VerdictClass.bug, text)


def _lost_each_other(failures: list[Failure]) -> Cause | None:
    """Every rank reports only that another one had gone, and all were there to do so."""
    for failure in failures:
        if failure.is_echo:
            error = exception_line(failure.lines)
            summary = f"the ranks lost each other and none of them failed first: {error}"[:_LONGEST]
            return Cause(VerdictClass.rendezvous, summary, lines=failure.lines, error=error)
    return None


def _unexplained(evidence: Evidence) -> Cause:
    code = evidence.exit_code
    if code is None:
        node = evidence.record.host if evidence.record is not None else ""
        where = f" on {node}" if node else ""
        text = f"the process that ran the attempt{where} is gone without a trace; most often its node went down"
        return Cause(VerdictClass.node_failure, text, node=node)
    if evidence.report.error is not None:
        return _starter_failed(evidence.report.error, code)
    lines = error_block(evidence.starter_log)
    return Cause(
        class_of("", {}, "\n".join(lines)) or class_of_code(code) or VerdictClass.bug,
        exception_line(lines).removeprefix("error: ") or f"it ended with exit code {code} and no message",
        exit_code=code,
        lines=lines,
        error=exception_line(lines),
    )


def _starter_failed(error: LauncherError, code: int) -> Cause:
    """The starter itself failed; the output of a remote shell is other people's text."""
    output = str(error.data["output"]) if isinstance(error, HostNotStarted) else ""
    lines = f"launcher: {error}".splitlines()
    return Cause(
        class_of("", {}, output) or error.failure or class_of_code(code) or VerdictClass.bug,
        lines[0].removeprefix("launcher: "),
        exit_code=code,
        lines=lines,
        error=exception_line(output.splitlines()),
    )


def _of_rank(failure: Failure, verdict_class: VerdictClass, summary: str) -> Cause:
    end = failure.rank.end
    return Cause(
        verdict_class,
        summary[:_LONGEST],
        rank=failure.rank.rank,
        node=failure.rank.node,
        exit_code=failure.code,
        lines=failure.lines,
        place=traceback_place(failure.rank.log) if failure.spoke else "",
        error=f"{end.error}: {end.message}" if end is not None else exception_line(failure.lines),
    )
