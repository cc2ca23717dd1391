"""The end of an attempt, under any starter: evidence, verdict, decision, record, events; then the state of the run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass

from launcher.diagnose.evidence import JobEnd, collect
from launcher.diagnose.verdict import Action, Verdict, VerdictClass, judge, write_verdict
from launcher.errors import ExitCode, LauncherError
from launcher.paths import RunPaths
from launcher.runs.attempts import AttemptRecord, write_attempt
from launcher.runs.events import EventWriter, read_events
from launcher.runs.hang_detector import Stall
from launcher.runs.jsonl import utc_now


@dataclass(frozen=True, slots=True, kw_only=True)
class StarterReport:
    """What only the process that started the ranks knows of an attempt."""

    exit_code: int | None
    """None: that process is gone, and nobody saw the end."""
    stopped_by: str = ""
    """user, or the name of the first stop signal."""
    stall: Stall | None = None
    """The rank that made no progress, for which all were ended."""
    exits: Sequence[tuple[int, int]] = ()
    """(rank, exit code; -N when signal N ended it) in the order they ended."""
    first_failed: tuple[int, int] | None = None
    """Of these, the first one that failed."""
    error: LauncherError | None = None
    """What the starter itself ran into, such as a lost host."""
    job: JobEnd | None = None
    """What Slurm says of the job."""


@dataclass(frozen=True, slots=True)
class Conclusion:
    """An attempt that has been judged."""

    verdict: Verdict
    """With the action that follows once earlier attempts count."""
    action_alone: Action
    """What the attempt asks for by itself."""
    is_told: bool
    """Whether rank 0 had recorded this end itself."""


def at_once(act: Callable[[], None], what: str) -> None:
    """Writes without retrying."""
    act()


def conclude(
    paths: RunPaths,
    record: AttemptRecord,
    report: StarterReport,
    *,
    decide: Callable[[Verdict], Verdict] = lambda verdict: verdict,
    keep: Callable[[Callable[[], None], str], None] = at_once,
) -> Conclusion:
    """Judges an attempt that has ended and records that; what follows from it is the caller's to do.

    Args:
        decide: the restart policy; left out: the action of the verdict's class.
        keep: carries out a write, called with what is written; may retry.
    """
    evidence = collect(
        paths.root,
        record.attempt,
        exit_code=report.exit_code,
        job=report.job,
        stopped_by=report.stopped_by,
        stall=report.stall,
        starter_error=report.error,
        exits=report.exits,
    )
    judged = judge(evidence)
    verdict = decide(judged)
    ended = dataclasses.replace(record, ended=verdict.ended or utc_now(), exit_code=report.exit_code)
    is_told = _is_told(paths, record.attempt, report)
    # The verdict first: an attempt with a record that has ended but no verdict would never get one.
    keep(lambda: write_verdict(paths.root, verdict), "the verdict")
    keep(lambda: write_attempt(paths.root, ended), "the record of the attempt")
    keep(lambda: _write_end_events(paths, verdict, report, is_told=is_told), "events.jsonl")
    return Conclusion(verdict, judged.action, is_told)


def _is_told(paths: RunPaths, attempt: int, report: StarterReport) -> bool:
    """Rank 0 may have recorded only what followed for it: that a rank which failed before it was gone."""
    ends = [event for event in read_events(paths.events) if event.event == "attempt_end" and event.attempt == attempt]
    rank, code = report.first_failed or (0, 0)
    return bool(ends) and (rank == 0 or ends[-1].fields.get("exit_code") == code)


def _write_end_events(paths: RunPaths, verdict: Verdict, report: StarterReport, *, is_told: bool) -> None:
    """The verdict, and what rank 0 could not record itself."""
    mine = {event.event for event in read_events(paths.events) if event.attempt == verdict.attempt}
    reason = "" if verdict.verdict_class is VerdictClass.done else verdict.summary
    is_stopped = verdict.verdict_class in (VerdictClass.preempted, VerdictClass.timeout)
    blamed = {"rank_failed": verdict.rank, "node": verdict.node}
    with closing(EventWriter(paths.events, verdict.attempt)) as events:
        if (is_stopped or report.exit_code == ExitCode.PREEMPTED) and "preempted" not in mine:
            events.write("preempted", reason=reason)
        if not is_told:
            events.write("attempt_end", exit_code=report.exit_code, reason=reason)
        if verdict.verdict_class is VerdictClass.hang:
            stall = report.stall
            silence = {} if stall is None else {"phase": stall.phase, "silent_s": round(stall.silent_s, 1)}
            events.write("hang", **blamed, place=verdict.place, **silence)
        events.write(
            "verdict",
            verdict_class=verdict.verdict_class.value,
            action=verdict.action.value,
            summary=verdict.summary,
            **blamed,
        )
