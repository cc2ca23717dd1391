"""The end of an attempt, under any starter: from the evidence to verdict, record and events."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import closing
from typing import Protocol

from launcher.diagnose.causes import find_cause
from launcher.diagnose.evidence import Evidence, StarterReport, collect
from launcher.diagnose.remedies import setting_to_change, what_to_do
from launcher.diagnose.verdict import ACTIONS, Verdict, write_verdict
from launcher.errors import ExitCode, VerdictClass
from launcher.paths import RunPaths
from launcher.runs.attempts import AttemptRecord, write_attempt
from launcher.runs.events import EventWriter, read_events
from launcher.runs.jsonl import seconds_between, utc_now


class Keep(Protocol):
    """Carries out a write, and may retry it for some time; `what` is written."""

    def __call__(self, act: Callable[[], None], what: str, *, wait_s: float = ...) -> None: ...


def keep_once(act: Callable[[], None], what: str, *, wait_s: float = 0.0) -> None:
    """Without a retry."""
    act()


def conclude(
    paths: RunPaths,
    record: AttemptRecord,
    report: StarterReport,
    *,
    decide: Callable[[Verdict], Verdict] = lambda verdict: verdict,
    keep: Keep = keep_once,
) -> tuple[Verdict, bool]:
    """Judges an attempt that has ended and records that; `end_attempt` does what follows from it.

    Args:
        decide: the restart policy; left out: the action of the verdict's class.
        keep: carries out the writes.
    Returns: the verdict, and whether rank 0 had recorded this end itself.
    """
    verdict = decide(explain(collect(paths.root, record.attempt, report)))
    ended = dataclasses.replace(record, ended=verdict.ended or utc_now(), exit_code=report.exit_code)
    is_recorded = _is_recorded(paths, record.attempt, report)
    # The verdict first: an attempt with a record that has ended but no verdict would never get one.
    keep(lambda: write_verdict(paths.root, verdict), "the verdict")
    keep(lambda: write_attempt(paths.root, ended), "the record of the attempt")
    keep(lambda: _write_end_events(paths, verdict, report, is_recorded=is_recorded), "events.jsonl")
    return verdict, is_recorded


def explain(evidence: Evidence) -> Verdict:
    """Why the attempt ended. Pure; the action is the one of the class, whatever earlier attempts did."""
    cause = find_cause(evidence)
    record, derived = evidence.record, evidence.derived
    world_size = record.world_size if record is not None else derived.world_size if derived is not None else 1
    setting = setting_to_change(cause, evidence)
    return Verdict(
        attempt=evidence.attempt,
        verdict_class=cause.verdict_class,
        action=ACTIONS[cause.verdict_class],
        summary=cause.summary,
        rank=cause.rank,
        node=cause.node,
        exit_code=cause.exit_code if cause.exit_code is not None else evidence.exit_code,
        lines=cause.lines,
        place=cause.place,
        step_start=evidence.step_start,
        step_end=evidence.step_end,
        checkpoint_before=evidence.checkpoint_before,
        checkpoint_after=evidence.checkpoint_after,
        device_hours=seconds_between(evidence.started, evidence.ended) / 3600 * world_size,
        device_hours_lost=_lost_hours(cause.verdict_class, evidence) * world_size,
        setting=setting,
        hint=what_to_do(cause, evidence, setting),
        job_id=record.job_id if record is not None else "",
        num_nodes=max(1, len(record.nodes)) if record is not None else 1,
        started=evidence.started,
        ended=evidence.ended,
    )


def _lost_hours(verdict_class: VerdictClass, evidence: Evidence) -> float:
    """Hours after the newest checkpoint of the attempt; all of them where it made none and training was lost."""
    if verdict_class is VerdictClass.done or evidence.checkpoint_after >= evidence.step_end > 0:
        return 0.0
    return seconds_between(evidence.checkpoint_time or evidence.started, evidence.ended) / 3600


def _is_recorded(paths: RunPaths, attempt: int, report: StarterReport) -> bool:
    """Rank 0 may have recorded only what followed for it: that a rank which failed before it was gone."""
    ends = [event for event in read_events(paths.events) if event.event == "attempt_end" and event.attempt == attempt]
    rank, code = report.first_failed or (0, 0)
    return bool(ends) and (rank == 0 or ends[-1].fields.get("exit_code") == code)


def _write_end_events(paths: RunPaths, verdict: Verdict, report: StarterReport, *, is_recorded: bool) -> None:
    """The verdict, and what rank 0 could not record itself."""
    mine = {event.event for event in read_events(paths.events) if event.attempt == verdict.attempt}
    reason = "" if verdict.verdict_class is VerdictClass.done else verdict.summary
    is_stopped = verdict.verdict_class in (VerdictClass.preempted, VerdictClass.timeout)
    blamed = {"rank_failed": verdict.rank, "node": verdict.node}
    with closing(EventWriter(paths.events, verdict.attempt)) as events:
        if (is_stopped or report.exit_code == ExitCode.PREEMPTED) and "preempted" not in mine:
            events.write("preempted", reason=reason)
        if not is_recorded:
            events.write("attempt_end", exit_code=report.exit_code, reason=reason)
        if verdict.verdict_class is VerdictClass.hang:
            stall = report.stall
            silence = {} if stall is None else {"phase": stall.phase, "silent_s": round(stall.silent_s, 1)}
            events.write("hang", **blamed, place=verdict.place, **silence)
        events.write(
            "verdict", verdict_class=verdict.verdict_class, action=verdict.action, summary=verdict.summary, **blamed
        )
