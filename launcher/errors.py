"""Every error a user can meet, and the exit code each one maps to.

LauncherError                 exit 1   a bug or an unexpected failure
|-- UserError                 exit 2   the user must change something
|   |-- ConfigErrors          exit 2   one or more configuration problems, all reported at once
|   |-- DataError             exit 2   the examples cannot be used as they are
|   |-- ModelError            exit 2   the model cannot be found or used
|   `-- RunError              exit 2   the run directory is missing, finished, busy or from another configuration
|-- CheckpointError           exit 3   no checkpoint that can be trusted, or a save that failed
|   `-- SupersededError       exit 6   a newer attempt of the run exists; this one may not publish
|-- WorldError                exit 4   the ranks that met are not the ranks that were planned
|   `-- DeviceError           exit 4   a rank finds no GPU of its own on its node
|-- NonFiniteError            exit 5   loss or gradient is NaN or infinite
|-- SlurmError                exit 8   the cluster did not answer, or refused to (slurm/client/query.py)
`-- Preempted                 exit 75  saved at a step edge; start me again

A rank that hangs raises nothing: whoever watches it ends the run with exit 7. A job that stops because its attempts won
nothing, or were too many, exits with 9.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


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


class LauncherError(Exception):
    """Base of all errors this program raises on purpose."""

    exit_code = ExitCode.BUG


class UserError(LauncherError):
    """What the user gave cannot work; the message says what to change."""

    exit_code = ExitCode.USER


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: where, the value seen, why, and what to do about it."""

    key: str
    value: object
    why: str
    todo: str = ""

    def __str__(self) -> str:
        text = f"{self.key} = {self.value!r}: {self.why}"
        return f"{text}. {self.todo}" if self.todo else text


class ConfigErrors(UserError):
    """All configuration problems found, at once."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        super().__init__("\n".join(str(problem) for problem in problems))


class DataError(UserError):
    """The data cannot be used; `problems` lists every finding with its place."""

    def __init__(self, message: str, problems: list[Problem] | None = None) -> None:
        self.problems = problems or []
        super().__init__("\n".join([message, *(f"  - {problem}" for problem in self.problems)]))


class ModelError(UserError):
    """The model cannot be found, loaded or used with this configuration."""


class RunError(UserError):
    """The run directory cannot be used for what was asked."""


class CheckpointError(LauncherError):
    """A checkpoint is missing, damaged, of another run, or could not be written."""

    exit_code = ExitCode.CHECKPOINT


class SupersededError(CheckpointError):
    """This attempt is no longer the newest of its run and may not publish a checkpoint."""

    exit_code = ExitCode.SUPERSEDED


class WorldError(LauncherError):
    """The processes that met are not those that were planned."""

    exit_code = ExitCode.WORLD


class DeviceError(WorldError):
    """A rank finds fewer GPUs on its node than there are ranks."""


class NonFiniteError(LauncherError):
    """Loss or gradient is not finite; `sample_ids` are the examples of that optimizer step."""

    exit_code = ExitCode.NON_FINITE

    def __init__(self, message: str, *, step: int, sample_ids: list[int]) -> None:
        self.step = step
        self.sample_ids = sample_ids
        super().__init__(message)


class Preempted(LauncherError):
    """A stop was asked for and the state was saved at a step edge."""

    exit_code = ExitCode.PREEMPTED
