"""Why an attempt ended: `attempts/N/verdict.json`. What failed first, where, what it cost and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from launcher.diagnose.causes import find_cause
from launcher.diagnose.evidence import Evidence
from launcher.diagnose.remedies import setting_to_change, what_to_do
from launcher.diagnose.verdict_class import ACTIONS
from launcher.diagnose.verdict_class import Action as Action
from launcher.diagnose.verdict_class import VerdictClass as VerdictClass
from launcher.files import as_json, find_record, write_json
from launcher.paths import RunPaths
from launcher.runs.jsonl import seconds_between


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The end of one attempt, explained. Times are UTC, ISO 8601."""

    attempt: int
    verdict_class: VerdictClass
    action: Action
    summary: str
    """One line for people: what happened, to which rank, on which node."""
    rank: int | None = None
    """The rank that failed first; None where none is to blame."""
    node: str = ""
    """The node that failed first, or that rank's node."""
    exit_code: int | None = None
    """Of that rank, -N when signal N ended it; else what the attempt ended with."""
    lines: list[str] = field(default_factory=list)
    """The last lines that matter of what that rank, or the starter, wrote."""
    place: str = ""
    """Where in the code: file:line function, of a hang or a traceback."""
    step_start: int = 0
    """Optimizer steps done when the attempt began to train."""
    step_end: int = 0
    """The last one it finished."""
    checkpoint_before: int = -1
    """Step of the newest committed checkpoint when it began; -1: none."""
    checkpoint_after: int = -1
    device_hours: float = 0.0
    """Devices times the time they were held."""
    device_hours_lost: float = 0.0
    """The part after the newest checkpoint, which has to be done again."""
    setting: str = ""
    """The one setting to change, as one would type it; empty where none helps."""
    hint: str = field(default="", metadata={"json": "todo"})
    """What to do, or what happens by itself."""
    job_id: str = ""
    num_nodes: int = 1
    started: str = ""
    ended: str = ""

    @property
    def made_progress(self) -> bool:
        """Whether it left a newer checkpoint. The one of step 0, which the rehearsal saves, holds no training."""
        return self.checkpoint_after > max(0, self.checkpoint_before)

    def as_dict(self) -> dict[str, object]:
        """For verdict.json and --json."""
        return dict(as_json(self))


def judge(evidence: Evidence) -> Verdict:
    """Why the attempt ended. Pure; the action is the one of the class, `policy.decide` knows the earlier attempts."""
    cause = find_cause(evidence)
    action = ACTIONS[cause.verdict_class]
    record, derived = evidence.record, evidence.derived
    world_size = record.world_size if record is not None else derived.world_size if derived is not None else 1
    setting = setting_to_change(cause, evidence)
    return Verdict(
        attempt=evidence.attempt,
        verdict_class=cause.verdict_class,
        action=action,
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


def write_verdict(run_dir: Path, verdict: Verdict) -> None:
    """Writes or replaces verdict.json of its attempt, whole.

    Raises: OSError.
    """
    write_json(RunPaths(run_dir).verdict(verdict.attempt), verdict)


def read_verdict(run_dir: Path, attempt: int) -> Verdict | None:
    """None where there is none, or none that can be read."""
    return find_record(Verdict, RunPaths(run_dir).verdict(attempt))


def read_verdicts(run_dir: Path) -> list[Verdict]:
    """All of them, oldest first."""
    numbers = RunPaths(run_dir).attempt_numbers()
    return [verdict for number in numbers if (verdict := read_verdict(run_dir, number)) is not None]
