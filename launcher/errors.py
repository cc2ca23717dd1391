"""Every error of the project: its fields, its exit code and the class of failure that the verdict takes from it.

LauncherError                 exit 1   a bug or an unexpected failure
|-- UserError                 exit 2   the user must change something
|   |-- ConfigErrors          exit 2   one or more configuration problems, all reported at once
|   |-- DataError             exit 2   the examples cannot be used as they are
|   |   `-- NotFetched        exit 2   a Hub dataset is not in the cache yet
|   |-- ModelError            exit 2   the model cannot be found or used
|   |-- RunError              exit 2   the run directory is missing, finished, busy or from another configuration
|   |-- TorchLacksGpu         exit 2   the host has GPUs that this build of torch cannot use
|   |-- MicroBatchTooLarge    exit 2   the heaviest micro-batch does not fit into GPU memory
|   `-- NothingQueued         exit 2   sbatch refused, and no job of the run was ever in the queue
|-- RecordError               exit 1   a file of a run does not hold what it should
|-- CheckpointError           exit 3   no checkpoint that can be trusted, or a save that failed
|   |-- SaveFailed            exit 3   a rank could not write its files of a checkpoint
|   |-- ConfigMismatch        exit 3   the checkpoint is of other settings than config.yaml
|   `-- SupersededError       exit 6   a newer attempt of the run exists; this one may not publish
|-- WorldError                exit 4   the ranks that met are not the ranks that were planned
|   |-- RanksMissing          exit 4   ranks missed the rendezvous, or left it
|   |-- RendezvousFailed      exit 4   the ranks cannot reach each other, and none is known to be missing
|   |-- HostNotStarted        exit 4   the remote shell to a host of the run ended before it joined
|   |-- HostLost              exit 4   a host of the run went silent, or its ranks failed
|   `-- DeviceError           exit 4   a rank finds no GPU of its own on its node
|-- NonFiniteError            exit 5   loss or gradient is NaN or infinite
|-- RankHung                  exit 7   a rank made no progress and ended itself
|-- SlurmError                exit 8   Slurm refused what was asked of it
|   |-- UnknownJob            exit 8   Slurm does not know the job
|   `-- SlurmUnavailable      exit 8   Slurm cannot be asked at the moment
|       `-- SlurmMissing      exit 2   Slurm is not installed here
|-- Preempted                 exit 75  saved at a step edge; start me again
`-- ErrorOnMain               (as on rank 0)  what rank 0 raised, on the other ranks

ExampleError, BrokenJson and ProbeError stand apart: `data` catches them and turns them into findings.

A starter that watches the ranks ends a hung run with exit 7 itself. A job that stops because its attempts made no
progress, or were too many, exits with 9.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from pathlib import Path
from typing import ClassVar


class ExitCode(IntEnum):
    """Process exit codes; the only place they are named."""

    DONE = 0
    BUG = 1
    USER = 2
    CHECKPOINT = 3
    WORLD = 4
    NON_FINITE = 5
    SUPERSEDED = 6
    HANG = 7
    UNAVAILABLE = 8
    GAVE_UP = 9
    PREEMPTED = 75
    INTERRUPTED = 130


class VerdictClass(Enum):
    """Why an attempt ended."""

    done = "done"
    preempted = "preempted"
    timeout = "timeout"
    cancelled = "cancelled"
    node_failure = "node_failure"
    rendezvous = "rendezvous"
    hang = "hang"
    out_of_memory_host = "out_of_memory_host"
    out_of_memory_gpu = "out_of_memory_gpu"
    non_finite = "non_finite"
    configuration = "configuration"
    data = "data"
    disk = "disk"
    checkpoint = "checkpoint"
    superseded = "superseded"
    bug = "bug"


class LauncherError(Exception):
    """Base of all errors raised on purpose. Decisions depend on the class and `data`, never on the message."""

    exit_code = ExitCode.BUG
    failure: ClassVar[VerdictClass | None] = None
    """Verdict class of an attempt in which a rank raises this; None: depends on the cause."""
    public_name: ClassVar[str] = ""
    """Name in JSON output and events if scripts know a broader class; empty: the class name."""

    def __init__(self, message: str, **data: object) -> None:
        super().__init__(message)
        self.data = data
        """The fields, fit for JSON; a rank's exit record holds them."""
        self.kind = type(self).__name__
        """Name of the class; records hold it, so it must not change."""


def public_name(error: BaseException) -> str:
    """The class of an error as users see it in JSON output, events and records."""
    return (isinstance(error, LauncherError) and type(error).public_name) or type(error).__name__


class UserError(LauncherError):
    """The user must change something; the message says what."""

    exit_code = ExitCode.USER
    failure = VerdictClass.configuration


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: where, the value seen, why, and what to do about it."""

    key: str
    value: object
    why: str
    hint: str = field(default="", metadata={"json": "todo"})

    def __str__(self) -> str:
        text = f"{self.key} = {self.value!r}: {self.why}"
        return f"{text}. {self.hint}" if self.hint else text


class ConfigErrors(UserError):
    """All configuration problems found, at once."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        super().__init__("\n".join(map(str, problems)), settings=[problem.key for problem in problems])


class DataError(UserError):
    """The data cannot be used; `problems` lists every finding with its location."""

    failure = VerdictClass.data

    def __init__(self, message: str, problems: list[Problem] | None = None) -> None:
        self.problems = problems or []
        super().__init__("\n".join([message, *(f"  - {problem}" for problem in self.problems)]))


class NotFetched(DataError):
    """A Hub dataset is not in the cache, and the caller did not allow a download."""


class ModelError(UserError):
    """The model cannot be found, loaded or used with this configuration."""


class RunError(UserError):
    """The run directory cannot be used for what was asked."""


class TorchLacksGpu(UserError):
    """torch cannot use the GPUs of this host: another build of torch, a newer driver or a GPU for the job helps."""


class MicroBatchTooLarge(UserError):
    """The heaviest micro-batch of an epoch does not fit into GPU memory."""

    failure = VerdictClass.out_of_memory_gpu
    public_name = "UserError"

    def __init__(self, message: str, *, tokens: int) -> None:
        super().__init__(message, tokens=tokens)


class NothingQueued(UserError):
    """sbatch refused, and no job of the run was ever in the queue."""


class RecordError(LauncherError):
    """A file that the launcher wrote does not hold what it should: which file and key, and why."""

    def __init__(self, path: Path | str, key: str, why: str) -> None:
        text = ": ".join(part for part in (str(path), " ".join(part for part in (key, why) if part)) if part)
        super().__init__(text, path=str(path), key=key)


class CheckpointError(LauncherError):
    """A checkpoint is missing, damaged, of another run, or could not be written."""

    exit_code = ExitCode.CHECKPOINT
    failure = VerdictClass.checkpoint


class SaveFailed(CheckpointError):
    """Ranks could not write their files of a checkpoint; `rank`, `errno` and `path` are those of the first one."""

    failure = VerdictClass.disk
    public_name = "CheckpointError"

    def __init__(self, message: str, *, step: int, rank: int, errno: int | None, path: str) -> None:
        super().__init__(message, step=step, rank=rank, errno=errno, path=path)


class ConfigMismatch(CheckpointError):
    """A checkpoint was written with other settings than the run has now; `differing` names them."""

    failure = VerdictClass.configuration
    public_name = "CheckpointError"

    def __init__(self, message: str, *, path: str, differing: Sequence[str]) -> None:
        super().__init__(message, path=path, differing=list(differing))


class SupersededError(CheckpointError):
    """A newer attempt of the run exists, so this one may not publish a checkpoint."""

    exit_code = ExitCode.SUPERSEDED
    failure = VerdictClass.superseded


class WorldError(LauncherError):
    """The ranks that met are not the ranks that were planned."""

    exit_code = ExitCode.WORLD
    failure = VerdictClass.rendezvous


class RanksMissing(WorldError):
    """Ranks missed the rendezvous, or left it; the first of them is blamed."""

    public_name = "WorldError"

    def __init__(self, message: str, *, ranks: Sequence[int]) -> None:
        super().__init__(message, ranks=list(ranks))


class RendezvousFailed(WorldError):
    """This rank cannot reach the others, though none is known to be missing."""

    public_name = "WorldError"

    def __init__(self, message: str, *, rank: int) -> None:
        super().__init__(message, rank=rank)


class HostNotStarted(WorldError):
    """The remote shell to a host ended before the host joined; `output` is the last it printed."""

    public_name = "WorldError"

    def __init__(self, message: str, *, node: str, output: str) -> None:
        super().__init__(message, node=node, output=output)


class HostLost(WorldError):
    """Another host of the run went silent (`silent_s`), or its ranks ended badly (`exit_code` of that host)."""

    public_name = "WorldError"

    def __init__(self, message: str, *, node: str, silent_s: float | None = None, code: int | None = None) -> None:
        super().__init__(message, node=node, silent_s=silent_s, code=code)

    @property
    def is_silent(self) -> bool:
        """Whether the host itself is gone, not just its ranks."""
        return self.data["silent_s"] is not None


class DeviceError(WorldError):
    """A rank finds fewer GPUs on its node than there are ranks."""

    failure = VerdictClass.node_failure


class NonFiniteError(LauncherError):
    """Loss or gradient is not finite; `sample_ids` are the examples of that optimizer step."""

    exit_code = ExitCode.NON_FINITE
    failure = VerdictClass.non_finite

    def __init__(self, message: str, *, step: int, sample_ids: Sequence[int]) -> None:
        super().__init__(message, step=step, sample_ids=list(sample_ids))


class RankHung(LauncherError):
    """A rank made no progress for longer than its phase may take."""

    exit_code = ExitCode.HANG
    failure = VerdictClass.hang
    public_name = "Hang"

    def __init__(self, message: str, *, phase: str, silent_s: float, limit_s: float) -> None:
        super().__init__(message, phase=phase, silent_s=silent_s, limit_s=limit_s)


class SlurmError(LauncherError):
    """Slurm refused what was asked of it; the message is Slurm's own."""

    exit_code = ExitCode.UNAVAILABLE


class UnknownJob(SlurmError):
    """Slurm does not know the job: it never existed, or ended too long ago."""

    public_name = "SlurmError"


class SlurmUnavailable(SlurmError):
    """Slurm cannot be asked: a tool is missing here, or the controller does not answer."""


class SlurmMissing(SlurmUnavailable):
    """The Slurm tools are not installed here; a retry does not help."""

    exit_code = ExitCode.USER


TIME_LIMIT = "time limit"
"""`stopped_by` of a rank that stops because the job's time runs out; otherwise a signal's name, or empty."""


class Preempted(LauncherError):
    """A stop was asked for and the state was saved at a step edge."""

    exit_code = ExitCode.PREEMPTED
    failure = VerdictClass.preempted

    def __init__(self, message: str, *, stopped_by: str | None = None) -> None:
        super().__init__(message, stopped_by=stopped_by or "")


class ErrorOnMain(LauncherError):
    """Raised on the other ranks when rank 0 fails, with the class, fields and exit code of its error."""

    def __init__(self, message: str, exit_code: ExitCode, kind: str, data: Mapping[str, object]) -> None:
        super().__init__(message, **data)
        self.exit_code = exit_code
        self.kind = kind


class ExampleError(Exception):
    """One record cannot be used: the audit code, and why."""

    def __init__(self, code: str, why: str) -> None:
        self.code = code
        self.why = why
        super().__init__(code, why)

    def __str__(self) -> str:
        return f"{self.code}: {self.why}"


class BrokenJson(Exception):
    """A text is not JSON: why, and in which line."""

    def __init__(self, line: int, why: str) -> None:
        self.line = line
        super().__init__(why)


class ProbeError(Exception):
    """A chat template cannot be used for tuning."""


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, what it was raised from, and so on."""
    while error is not None:
        yield error
        error = error.__cause__


def _subclasses(base: type[LauncherError]) -> Iterator[type[LauncherError]]:
    yield base
    for child in base.__subclasses__():
        yield from _subclasses(child)


OUR_ERRORS: Mapping[str, type[LauncherError]] = {error.__name__: error for error in _subclasses(LauncherError)}
"""All of them, by the name that records hold."""
