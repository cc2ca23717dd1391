"""The record, verdict and state of an attempt that the local starter makes."""

from __future__ import annotations

import socket
from pathlib import Path

from launcher.config.frozen import load_config
from launcher.config.schema import Derived
from launcher.diagnose.conclude import conclude
from launcher.diagnose.outcome import Outcome
from launcher.diagnose.verdict import Verdict
from launcher.errors import ExitCode
from launcher.paths import RunPaths
from launcher.runs.attempts import AttemptRecord, write_attempt
from launcher.runs.jsonl import utc_now
from launcher.runs.status import set_state


def begin_attempt(run_dir: Path, attempt: int, derived: Derived) -> AttemptRecord:
    """The record of an attempt that starts now."""
    host = socket.gethostname()
    steps = [path.name.partition("-")[2] for path in RunPaths(run_dir).checkpoints.glob("step-*")]
    record = AttemptRecord(
        attempt=attempt,
        starter="local",
        host=host,
        world_size=derived.world_size,
        started=utc_now(),
        nodes=load_config(RunPaths(run_dir).config).config.cluster.hosts or [host],
        ranks_per_node=derived.devices_per_node,
        checkpoint_step=max((int(step) for step in steps if step.isdigit()), default=-1),
    )
    write_attempt(run_dir, record)
    return record


def end_attempt(run_dir: Path, record: AttemptRecord, outcome: Outcome) -> Verdict:
    """Judges and records an attempt that has ended, and the state it leaves the run in."""
    paths = RunPaths(run_dir)
    conclusion = conclude(paths, record, outcome.report())
    state = _state_after(paths, outcome)
    if state is not None:
        reason = "" if state == "succeeded" else conclusion.verdict.summary
        set_state(paths, record.attempt, state, reason, again=state == "failed" and not conclusion.is_told)
    return conclusion.verdict


def _state_after(paths: RunPaths, outcome: Outcome) -> str | None:
    """None where the run may go on: after a preemption it is still running, only not now."""
    if outcome.exit_code == ExitCode.DONE:
        return "succeeded"
    if paths.cancel.exists():
        return "cancelled"
    return None if outcome.exit_code == ExitCode.PREEMPTED else "failed"
