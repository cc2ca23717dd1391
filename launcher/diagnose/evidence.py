"""Everything an attempt left behind that can say why it ended."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.config.frozen import load_config
from launcher.config.schema import Derived, RunConfig
from launcher.diagnose.log_tail import read_tail
from launcher.diagnose.srun_messages import MessageKind, SlurmMessage, parse_messages
from launcher.errors import LauncherError
from launcher.files import find_record
from launcher.paths import RunPaths
from launcher.runs import jsonl
from launcher.runs.attempts import AttemptRecord, read_attempt
from launcher.runs.events import Event, read_events
from launcher.runs.hang_detector import Stall
from launcher.runs.heartbeat import Beat
from launcher.runs.metrics import parse_line
from launcher.runs.rank_end import RankEnd
from launcher.runs.redact import redacted

_METRICS_TAIL_BYTES = 256 * 1024
_NO_ROOM_BYTES = 64 * 2**20
_NO_ROOM_FILES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEnd:
    """The state of a job in Slurm, after its attempt ended."""

    state: str
    """As Slurm names it, such as RUNNING or PREEMPTED; empty where only `supervisor_lost` is known."""
    restarted: bool = False
    """Slurm has counted another start of it."""
    supervisor_lost: bool = False
    """The process that ran the attempt is gone and the job was started again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StarterReport:
    """Facts about an attempt that only the process that started its ranks knows."""

    exit_code: int | None
    """Of srun, or of the local starter; None: that process is gone too."""
    stopped_by: str = ""
    """user, or the name of the first stop signal."""
    stall: Stall | None = None
    """The rank that made no progress, for which all were ended."""
    exits: Sequence[tuple[int, int]] = ()
    """(rank, exit code; -N when signal N ended it) in the order they ended, where the starter saw them."""
    first_failed: tuple[int, int] | None = None
    """Of these, the first one that failed."""
    error: LauncherError | None = None
    """Of the starter itself, such as a lost host."""
    job: JobEnd | None = None
    """None where there is no job, or Slurm cannot be asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankEvidence:
    """Everything one rank left behind."""

    rank: int
    node: str
    end: RankEnd | None = None
    """None: it was killed, or never started."""
    log: str = ""
    """The end of its log."""
    stacks: str = ""
    """Python stacks it dumped because it made no progress."""
    beat: Beat | None = None
    """Its last heartbeat."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that is known of an attempt that has ended."""

    attempt: int
    run_name: str
    report: StarterReport
    record: AttemptRecord | None
    config: RunConfig | None
    derived: Derived | None
    exit_code: int | None
    """As reported, or as recorded."""
    messages: list[SlurmMessage]
    """Of srun and slurmd, in order."""
    starter_log: str
    slurm_state: str
    """The job's state as Slurm names it, such as PREEMPTED."""
    cancelled: bool
    """`launcher cancel` left its mark."""
    ranks: list[RankEvidence]
    events: list[Event]
    """Of this attempt."""
    step_start: int
    """Steps done when it began to train."""
    step_end: int
    checkpoint_before: int
    checkpoint_after: int
    checkpoint_time: str
    """When this attempt committed its newest checkpoint; empty without one."""
    started: str
    ended: str
    full: dict[str, float]
    """Free MiB, by folder, of file systems of the run with next to no room."""

    def messages_of(self, kind: MessageKind) -> list[SlurmMessage]:
        return [message for message in self.messages if message.kind is kind]


_SLURM_ENDS_JOBS = frozenset(
    {MessageKind.preempted, MessageKind.time_limit, MessageKind.node_failure, MessageKind.requeued}
)


def end_of_job(job: JobEnd | None, messages: Sequence[SlurmMessage]) -> str:
    """The state in which Slurm ends the job; empty while it runs, or where Slurm cannot be asked. Pure.

    While a job is taken apart Slurm says COMPLETING and not why. A job that it starts again has been counted as
    restarted by then; and it names reasons of its own in the log of the first rank, if that one's node hears of them.
    Where it does neither somebody called scancel, and then nothing may put the job back into the queue. What else ends
    a supervisor without a message and has the job started again is the loss of its node.
    """
    slurm_said_why = any(message.kind in _SLURM_ENDS_JOBS for message in messages)
    if job is None or job.state == "RUNNING":
        return ""
    if job.supervisor_lost:
        return "" if slurm_said_why else "NODE_FAIL"
    if job.state != "COMPLETING":
        return job.state
    if job.restarted:
        return "REQUEUED"
    return "" if slurm_said_why else "CANCELLED"


def collect(run_dir: Path, attempt: int, report: StarterReport) -> Evidence:
    """Reads what an attempt left behind. A part that is missing or damaged is left out; nothing is written."""
    paths = RunPaths(run_dir)
    record = read_attempt(run_dir, attempt)
    config, derived = _frozen(paths)
    world_size = derived.world_size if derived is not None else record.world_size if record is not None else 0
    ranks = [_rank(paths, attempt, number, record) for number in range(world_size)]
    starter_log = _tail(paths.job_log(attempt))
    # slurmd writes why it ends a step into the log of the step's first rank, not to srun.
    of_slurmd = [line for rank in ranks for line in rank.log.splitlines() if line.startswith("slurmstepd")]
    messages = parse_messages("\n".join([starter_log, *of_slurmd]))
    events = read_events(paths.events)
    mine = [event for event in events if event.attempt == attempt]
    saves = [(event, step) for event in events if (step := _step_of(event, "checkpoint")) is not None]
    before = [step for event, step in saves if event.attempt < attempt] + ([record.checkpoint_step] if record else [])
    checkpoint_before = max(before, default=-1)
    saved, saved_at = max(((step, event.time) for event, step in saves if event.attempt == attempt), default=(-1, ""))
    step_start = max((step for event in mine if (step := _step_of(event, "resume")) is not None), default=0)
    exit_code = report.exit_code if report.exit_code is not None or record is None else record.exit_code
    return Evidence(
        attempt=attempt,
        run_name=paths.root.name,
        report=report,
        record=record,
        config=config,
        derived=derived,
        exit_code=exit_code,
        messages=messages,
        starter_log=starter_log,
        slurm_state=end_of_job(report.job, messages).split(" ")[0].rstrip("+").upper(),
        cancelled=paths.cancel.exists(),
        ranks=ranks,
        events=mine,
        step_start=step_start,
        step_end=_last_step(paths, attempt, step_start),
        checkpoint_before=checkpoint_before,
        checkpoint_after=max(checkpoint_before, saved),
        checkpoint_time=saved_at,
        started=record.started if record is not None else mine[0].time if mine else "",
        ended=_ended(record, mine, ranks, report.exit_code),
        full=_full_file_systems(paths.root),
    )


def _frozen(paths: RunPaths) -> tuple[RunConfig | None, Derived | None]:
    try:
        frozen = load_config(paths.config)
    except LauncherError:
        return None, None
    return frozen.config, frozen.derived


def _rank(paths: RunPaths, attempt: int, number: int, record: AttemptRecord | None) -> RankEvidence:
    end = find_record(RankEnd, paths.rank_end(attempt, number))
    beat = find_record(Beat, paths.heartbeat(attempt, number))
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
    return redacted(read_tail(path))


def _step_of(event: Event, name: str) -> int | None:
    step = event.fields.get("step")
    return step if event.event == name and isinstance(step, int) and not isinstance(step, bool) else None


def _last_step(paths: RunPaths, attempt: int, step_start: int) -> int:
    """Steps done when the attempt ended; from the end of metrics.jsonl only."""
    size = paths.metrics.stat().st_size if paths.metrics.is_file() else 0
    lines, _ = jsonl.read_lines(paths.metrics, max(0, size - _METRICS_TAIL_BYTES))
    records = [record for line in lines if (record := parse_line(line)) is not None]
    return max((record.step for record in records if record.attempt == attempt), default=step_start)


def _ended(record: AttemptRecord | None, mine: list[Event], ranks: list[RankEvidence], exit_code: int | None) -> str:
    """When the attempt ended: as recorded; now, if its starter reports it; or its last sign of life."""
    if record is not None and record.ended:
        return record.ended
    if exit_code is not None:
        return jsonl.utc_now()
    signs = [event.time for event in mine if event.rank >= 0]
    signs += [rank.end.time for rank in ranks if rank.end is not None]
    return max(signs, default=mine[-1].time if mine else "")


def _full_file_systems(root: Path) -> dict[str, float]:
    """Those of the run folder, of temporary files and of shared memory that have next to no room left here."""
    found: dict[int, tuple[str, float]] = {}
    for path in (root, Path(os.environ.get("TMPDIR") or "/tmp"), Path("/dev/shm")):
        try:
            device, free, counted = path.stat().st_dev, shutil.disk_usage(path).free, os.statvfs(path)
        except OSError:
            continue
        if free < _NO_ROOM_BYTES or (counted.f_files > 0 and counted.f_favail < _NO_ROOM_FILES):
            found.setdefault(device, (str(path), free / 2**20))
    return dict(found.values())
