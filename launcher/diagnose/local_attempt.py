"""What the local starter writes into the run directory about an attempt: its record, its verdict."""

from __future__ import annotations

import dataclasses
import logging
import socket
from contextlib import suppress
from pathlib import Path

from launcher.config.frozen import load_config
from launcher.config.schema import Derived
from launcher.diagnose.evidence import collect
from launcher.diagnose.outcome import Outcome
from launcher.diagnose.verdict import Verdict, VerdictClass, judge, write_verdict
from launcher.paths import RunPaths
from launcher.runs.attempts import AttemptRecord, write_attempt
from launcher.runs.events import EventWriter
from launcher.runs.jsonl import utc_now

logger = logging.getLogger(__name__)


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
    """Completes the record, judges the attempt, and writes the verdict down."""
    record = dataclasses.replace(record, ended=utc_now(), exit_code=int(outcome.exit_code))
    write_attempt(run_dir, record)
    evidence = collect(
        run_dir,
        record.attempt,
        exit_code=int(outcome.exit_code),
        stopped_by="user" if outcome.killed else outcome.stopped_by,
        stall=outcome.stall,
        starter_error=outcome.lost,
        exits=outcome.exits,
    )
    verdict = judge(evidence)
    write_verdict(run_dir, verdict)
    _tell(run_dir, verdict, outcome)
    return verdict


def _tell(run_dir: Path, verdict: Verdict, outcome: Outcome) -> None:
    if verdict.verdict_class is VerdictClass.done:
        return
    with suppress(OSError):
        events = EventWriter(RunPaths(run_dir).events, verdict.attempt, -1)
        if outcome.stall is not None:
            events.write(
                "hang",
                rank_failed=verdict.rank,
                node=verdict.node,
                phase=outcome.stall.phase,
                silent_s=round(outcome.stall.silent_s, 1),
            )
        events.write(
            "verdict",
            verdict_class=verdict.verdict_class.value,
            action=verdict.action.value,
            summary=verdict.summary,
        )
        events.close()
