"""The run and checkpoint that an export reads, and the facts about its result."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from launcher.checkpoint.commit import Checkpoint, newest_verified
from launcher.config.frozen import load_prepared
from launcher.config.model_files import ModelSource, model_source
from launcher.config.schema import Derived, MethodKind, RunConfig
from launcher.errors import RunError
from launcher.paths import RunPaths
from launcher.runs.events import written_manifests


@dataclass(frozen=True, slots=True)
class ExportInfo:
    """Result of an export, or with `dry_run` of one that would be made."""

    path: Path
    step: int
    method: str
    merged: bool
    dtype: str
    num_tensors: int
    num_parameters: int
    base_model: str
    size_bytes: int = 0
    files: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class ExportSource:
    """A run and the checkpoint of it that is exported."""

    paths: RunPaths
    config: RunConfig
    derived: Derived
    checkpoint: Checkpoint

    @property
    def is_adapter(self) -> bool:
        return self.config.method.kind is not MethodKind.full

    @property
    def base_dir(self) -> Path:
        return Path(self.derived.model_dir)

    @property
    def base_name(self) -> str:
        """The Hub name of the base, which loads it on any host; without one, its folder here."""
        name = self.config.model.name_or_path
        return name if model_source(name) is ModelSource.hub else str(self.base_dir.resolve())


def open_source(run_dir: Path, step: int | None = None) -> ExportSource:
    """The run and its newest trustworthy checkpoint, or that of `step`.

    Raises: RunError: no run, or no checkpoint yet. CheckpointError: none that can be trusted.
    """
    paths = RunPaths(run_dir)
    config, derived = load_prepared(paths.config)
    # Reading some shards unpickles them, so only checkpoints that this run says it wrote are opened.
    written = written_manifests(paths.events)
    checkpoint = newest_verified(run_dir, run_id=derived.run_id, trusted=written, step=step)
    if checkpoint is None:
        raise RunError(
            f"{run_dir} has no checkpoint yet. Let it train to its first save (launcher status {run_dir.name}), "
            f"or continue it: launcher train --run {run_dir.name}"
        )
    return ExportSource(paths=paths, config=config, derived=derived, checkpoint=checkpoint)


def cached_folder(source: ExportSource, *, merge: bool) -> Path:
    """Folder of the run's own export of that checkpoint, made or not."""
    suffix = "-merged" if source.is_adapter and merge else ""
    return source.paths.export / f"step-{source.checkpoint.step:06d}{suffix}"
