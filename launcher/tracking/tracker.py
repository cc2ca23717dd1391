"""The interface of a tracker. Each has its own file, `NAME_tracker.py`, for every `TrackerName` of the settings."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from launcher.config.schema import TrackConfig, TrackerName
from launcher.paths import RunPaths
from launcher.runs.metrics import Record, StepRecord

_NOT_SHOWN = ("step", "attempt", "time", "epoch_end")


@dataclass(slots=True)
class Cursor:
    """How far a tracker has been sent a run."""

    train_step: int = 0
    eval_step: int = 0
    closed: bool = False
    """True only after a clean end: a killed sender may have sent more or less than its cursor says."""


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """The run that a tracker opens."""

    paths: RunPaths
    folder: Path
    """The tracker's own folder in the run directory."""
    run_id: str
    track: TrackConfig
    settings: Mapping[str, object]
    """Configuration and derived values, without secrets."""
    destination: str
    training_pid: int | None
    """The process that trains; None for `launcher sync`."""


class Tracker(Protocol):
    """One open run in a tracker, the same for every attempt. Made only in the replay process."""

    title: ClassVar[str]
    url: str | None = None
    """Address of the run's page, if it has one."""
    is_new: bool
    """Whether the tracker held nothing of this run when it was opened."""

    def __init__(self, run: TrackedRun) -> None:
        """Opens the run, or makes it; ImportError without the package."""

    @classmethod
    def destination(cls, track: TrackConfig, environment: Mapping[str, str], *, syncing: bool = False) -> str | None:
        """Short name of the place the run is sent to, which has its own cursor; None sends nothing.

        Raises: UserError if `launcher sync` cannot reach it from here.
        """

    @classmethod
    def refusal(cls, error: Exception) -> str:
        """How to fix an error that another try would only repeat; empty for any other error."""
        return ""

    def recover(self) -> Cursor:
        """How far the tracker really got, for lack of a trusted cursor. It may delete its files and start over."""

    def log(self, records: Sequence[Record]) -> None:
        """Sends records in order of steps. On return they survive a kill of this process, or `recover` reports less."""

    def close(self, scores: Mapping[str, float], *, failed: bool) -> None:
        """Waits until everything is there."""


def load_tracker(name: str) -> type[Tracker]:
    """The class of a tracker; its package is imported only when a run is opened."""
    module = importlib.import_module(f"launcher.tracking.{name}_tracker")
    tracker: type[Tracker] = module.TRACKER
    return tracker


def chosen_trackers(track: TrackConfig) -> list[str]:
    """Names without repetition; W&B alone unless the user names others."""
    names = [TrackerName.wandb] if track.trackers is None else track.trackers
    return list(dict.fromkeys(name.value for name in names))


def flat(settings: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Nested settings as `section.name`, in order."""
    found: dict[str, object] = {}
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def group_of(record: Record) -> str:
    return "train" if isinstance(record, StepRecord) else "eval"


def values_of(record: Record) -> dict[str, float]:
    """The numbers of a record that trackers show, named `train/loss` and so on."""
    fields = asdict(record)
    fields = {**fields.pop("metrics", {}), **fields}
    return {f"{group_of(record)}/{name}": value for name, value in fields.items() if name not in _NOT_SHOWN}
