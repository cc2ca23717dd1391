"""Everything an attempt left behind that can say why it ended, gathered for `verdict.judge`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.config.frozen import load_config
from launcher.config.schema import Derived, RunConfig
from launcher.diagnose.log_tail import read_tail
from launcher.diagnose.srun_messages import StarterFact, Word, starter_facts
from launcher.errors import LauncherError
from launcher.paths import RunPaths
from launcher.runs import jsonl
from launcher.runs.attempts import AttemptRecord, read_attempt
from launcher.runs.events import Event, parse_event
from launcher.runs.heartbeat import Beat, read_beat
from launcher.runs.metrics import parse_record
from launcher.runs.rank_end import RankEnd, read_rank_end
from launcher.runs.redact import redacted_text

if TYPE_CHECKING:
    from launcher.runs.hang_detector import Stall

_METRICS_TAIL_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class RankEvidence:
    """What one rank left behind."""

    rank: int
    node: str
    end: RankEnd | None = None
    """Its last word; None: it was killed, or never started."""
    log: str = ""
    """The end of its log."""
    stacks: str = ""
    """Python stacks it dumped because it made no progress."""
    beat: Beat | None = None
    """What it did last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FreeSpace:
    """Room on a file system the run writes to."""

    path: str
    free_bytes: int
    free_files: int | None
    """None where the file system does not count them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that is known of an attempt that has ended."""

    attempt: int
    run_name: str
    record: AttemptRecord | None = None
    config: RunConfig | None = None
    derived: Derived | None = None
    exit_code: int | None = None
    """What the starter saw: of srun, or of the local starter."""
    exits: list[tuple[int, int]] = field(default_factory=list)
    """(rank, exit code; -N when signal N ended it) in the order they ended, where the starter saw them."""
    words: list[StarterFact] = field(default_factory=list)
    """What srun and slurmd said, in order."""
    starter_log: str = ""
    slurm_state: str = ""
    """Slurm's own word for the job's state, such as PREEMPTED."""
    stopped_by: str = ""
    """Who stopped it, as the starter knows: user, preemption, time limit, or the name of a signal."""
    cancelled: bool = False
    """`launcher cancel` left its mark."""
    stall: Stall | None = None
    starter_error: LauncherError | None = None
    """What the starter itself ran into, such as another host of the run that went away."""
    ranks: list[RankEvidence] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    """Of this attempt."""
    step_start: int = 0
    step_end: int = 0
    checkpoint_before: int = -1
    checkpoint_after: int = -1
    checkpoint_time: str = ""
    """When this attempt committed its newest checkpoint; empty without one."""
    started: str = ""
    ended: str = ""
    full: list[FreeSpace] = field(default_factory=list)
    """File systems of the run with next to no room."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEnd:
    """What Slurm says of a job whose attempt has ended."""

    state: str
    """Slurm's word, such as RUNNING or PREEMPTED; empty where only `supervisor_lost` is known."""
    restarted: bool = False
    """Slurm has counted another start of it."""
    supervisor_lost: bool = False
    """The process that ran the attempt is gone and the job was started again."""


_SLURM_ENDS_JOBS = frozenset({Word.preempted, Word.time_limit, Word.node_failure, Word.requeued})


def end_of_job(job: JobEnd | None, facts: Sequence[StarterFact]) -> str:
    """Slurm's word for how the job itself ends; empty while it goes on, or where Slurm cannot be asked. Pure.

    While a job is taken apart Slurm says COMPLETING and not why. A job that it starts again has been counted as
    restarted by then; and it names reasons of its own in the log of the first rank, if that one's node hears of them.
    Where it does neither somebody called scancel, and then nothing may put the job back into the queue. What else ends
    a supervisor without a word and has the job started again is the loss of its node.
    """
    slurm_said_why = any(fact.word in _SLURM_ENDS_JOBS for fact in facts)
    if job is None or job.state == "RUNNING":
        return ""
    if job.supervisor_lost:
        return "" if slurm_said_why else "NODE_FAIL"
    if job.state != "COMPLETING":
        return job.state
    if job.restarted:
        return "REQUEUED"
    return "" if slurm_said_why else "CANCELLED"


def collect(
    run_dir: Path,
    attempt: int,
    *,
    exit_code: int | None,
    starter_log: str = "",
    job: JobEnd | None = None,
    stopped_by: str = "",
    stall: Stall | None = None,
    starter_error: LauncherError | None = None,
    exits: Sequence[tuple[int, int]] = (),
) -> Evidence:
    """Reads what an attempt left behind. A part that is missing or damaged is left out; nothing is written.

    Args:
        exit_code: what the starter saw: of srun, or of the local starter; None when nobody saw the end.
        starter_log: what srun said; left out, it is read from job.log.
        job: what Slurm says of the job; None where it cannot be asked.
        stopped_by: user, preemption, time limit, or the name of the signal the starter got; empty without one.
        stall: what the watcher saw, when it ended the attempt because of a hang.
        starter_error: what the starter itself ran into.
        exits: (rank, exit code; -N when signal N ended it), in the order they ended, where the starter saw them.
    """
    paths = RunPaths(run_dir)
    record = read_attempt(run_dir, attempt)
    config, derived = _frozen(paths)
    said = starter_log or _tail(paths.job_log(attempt))
    world_size = derived.world_size if derived is not None else record.world_size if record is not None else 0
    ranks = [_rank(paths, attempt, number, record) for number in range(world_size)]
    facts = starter_facts("\n".join([said, *_said_in_logs(ranks)]))
    events = _events(paths)
    mine = [event for event in events if event.attempt == attempt]
    before, after, saved_at = _checkpoints(events, attempt, record)
    started = record.started if record is not None else mine[0].time if mine else ""
    step_start, step_end = _steps(paths, attempt, mine)
    return Evidence(
        attempt=attempt,
        run_name=paths.root.name,
        record=record,
        config=config,
        derived=derived,
        exit_code=exit_code if exit_code is not None or record is None else record.exit_code,
        exits=list(exits),
        words=facts,
        starter_log=said,
        slurm_state=end_of_job(job, facts).split(" ")[0].rstrip("+").upper(),
        stopped_by=stopped_by,
        cancelled=paths.cancel.exists(),
        stall=stall,
        starter_error=starter_error,
        ranks=ranks,
        events=mine,
        step_start=step_start,
        step_end=step_end,
        checkpoint_before=before,
        checkpoint_after=after,
        checkpoint_time=saved_at,
        started=started,
        ended=_ended(record, mine, ranks, exit_code),
        full=full_file_systems(paths.root),
    )


def _frozen(paths: RunPaths) -> tuple[RunConfig | None, Derived | None]:
    try:
        frozen = load_config(paths.config)
    except LauncherError:
        return None, None
    return frozen.config, frozen.derived


def _rank(paths: RunPaths, attempt: int, number: int, record: AttemptRecord | None) -> RankEvidence:
    end = read_rank_end(paths.rank_end(attempt, number))
    beat = read_beat(paths.heartbeat(attempt, number))
    host = end.host if end is not None else beat.host if beat is not None else ""
    return RankEvidence(
        rank=number,
        node=record.node_of(number) if record is not None else host,
        end=end,
        log=_tail(paths.rank_log(attempt, number)),
        stacks=_tail(paths.stacks(attempt, number)),
        beat=beat,
    )


def _tail(path: Path) -> str:
    """The end of a log without secrets: whatever a library printed, a verdict is read by more people than a log."""
    return redacted_text(read_tail(path), os.environ)


def _said_in_logs(ranks: list[RankEvidence]) -> list[str]:
    """slurmd writes why it ends a step into the log of the step's first rank, not to srun."""
    return [line for rank in ranks for line in rank.log.splitlines() if line.startswith("slurmstepd")]


def _events(paths: RunPaths) -> list[Event]:
    lines, _ = jsonl.read_lines(paths.events)
    return [event for line in lines if (event := parse_event(line)) is not None]


def _checkpoints(events: list[Event], attempt: int, record: AttemptRecord | None) -> tuple[int, int, str]:
    """Newest committed step before the attempt and after it, and when the attempt committed its newest."""
    committed = [(event, step) for event in events if (step := _step_of(event, "checkpoint")) is not None]
    before = max((step for event, step in committed if event.attempt < attempt), default=-1)
    if record is not None:
        before = max(before, record.checkpoint_step)
    mine = [(step, event.time) for event, step in committed if event.attempt == attempt]
    after, saved_at = max(mine, default=(-1, ""))
    return before, max(before, after), saved_at


def _step_of(event: Event, name: str) -> int | None:
    step = event.fields.get("step")
    return step if event.event == name and isinstance(step, int) and not isinstance(step, bool) else None


def _steps(paths: RunPaths, attempt: int, mine: list[Event]) -> tuple[int, int]:
    """Steps done when the attempt began to train, and when it ended; from the end of metrics.jsonl only."""
    start = max((step for event in mine if (step := _step_of(event, "resume")) is not None), default=0)
    size = paths.metrics.stat().st_size if paths.metrics.is_file() else 0
    lines, _ = jsonl.read_lines(paths.metrics, max(0, size - _METRICS_TAIL_BYTES))
    records = [record for line in lines if (record := parse_record(line)) is not None]
    return start, max((record.step for record in records if record.attempt == attempt), default=start)


def _ended(record: AttemptRecord | None, mine: list[Event], ranks: list[RankEvidence], exit_code: int | None) -> str:
    """When the attempt ended: as recorded, else now if its starter tells, else its last sign of life."""
    if record is not None and record.ended:
        return record.ended
    if exit_code is not None:
        return jsonl.utc_now()
    signs = [event.time for event in mine if event.rank >= 0]
    signs += [rank.end.time for rank in ranks if rank.end is not None]
    return max(signs, default=mine[-1].time if mine else "")


def full_file_systems(root: Path) -> list[FreeSpace]:
    """Those of the run folder, of temporary files and of shared memory that have next to no room left here."""
    found: dict[int, FreeSpace] = {}
    for path in (root, Path(os.environ.get("TMPDIR") or "/tmp"), Path("/dev/shm")):
        try:
            device, usage, counted = path.stat().st_dev, shutil.disk_usage(path), os.statvfs(path)
        except OSError:
            continue
        files = counted.f_favail if counted.f_files else None
        if usage.free < _NO_ROOM_BYTES or (files is not None and files < _NO_ROOM_FILES):
            found.setdefault(device, FreeSpace(path=str(path), free_bytes=usage.free, free_files=files))
    return list(found.values())


_NO_ROOM_BYTES = 64 * 2**20
_NO_ROOM_FILES = 64
