"""Where the allocated time of a run went: useful steps and everything else."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from launcher.diagnose.verdict import read_verdict
from launcher.errors import ExitCode
from launcher.paths import RunPaths
from launcher.runs.attempts import read_attempt
from launcher.runs.events import Event, read_events
from launcher.runs.jsonl import seconds_between
from launcher.runs.metrics import Record, StepRecord, read_every_record

_WORK_EVENTS = ("loaded", "rehearsal", "resume", "checkpoint")
PARTS = {
    "start": "starting the ranks",
    "load": "loading",
    "rehearse": "preflight",
    "data": "waiting for data",
    "useful": "useful steps",
    "redone": "redone steps",
    "save": "saving",
    "evaluate": "evaluation",
    "lost": "lost",
    "other": "other",
}
"""Uses of allocated time and what a terminal calls them, in the order in which they occur in a run."""

_GOOD_EXITS = (ExitCode.DONE, ExitCode.PREEMPTED)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptSpan:
    """When one attempt held how many devices. Times are UTC, ISO 8601."""

    attempt: int
    devices: int
    started: str
    """When the devices were allocated."""
    ended: str
    """When they were given back; of an attempt that runs, now or its last sign of life."""
    queued: str = ""
    """When it became able to run; empty for a run that was not queued."""
    exit_code: int | None = None
    """None as long as it runs, or if it did not record its end."""
    reason: str = ""
    """Of its end, if one was recorded."""
    is_failed: bool = False
    """It ended, and neither finished nor was preempted and saved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Goodput:
    """Allocated device time by what it was spent on, in whole device-milliseconds: the parts add up exactly."""

    parts_ms: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PARTS, 0))
    """start: until the ranks have met; load: model, data and checkpoint; rehearse; data: waiting for examples within
    steps; useful: the rest of the steps that count in the final weights; redone: steps whose result was lost and that
    were made once more; save; evaluate; lost: what an attempt that failed held after its last sign of work; other: the
    rest."""
    allocated_ms: int = 0
    queue_ms: int = 0
    """Waiting for an allocation, in milliseconds of wall-clock time; no device was held."""
    spans: list[AttemptSpan] = field(default_factory=list)

    @property
    def device_hours(self) -> float:
        """All that was allocated."""
        return self.allocated_ms / 3_600_000

    @property
    def useful_share(self) -> float | None:
        """Goodput: the share of the allocated time that counts in the weights; None without any."""
        return self.parts_ms["useful"] / self.allocated_ms if self.allocated_ms else None

    def hours(self, part: str) -> float:
        """Device-hours of one of PARTS."""
        return self.parts_ms[part] / 3_600_000

    def share(self, part: str) -> float:
        return self.parts_ms[part] / self.allocated_ms if self.allocated_ms else 0.0

    def as_dict(self) -> dict[str, object]:
        """For --json."""
        return {
            "goodput": self.useful_share,
            "device_hours": self.device_hours,
            "queue_hours": self.queue_ms / 3_600_000,
            "attempts": len(self.spans),
            "parts": {part: {"device_hours": self.hours(part), "share": self.share(part)} for part in PARTS},
        }


def goodput(events: list[Event], records: list[Record], spans: list[AttemptSpan]) -> Goodput:
    """The account of a run. Pure.

    Args:
        records: every line of metrics.jsonl, those of steps that were redone later included.
        spans: of every attempt.
    """
    redone = _redone(records)
    parts = dict.fromkeys(PARTS, 0)
    allocated = queue = 0
    for span in spans:
        held = _ms_between(span.started, span.ended)
        mine = [record for record in records if record.attempt == span.attempt]
        its_events = [event for event in events if event.attempt == span.attempt]
        for part, spent in _account(span, held, its_events, mine, redone).items():
            parts[part] += spent * span.devices
        allocated += held * span.devices
        queue += _ms_between(span.queued, span.started)
    return Goodput(parts_ms=parts, allocated_ms=allocated, queue_ms=queue, spans=spans)


def run_goodput(run_dir: Path) -> Goodput:
    """The account of the run in `run_dir`, as far as its files go."""
    paths = RunPaths(run_dir)
    events, records = read_events(paths.events), read_every_record(paths.metrics)
    numbers = {event.attempt for event in events if event.attempt > 0}.union(paths.attempt_numbers())
    spans = [span for number in sorted(numbers) if (span := _span(paths, number, events, records)) is not None]
    return goodput(events, records, spans)


def _span(paths: RunPaths, number: int, events: list[Event], records: list[Record]) -> AttemptSpan | None:
    """An attempt from its own record; one that left none, or no end, from its events and metrics."""
    kept, verdict = read_attempt(paths.root, number), read_verdict(paths.root, number)
    mine = [event for event in events if event.attempt == number]
    signs = [event.time for event in mine] + [record.time for record in records if record.attempt == number]
    jobs = [event for event in mine if event.event == "job_start"]
    started = kept.started if kept is not None else mine[0].time if mine else ""
    # A job holds its devices before its first process has written anything.
    started = min([started, *(event.time for event in jobs[:1])])
    if not started:
        return None
    ended = (kept.ended if kept is not None else "") or (verdict.ended if verdict is not None else "")
    sizes = [size for event in mine if isinstance(size := event.fields.get("world_size"), int)]
    end = next((event.fields for event in reversed(mine) if event.event == "attempt_end"), {})
    code = kept.exit_code if kept is not None and kept.exit_code is not None else end.get("exit_code")
    return AttemptSpan(
        attempt=number,
        devices=kept.world_size if kept is not None else sizes[0] if sizes else 1,
        started=started,
        ended=ended or max(signs, default=started),
        queued=kept.queued if kept is not None else "",
        exit_code=code if isinstance(code, int) else None,
        reason=str(end.get("message") or end.get("reason") or ""),
        is_failed=verdict is not None if code is None else code not in _GOOD_EXITS,
    )


def _redone(records: list[Record]) -> set[tuple[int, int]]:
    """(attempt, step) of every step that a later attempt made again."""
    newest: dict[int, int] = {}
    for record in records:
        newest[record.attempt] = min(newest.get(record.attempt, record.step), record.step)
    return {
        (record.attempt, record.step)
        for record in records
        if isinstance(record, StepRecord)
        and any(attempt > record.attempt and first <= record.step for attempt, first in newest.items())
    }


def _account(
    span: AttemptSpan, held_ms: int, events: list[Event], records: list[Record], redone: set[tuple[int, int]]
) -> dict[str, int]:
    """Wall-clock milliseconds of one attempt by part; they add up to `held_ms`."""
    steps = [record for record in records if isinstance(record, StepRecord)]
    rehearsals = [event for event in events if event.event == "rehearsal"]
    begun = [event.time for event in events if event.event == "attempt_start"]
    work = [record.time for record in records] + [event.time for event in events if event.event in _WORK_EVENTS]
    start_ms = _ms_between(span.started, begun[0]) if begun else 0
    kept = [step for step in steps if (span.attempt, step.step) not in redone]
    data_ms = sum(min(_ms(step.data_time_s), _ms(step.step_time_s)) for step in kept)
    # The time of the rehearsal includes the save of step 0.
    saves = [event for event in events if event.event == "checkpoint"]
    saves = [event for event in saves if not (rehearsals and event.fields.get("step") == 0)]
    spent = {
        "start": start_ms,
        "load": max(0, _loaded_after_ms(span, events, steps) - start_ms) if begun else 0,
        "rehearse": sum(_ms(event.fields.get("seconds")) for event in rehearsals),
        "data": data_ms,
        "useful": sum(_ms(step.step_time_s) for step in kept) - data_ms,
        "redone": sum(_ms(step.step_time_s) for step in steps if (span.attempt, step.step) in redone),
        "save": sum(_ms(event.fields.get("seconds")) for event in saves),
        "evaluate": sum(_ms(record.eval_time_s) for record in records if not isinstance(record, StepRecord)),
    }
    if span.is_failed:
        spent["lost"] = _ms_between(max([*work, *begun], default=span.started), span.ended)
    return _within(spent, held_ms)


def _loaded_after_ms(span: AttemptSpan, events: list[Event], steps: list[StepRecord]) -> int:
    """When model, data and checkpoint were loaded, from the start of the attempt."""
    known = [event.time for event in events if event.event in ("loaded", "resume")]
    if known:
        return _ms_between(span.started, max(known))
    rehearsed = [event for event in events if event.event == "rehearsal"]
    if rehearsed:
        return _ms_between(span.started, rehearsed[0].time) - _ms(rehearsed[0].fields.get("seconds"))
    return _ms_between(span.started, steps[0].time) - _ms(steps[0].step_time_s) if steps else 0


def _within(spent: dict[str, int], held_ms: int) -> dict[str, int]:
    """The parts, cut where clocks of different nodes make them longer than the whole; `other` is the rest."""
    left, parts = held_ms, dict.fromkeys(PARTS, 0)
    for part in PARTS:
        parts[part] = min(max(0, spent.get(part, 0)), left)
        left -= parts[part]
    parts["other"] += left
    return parts


def _ms(seconds: object) -> int:
    return round(seconds * 1000) if isinstance(seconds, int | float) and 0 <= seconds < 1e9 else 0


def _ms_between(start: str, end: str) -> int:
    return round(seconds_between(start, end) * 1000)
