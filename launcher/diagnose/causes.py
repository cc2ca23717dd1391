"""What ended an attempt: the first cause that the evidence supports, and the rank and node it points at."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field, replace

from launcher.diagnose.error_patterns import GPU_FAULT, class_of
from launcher.diagnose.evidence import Evidence
from launcher.diagnose.failed_ranks import Failure, class_of_code, find_failures, kind_of, rank_name
from launcher.diagnose.log_tail import error_block, exception_line, traceback_place
from launcher.diagnose.srun_messages import Word
from launcher.diagnose.stacks import find_hang
from launcher.errors import OUR_ERRORS, TIME_LIMIT, ExitCode, HostLost, HostNotStarted, LauncherError, VerdictClass
from launcher.runs.jsonl import seconds_between


@dataclass(frozen=True, slots=True, kw_only=True)
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
    """The cause. Pure. A cause outside the ranks (cancelled, a lost node) comes before what the ranks say, for they
    then speak of its effects; an error a rank names comes before a stop that was under way, for it kept the stop from
    ending well; a rank that was killed without a word counts only where nobody had asked for a stop."""
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
        return Cause(verdict_class=VerdictClass.done, summary="finished", exit_code=0)
    return None


def _superseded(failures: list[Failure]) -> Cause | None:
    for failure in sorted(failures, key=lambda failure: failure.is_echo):
        if failure.verdict_class is VerdictClass.superseded:
            summary = "a newer attempt of the run has started; this one may not publish checkpoints any more"
            return _of_rank(failure, VerdictClass.superseded, summary)
    return None


def _cancelled(evidence: Evidence) -> Cause | None:
    by_user = evidence.cancelled or evidence.stopped_by == "user" or evidence.exit_code == ExitCode.INTERRUPTED
    if by_user or evidence.slurm_state == "CANCELLED":
        return Cause(verdict_class=VerdictClass.cancelled, summary=f"cancelled, {_how_saved(evidence)}")
    return None


def _node_lost(evidence: Evidence) -> Cause | None:
    silent = evidence.starter_error
    if isinstance(silent, HostLost) and silent.is_silent:
        return _node_failure(evidence, str(silent.data["node"]), [f"launcher: {silent}"])
    facts = [fact for fact in evidence.words if fact.word is Word.node_failure]
    if not facts and evidence.slurm_state not in ("NODE_FAIL", "BOOT_FAIL"):
        return None
    node = next((fact.node for fact in facts if fact.node), "") or _node_without_ends(evidence)
    return _node_failure(evidence, node, [fact.line for fact in facts][:4])


def _node_failure(evidence: Evidence, node: str, lines: list[str]) -> Cause:
    return Cause(
        verdict_class=VerdictClass.node_failure,
        summary=f"node {node} failed" if node else "a node of the job failed",
        rank=next((rank.rank for rank in evidence.ranks if rank.node == node), None) if node else None,
        node=node,
        lines=lines,
    )


def _node_without_ends(evidence: Evidence) -> str:
    """The one node none of whose ranks left a last word while others did; else empty."""
    silent = {rank.node for rank in evidence.ranks} - {rank.node for rank in evidence.ranks if rank.end is not None}
    return silent.pop() if len(silent) == 1 else ""


def _hung(evidence: Evidence, failures: list[Failure]) -> Cause | None:
    stall = evidence.stall
    # Where nobody watches, a rank that hangs ends itself.
    by_itself = evidence.exit_code == ExitCode.HANG or any(failure.code == ExitCode.HANG for failure in failures)
    found = find_hang(evidence) if stall is not None or by_itself else None
    if found is None:
        return None
    where = f" at {found.place}" if found.place else ""
    beat, silent = found.rank.beat, "no sign of life"
    if stall is not None:
        silent += f" for {stall.silent_s:.0f} s in phase {stall.phase} (limit {stall.limit_s:.0f} s)"
    elif beat is not None:
        silent += f" in phase {beat.phase} for longer than {beat.limit_s:.0f} s"
    return Cause(
        verdict_class=VerdictClass.hang,
        summary=f"{rank_name(found.rank)} hung{where}: {silent}; {found.why}",
        rank=found.rank.rank,
        node=found.rank.node,
        lines=error_block(found.rank.stacks) or error_block(found.rank.log),
        place=found.place,
    )


def _start_failed(evidence: Evidence) -> Cause | None:
    """srun could not start the ranks, or not all."""
    facts = [fact for fact in evidence.words if fact.word is Word.start_failed]
    if not facts or any(rank.end is not None for rank in evidence.ranks):
        return None
    first = facts[0]
    # A program that is not there, or a request Slurm cannot meet, will not be there next time either.
    is_settings = "execve" in first.line or "Only allocated" in first.line or "nable to" in first.line
    where = f" on {first.node}" if first.node else ""
    return Cause(
        verdict_class=VerdictClass.configuration if is_settings else VerdictClass.node_failure,
        summary=f"the ranks could not be started{where}: {first.line.partition('error: ')[2] or first.line}",
        node=first.node,
        lines=[fact.line for fact in facts][:6],
        error=first.line,
    )


def _rank_failed(evidence: Evidence, failure: Failure) -> Cause:
    verdict_class = failure.verdict_class or VerdictClass.bug
    named = exception_line(failure.lines)
    end = failure.rank.end
    said = end.message.strip() if end is not None else ""
    error = said.splitlines()[0] if said else named.removeprefix("error: ")
    is_ours = end is not None and kind_of(end) in OUR_ERRORS
    # Our own errors are sentences; those of others often mean little without their name.
    if end is not None and end.error and not is_ours:
        error = f"{end.error}: {error}"
    if verdict_class is VerdictClass.non_finite:
        # All ranks agree on it and say the same: what is to blame is the step, not a rank.
        return replace(_of_rank(failure, verdict_class, error[:500]), rank=None, node="", place="")
    cause = _of_rank(failure, verdict_class, f"{rank_name(failure.rank)}: {error or 'failed'}"[:500])
    if verdict_class is VerdictClass.rendezvous:
        return _rendezvous(evidence, failure, cause)
    if (
        verdict_class is VerdictClass.node_failure
        and not is_ours
        and GPU_FAULT.search("\n".join([error, *failure.lines]))
    ):
        return replace(cause, summary=f"{rank_name(failure.rank)}: its GPU failed: {error}"[:500])
    return cause


def _rendezvous(evidence: Evidence, failure: Failure, cause: Cause) -> Cause:
    """A rank that reports missing ranks is not to blame; the first one that is missing is."""
    end = failure.rank.end
    missing = end.data.get("ranks") if end is not None else None
    first = missing[0] if isinstance(missing, list) and missing else None
    blamed = next((rank for rank in evidence.ranks if rank.rank == first), None)
    if end is None or blamed is None:
        return replace(cause, node="")
    return replace(cause, summary=end.message.partition("\n")[0][:500], node=blamed.node, rank=blamed.rank)


def _stopped(evidence: Evidence) -> Cause | None:
    """Somebody asked the attempt to leave: the time limit, the scheduler, or a signal."""
    said = {fact.word for fact in evidence.words}
    asked = {evidence.stopped_by}
    asked |= {str(rank.end.data.get("stopped_by", "")) for rank in evidence.ranks if rank.end is not None}
    preempted = [event.fields for event in evidence.events if event.event == "preempted"]
    asked |= {str(fields.get(name, "")) for fields in preempted for name in ("reason", "signal")}
    saved, how = _saved(evidence), _how_saved(evidence)
    timed_out = Word.time_limit in said or evidence.slurm_state in ("TIMEOUT", "DEADLINE")
    if timed_out or TIME_LIMIT in asked or (signal.SIGUSR2.name in asked and _near_time_limit(evidence)):
        return Cause(verdict_class=VerdictClass.timeout, summary=f"the time limit came, {how}")
    by_slurm = said & {Word.preempted, Word.requeued, Word.cancelled} or evidence.slurm_state in _QUEUED_AGAIN
    if by_slurm or evidence.stopped_by or saved or evidence.exit_code == ExitCode.PREEMPTED:
        by = evidence.stopped_by or ("Slurm" if by_slurm else "a signal")
        what = "preempted" if Word.preempted in said or evidence.slurm_state == "PREEMPTED" else f"stopped by {by}"
        return Cause(verdict_class=VerdictClass.preempted, summary=f"{what}, {how}")
    return None


_QUEUED_AGAIN = ("PREEMPTED", "PENDING", "REQUEUED", "REQUEUE_HOLD")


def _near_time_limit(evidence: Evidence) -> bool:
    """Whether a SIGUSR2 is the one that Slurm sends some time before the limit; anybody may send it."""
    if evidence.config is None or (limit_min := evidence.config.cluster.walltime_min) is None:
        return False
    # Slurm looks at the clock twice a minute, and a job may have been given a little less than it asked for.
    lead_s = evidence.config.cluster.signal_lead_s
    return seconds_between(evidence.started, evidence.ended) >= 60 * limit_min - lead_s - 60


def _saved(evidence: Evidence) -> bool:
    """Whether a rank said that it saved because it was told to stop."""
    return any(rank.end is not None and rank.end.exit_code == ExitCode.PREEMPTED for rank in evidence.ranks)


def _first_died(evidence: Evidence, spoken: list[Failure], mute: list[Failure]) -> Cause | None:
    """A rank that a signal ended before another one failed with an error that points at nothing of its own."""
    # A rank that is killed while the ranks meet is missed by the others.
    unsaid = (None, VerdictClass.rendezvous)
    if not spoken or not mute or spoken[0].verdict_class not in unsaid or _stopped(evidence) is not None:
        return None
    died = mute[0]
    is_first = died.order < spoken[0].order and died.code is not None and died.code < 0
    return _rank_died(evidence, died) if is_first else None


def _how_saved(evidence: Evidence) -> str:
    if not _saved(evidence):
        return "before it could save"
    if evidence.step_end <= evidence.step_start:
        return "before it had trained"
    return f"saved at step {evidence.checkpoint_after}"


def _rank_died(evidence: Evidence, failure: Failure) -> Cause | None:
    """A rank that went without a word, though nobody had asked it to."""
    out_of_memory = evidence.slurm_state == "OUT_OF_MEMORY" or any(
        fact.word is Word.out_of_memory for fact in evidence.words
    )
    name, code = rank_name(failure.rank), failure.code
    # A rank that was killed says nothing; who saw it says how.
    seen = [fact.line for fact in evidence.words if failure.rank.rank in fact.ranks or fact.word is Word.out_of_memory]
    failure = replace(failure, lines=[*failure.lines[-6:], *seen])
    # Nobody saw the end of the attempt at all, or its ranks never began.
    began = any(rank.end is not None or rank.log or rank.beat is not None for rank in evidence.ranks)
    if code is None and (evidence.exit_code is None or not began):
        return None
    if out_of_memory:
        return _of_rank(failure, VerdictClass.out_of_memory_host, f"{name} was killed: the node was out of memory")
    if code in (None, -signal.SIGKILL, 128 + signal.SIGKILL):
        text = f"{name} was killed (SIGKILL) and nobody asked for it; most often the node was out of memory"
        return _of_rank(failure, VerdictClass.out_of_memory_host, text)
    if code == -signal.SIGBUS:
        text = f"{name} was ended by SIGBUS; most often shared memory (/dev/shm) was full"
        return _of_rank(failure, VerdictClass.out_of_memory_host, text)
    if code < 0:
        return _of_rank(failure, VerdictClass.bug, f"{name} was ended by {signal.Signals(-code).name}")
    return _of_rank(
        failure, class_of_code(code) or VerdictClass.bug, f"{name} ended with exit code {code} and left no message"
    )


def _lost_each_other(failures: list[Failure]) -> Cause | None:
    """Every rank says only that another one had gone, and all were there to say so."""
    failure = next((failure for failure in failures if failure.is_echo), None)
    if failure is None:
        return None
    error = exception_line(failure.lines)
    summary = f"the ranks lost each other and none of them failed first: {error}"[:500]
    return Cause(verdict_class=VerdictClass.rendezvous, summary=summary, lines=failure.lines, error=error)


def _unexplained(evidence: Evidence) -> Cause:
    record, code = evidence.record, evidence.exit_code
    if code is None:
        node = record.host if record is not None else ""
        where = f" on {node}" if node else ""
        text = f"the process that ran the attempt{where} is gone and left no word; most often its machine went down"
        return Cause(verdict_class=VerdictClass.node_failure, summary=text, node=node)
    if evidence.starter_error is not None:
        return _starter_failed(evidence.starter_error, code)
    lines = error_block(evidence.starter_log)
    return Cause(
        verdict_class=class_of("", {}, "\n".join(lines)) or class_of_code(code) or VerdictClass.bug,
        summary=exception_line(lines).removeprefix("error: ") or f"it ended with exit code {code} and no message",
        exit_code=code,
        lines=lines,
        error=exception_line(lines),
    )


def _starter_failed(error: LauncherError, code: int) -> Cause:
    """The starter itself could not go on; what a remote shell printed is other people's text."""
    output = str(error.data["output"]) if isinstance(error, HostNotStarted) else ""
    lines = f"launcher: {error}".splitlines()
    return Cause(
        verdict_class=class_of("", {}, output) or error.failure or class_of_code(code) or VerdictClass.bug,
        summary=lines[0].removeprefix("launcher: "),
        exit_code=code,
        lines=lines,
        error=exception_line(output.splitlines()),
    )


def _of_rank(failure: Failure, verdict_class: VerdictClass, summary: str) -> Cause:
    end = failure.rank.end
    return Cause(
        verdict_class=verdict_class,
        summary=summary,
        rank=failure.rank.rank,
        node=failure.rank.node,
        exit_code=failure.code,
        lines=failure.lines,
        place=traceback_place(failure.rank.log) if failure.spoke else "",
        error=f"{end.error}: {end.message}" if end is not None else exception_line(failure.lines),
    )
