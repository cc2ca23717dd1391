"""The commit protocol: a checkpoint appears whole, by one rename, or not at all. Pure file work, no torch.

    staging folder -> every rank writes, fsyncs and describes its files -> rank 0 writes the manifest -> fsync
    -> the manifest's hash goes into the journal -> one rename -> fsync of the parent -> LATEST (a hint) -> prune

A crash at any point leaves the old checkpoints as they were; what it leaves besides is a dotted folder that is never
read and that the next save removes.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
from collections.abc import Callable, Container, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from launcher.checkpoint.manifest import MANIFEST, Manifest, damage, read_manifest
from launcher.errors import CheckpointError, SupersededError
from launcher.paths import RunPaths

logger = logging.getLogger(__name__)

_STEP_NAME = re.compile(r"step-(\d{6,})")
_STAGING_NAME = re.compile(r"\.staging-\d{6,}-(\d{4,})")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A committed checkpoint: its folder and manifest. Files are not verified yet."""

    path: Path
    manifest: Manifest

    @property
    def step(self) -> int:
        return self.manifest.step


def step_dir(checkpoints: Path, step: int) -> Path:
    return checkpoints / f"step-{step:06d}"


def fsync_dir(path: Path) -> None:
    """Makes the names inside a folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def begin(run: RunPaths, step: int, attempt: int) -> Path:
    """An empty staging folder; leftovers of earlier, unfinished saves are removed first. Ranks: 0.

    Raises: SupersededError.
    """
    run.checkpoints.mkdir(exist_ok=True)
    fence(run, attempt)
    staging = run.checkpoints / f".staging-{step:06d}-{attempt:04d}"
    staging.mkdir()
    return staging


def fence(run: RunPaths, attempt: int) -> None:
    """From here on no older attempt can publish, at whatever moment it was stopped and goes on. Ranks: 0.

    What it had staged is taken away in one step, so that a rename it was about to make finds nothing; what it stages
    from now on it is refused to publish. What a newer attempt stages is left alone.

    Raises: SupersededError.
    """
    refuse_if_superseded(run, attempt)
    for leftover in run.checkpoints.glob(".*"):
        staged = _STAGING_NAME.fullmatch(leftover.name)
        if staged is not None and int(staged[1]) <= attempt:
            trash = run.checkpoints / f".trash-{leftover.name[1:]}"
            shutil.rmtree(trash, ignore_errors=True)
            with suppress(FileNotFoundError):
                leftover.rename(trash)
            shutil.rmtree(trash, ignore_errors=True)
        elif leftover.name.startswith(".trash-"):
            shutil.rmtree(leftover, ignore_errors=True)


def refuse_if_superseded(run: RunPaths, attempt: int) -> None:
    """Fence: an attempt that is no longer the newest may not publish.

    Raises: SupersededError.
    """
    newest = run.newest_attempt()
    if newest > attempt:
        raise SupersededError(f"attempt {attempt} was superseded by attempt {newest} and may not publish a checkpoint")


def is_superseded(run: RunPaths, attempt: int) -> bool:
    """Whether a newer attempt of the run exists."""
    return run.newest_attempt() > attempt


def publish(
    run: RunPaths,
    staging: Path,
    manifest: Manifest,
    *,
    journal: Callable[[str], None] = lambda sha256: None,
    trusted: Container[str] | None = None,
) -> Checkpoint:
    """Turns a full staging folder into a checkpoint. Ranks: 0, after it has gathered every rank's entries.

    Args:
        journal: told the manifest's sha256 before the rename, so that a reader can tell this run's from planted ones.
        trusted: as in `verify`: what stands in the way of this step and could not be loaded is replaced.
    Raises: SupersededError.
    """
    text = manifest.to_json().encode()
    with (staging / MANIFEST).open("wb") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    for folder in {(staging / entry.name).parent for entry in manifest.files} | {staging}:
        fsync_dir(folder)
    refuse_if_superseded(run, manifest.attempt)
    journal(hashlib.sha256(text).hexdigest())
    final = step_dir(run.checkpoints, manifest.step)
    trash = run.checkpoints / f".trash-{final.name}-{manifest.attempt:04d}"
    if final.exists():
        # This step was committed before. Whole: it stays, because swapping two folders is not one atomic act.
        # Damaged or planted, and so the reason why the run fell back behind it: it goes.
        existing = next((c for c in committed(run) if c.path == final), None)
        if existing is not None and not verify(existing, run_id=manifest.run_id, trusted=trusted):
            shutil.rmtree(staging)
            return existing
        _set_aside(final, trash, manifest.attempt)
    staging.rename(final)
    fsync_dir(run.checkpoints)
    shutil.rmtree(trash, ignore_errors=True)
    _point_latest(run.checkpoints, final.name)
    return Checkpoint(path=final, manifest=manifest)


def _set_aside(final: Path, trash: Path, attempt: int) -> None:
    """Takes a checkpoint away that could not be loaded, unless a newer attempt has put a better one there meanwhile.

    Raises: SupersededError.
    """
    final.rename(trash)
    try:
        newer = read_manifest(trash).attempt > attempt
    except CheckpointError:
        newer = False
    if newer:
        trash.rename(final)
        raise SupersededError(f"{final} was published by a newer attempt than {attempt}, which may not replace it")


def _point_latest(checkpoints: Path, name: str) -> None:
    temporary = checkpoints / ".LATEST.new"
    try:
        temporary.write_text(name + "\n", encoding="utf-8")
        temporary.replace(checkpoints / "LATEST")
    except OSError as error:
        # The checkpoint is committed by now; a hint that cannot be written must not call it failed.
        logger.warning("LATEST could not be written: %s", error)


def committed(run: RunPaths) -> list[Checkpoint]:
    """Checkpoints with a readable manifest, newest first. LATEST is not asked: it is only a hint for people."""
    found: list[Checkpoint] = []
    for path in sorted(run.checkpoints.glob("step-*")):
        match = _STEP_NAME.fullmatch(path.name)
        if match is None or path.is_symlink() or not path.is_dir():
            continue
        try:
            manifest = read_manifest(path)
        except CheckpointError as error:
            logger.warning("checkpoint ignored: %s", error)
            continue
        if manifest.step != int(match[1]):
            logger.warning("checkpoint ignored: %s holds the manifest of step %d", path, manifest.step)
            continue
        found.append(Checkpoint(path=path, manifest=manifest))
    return sorted(found, key=lambda c: c.step, reverse=True)


def verify(checkpoint: Checkpoint, *, run_id: str | None = None, trusted: Container[str] | None = None) -> list[str]:
    """Everything that speaks against loading this checkpoint; empty when it may be loaded.

    Args:
        run_id: the run it must belong to.
        trusted: sha256 of manifests this run wrote (from its journal); None asks for no journal.
    """
    if run_id is not None and checkpoint.manifest.run_id != run_id:
        return [f"it belongs to run {checkpoint.manifest.run_id}, not to {run_id}"]
    if trusted is not None:
        sha256 = hashlib.sha256((checkpoint.path / MANIFEST).read_bytes()).hexdigest()
        if sha256 not in trusted:
            return ["its manifest was not written by this run"]
    return damage(checkpoint.path, checkpoint.manifest)


def newest_verified(
    run_dir: Path, *, run_id: str | None = None, trusted: Container[str] | None = None, step: int | None = None
) -> Checkpoint | None:
    """The newest checkpoint whose every byte is as it was written; damaged ones are named in the log and passed over.

    Args:
        step: only this step; then a missing or damaged one is an error, never a fall-back.
    Returns: None when the run has no checkpoint at all.
    Raises: CheckpointError when there are checkpoints but none can be trusted. Ranks: 0.
    """
    candidates = committed(RunPaths(run_dir))
    if step is not None:
        candidates = [c for c in candidates if c.step == step]
        if not candidates:
            raise CheckpointError(f"{run_dir}: there is no checkpoint of step {step}")
    refused: list[str] = []
    for checkpoint in candidates:
        problems = verify(checkpoint, run_id=run_id, trusted=trusted)
        if not problems:
            return checkpoint
        refused.append(f"{checkpoint.path.name}: {'; '.join(problems[:3])}")
        logger.warning("checkpoint refused: %s", refused[-1])
    if refused:
        raise CheckpointError("no checkpoint can be trusted:\n" + "\n".join(f"  - {line}" for line in refused))
    if any(RunPaths(run_dir).checkpoints.glob("step-*")):
        raise CheckpointError(f"{run_dir}: there are checkpoint folders but none has a readable manifest")
    return None


def prune(run: RunPaths, keep_steps: Iterable[int], *, attempt: int | None = None) -> list[int]:
    """Deletes committed checkpoints other than `keep_steps`, only after a newer one was published. Ranks: 0.

    Args:
        attempt: of the caller; what newer attempts have published is never deleted.
    Returns: the steps deleted.
    """
    keep = set(keep_steps)
    deleted: list[int] = []
    for checkpoint in committed(run):
        if checkpoint.step in keep or (attempt is not None and checkpoint.manifest.attempt > attempt):
            continue
        trash = run.checkpoints / f".trash-{checkpoint.path.name}"
        # Renamed first: a half-deleted folder must not look like a checkpoint.
        checkpoint.path.rename(trash)
        shutil.rmtree(trash, ignore_errors=True)
        deleted.append(checkpoint.step)
    return deleted
