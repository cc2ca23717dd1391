"""The verdict on an attempt, `attempts/N/verdict.json`: what failed first, where, what it cost and what to do."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from launcher.errors import VerdictClass
from launcher.files import find_record, write_json
from launcher.paths import RunPaths


class Action(Enum):
    """The next step after an attempt."""

    none = "none"
    """It has finished."""
    requeue = "requeue"
    requeue_without_node = "requeue_without_node"
    """Again, but not on the node that is blamed."""
    stop = "stop"
    """Somebody has to look first."""


ACTIONS = {
    VerdictClass.done: Action.none,
    VerdictClass.preempted: Action.requeue,
    VerdictClass.timeout: Action.requeue,
    VerdictClass.cancelled: Action.stop,
    VerdictClass.node_failure: Action.requeue_without_node,
    VerdictClass.rendezvous: Action.requeue_without_node,
    VerdictClass.hang: Action.requeue,
    VerdictClass.out_of_memory_host: Action.requeue,
    VerdictClass.out_of_memory_gpu: Action.requeue,
    VerdictClass.non_finite: Action.stop,
    VerdictClass.configuration: Action.stop,
    VerdictClass.data: Action.stop,
    VerdictClass.disk: Action.requeue,
    VerdictClass.checkpoint: Action.stop,
    VerdictClass.superseded: Action.stop,
    VerdictClass.bug: Action.requeue,
}

NOT_A_FAILURE = frozenset({VerdictClass.done, VerdictClass.preempted, VerdictClass.cancelled})
"""Ends that say nothing against the run: they never count as a fruitless attempt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Why one attempt ended. Times are UTC, ISO 8601."""

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
    """Of that rank, -N when signal N ended it; without a rank, of the attempt."""
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
    """The next step, or what happens without one."""
    job_id: str = ""
    num_nodes: int = 1
    started: str = ""
    ended: str = ""

    @property
    def made_progress(self) -> bool:
        """Whether it left a newer checkpoint. The one of step 0, which the preflight saves, contains no training."""
        return self.checkpoint_after > max(0, self.checkpoint_before)


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
