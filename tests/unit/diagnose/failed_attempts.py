"""Attempts of a two-node run as they lie in a run directory after different ends."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

from launcher.config.frozen import save_config
from launcher.config.schema import Derived, FrozenRun, RunConfig
from launcher.errors import ExitCode, LauncherError
from launcher.paths import RunPaths
from launcher.runs.attempts import AttemptRecord, write_attempt
from launcher.runs.events import parse_event
from launcher.runs.jsonl import AppendLog, utc_text
from launcher.runs.metrics import MetricsWriter, StepRecord
from launcher.runs.rank_end import RankEnd, end_of, write_rank_end
from tests.made import make_derived

START = datetime(2026, 3, 2, 9, 30, tzinfo=UTC)


def at(seconds: float) -> str:
    return utc_text(START + timedelta(seconds=seconds))


class Attempt:
    """A run directory with one attempt on n1 and n2, two ranks on each, that began to train after 60 seconds."""

    def __init__(self, root: Path, *, config: RunConfig | None = None, number: int = 1, starter: str = "slurm") -> None:
        self.root = root
        self.number = number
        self.paths = RunPaths(root)
        self.paths.attempt(number).mkdir(parents=True)
        config = config or RunConfig()
        config.model.name_or_path = "/models/m"
        save_config(self.paths.config, FrozenRun(config=config, derived=_derived()))
        self.record = AttemptRecord(
            attempt=number,
            starter=starter,
            host="n1",
            world_size=4,
            started=at(0),
            ended=at(3600),
            job_id="17" if starter == "slurm" else "",
            nodes=["n1", "n2"],
            ranks_per_node=2,
        )
        write_attempt(root, self.record)
        self.event("attempt_start", 60, world_size=4)

    def event(self, event: str, moment_s: float, /, **fields: object) -> None:
        line = {"time": at(moment_s), "event": event, "attempt": self.number, "rank": 0, **fields}
        assert parse_event(line) is not None
        log = AppendLog(self.paths.events)
        log.append(line)
        log.close()

    def trained(self, last: int, *, saved: int = 0) -> None:
        """Steps 1 to `last`, one in 10 seconds; a checkpoint after step `saved`."""
        writer = MetricsWriter(self.paths.metrics)
        for step in range(1, last + 1):
            writer.write(
                StepRecord(step, step / 10, 2.0, 1e-4, 1.0, 800, 300, 80.0, 10.0, 3.0, 800 * step, self.number, at(100))
            )
        writer.close()
        if saved:
            self.event("checkpoint", 60 + 10 * saved, step=saved, seconds=1.0, bytes=1000)

    def log(self, rank: int, text: str) -> None:
        self.paths.rank_log(self.number, rank).write_text(text)

    def end(
        self,
        rank: int,
        exit_code: int,
        error: str = "",
        message: str = "",
        *,
        kind: str | None = None,
        seconds: float = 3590,
    ) -> None:
        """The record of a rank that ended well, or with an error of another package."""
        end = RankEnd(
            rank=rank,
            host=self.record.node_of(rank),
            exit_code=exit_code,
            error=error,
            message=message,
            time=at(seconds + rank / 1000),
            kind=error if kind is None else kind,
        )
        write_rank_end(self.paths.rank_end(self.number, rank), end)

    def end_with(self, rank: int, error: BaseException, message: str | None = None, *, seconds: float = 3590) -> None:
        """The record that a rank writes when it ends with `error`."""
        code = error.exit_code if isinstance(error, LauncherError) else ExitCode.BUG
        text = str(error) if message is None else message
        end = end_of(rank, host=self.record.node_of(rank), exit_code=code, error=error, message=text)
        write_rank_end(self.paths.rank_end(self.number, rank), dataclasses.replace(end, time=at(seconds + rank / 1000)))

    def beat(self, rank: int, *, phase: str = "step", step: int = 7) -> None:
        beat = {
            "rank": rank,
            "host": self.record.node_of(rank),
            "pid": 100 + rank,
            "phase": phase,
            "step": step,
            "beat": 50,
            "limit_s": 300.0,
            "time": at(3000),
        }
        self.paths.heartbeat(self.number, rank).write_text(json.dumps(beat))

    def stacks(self, rank: int, text: str) -> None:
        self.paths.stacks(self.number, rank).write_text(text)


def _derived() -> Derived:
    return make_derived(device="cuda", world_size=4, devices_per_node=2, total_steps=36)
