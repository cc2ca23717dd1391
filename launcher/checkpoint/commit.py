"""The commit protocol: a checkpoint appears whole, by one rename, or not at all. Files only, no torch.

    staging folder -> every rank writes, fsyncs and describes its files -> rank 0 writes the manifest -> fsync
    -> the manifest's hash goes into the journal -> one rename -> fsync of the parent -> LATEST (a hint) -> prune

A crash at any point leaves the old checkpoints as they were. Whatever else it leaves has a dotted name, is never read,
and is removed by the next save. Folders are renamed here and not by launcher/files.py, which replaces single files: a
folder cannot replace another in one step, so a checkpoint never replaces one that is whole.
"""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
from collections.abc import Callable, Collection, Container, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from launcher.checkpoint.manifest import MANIFEST, Manifest, damage, read_manifest
from launcher.config.schema import CheckpointConfig
from launcher.errors import CheckpointError, SupersededError
from launcher.files import fsync, write_atomically
from launcher.paths import RunPaths

logger = logging.getLogger(__name__)

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


def begin(run: RunPaths, step: int, attempt: int) -> Path:
    """Makes an empty staging folder, after removing what unfinished saves left. Ranks: 0.

    Raises: SupersededError.
    """
    run.checkpoints.mkdir(exist_ok=True)
    fence(run, attempt)
    staging = run.checkpoints / f".staging-{step:06d}-{attempt:04d}"
    staging.mkdir()
    return staging


def fence(run: RunPaths, attempt: int) -> None:
    """Keeps older attempts from publishing from here on, wherever they were stopped and continue. Ranks: 0.

    Their staging folders are taken away in one step, so that a rename they were about to make finds nothing; what they
    stage later they may not publish. The staging folders of newer attempts are left alone.

    Raises: SupersededError.
    """
    refuse_if_superseded(run, attempt)
    for leftover in run.checkpoints.glob(".*"):
        staged = _STAGING_NAME.fullmatch(leftover.name)
        if staged is not None and int(staged[1]) <= attempt:
            _discard(leftover)
        elif leftover.name.startswith(".trash-"):
            shutil.rmtree(leftover, ignore_errors=True)
        elif leftover.name.startswith(".LATEST."):
            with suppress(OSError):
                leftover.unlink()


def _discard(folder: Path) -> None:
    """Deletes a folder, renamed first: half deleted, it must not look like a checkpoint."""
    trash = folder.with_name(f".trash-{folder.name.removeprefix('.')}")
    shutil.rmtree(trash, ignore_errors=True)
    with suppress(FileNotFoundError):
        folder.rename(trash)
    shutil.rmtree(trash, ignore_errors=True)


def refuse_if_superseded(run: RunPaths, attempt: int) -> None:
    """Raises: SupersededError when a newer attempt of the run exists."""
    newest = run.newest_attempt()
    if newest > attempt:
        raise SupersededError(f"attempt {attempt} was superseded by attempt {newest} and may not publish a checkpoint")


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
        journal: gets the manifest's sha256 before the rename, so that readers can tell this run's from planted ones.
        trusted: as in `verify`. A checkpoint of the same step that could not be loaded is replaced.
    Raises: SupersededError.
    """
    content = manifest.to_json().encode()
    for folder in {(staging / entry.name).parent for entry in manifest.files}:
        fsync(folder)
    write_atomically(staging / MANIFEST, content)
    refuse_if_superseded(run, manifest.attempt)
    journal(hashlib.sha256(content).hexdigest())
    final = step_dir(run.checkpoints, manifest.step)
    trash = run.checkpoints / f".trash-{final.name}-{manifest.attempt:04d}"
    if final.exists():
        # This step was committed before. A whole checkpoint stays, because swapping two folders is not atomic. One
        # that is damaged or planted, which is why the run fell back behind it, goes.
        existing = next((c for c in committed(run) if c.path == final), None)
        if existing is not None and not verify(existing, run_id=manifest.run_id, trusted=trusted):
            shutil.rmtree(staging)
            return existing
        _set_aside(final, trash, manifest.attempt)
    staging.rename(final)
    fsync(run.checkpoints)
    shutil.rmtree(trash, ignore_errors=True)
    try:
        write_atomically(run.checkpoints / "LATEST", f"{final.name}\n", durable=False)
    except OSError as error:  # the checkpoint is committed by now, and LATEST only a hint for people
        logger.warning("LATEST could not be written: %s", error)
    return Checkpoint(path=final, manifest=manifest)


def _set_aside(final: Path, trash: Path, attempt: int) -> None:
    """Moves a checkpoint that could not be loaded out of the way, unless a newer attempt has replaced it meanwhile.

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


def committed(run: RunPaths) -> list[Checkpoint]:
    """Checkpoints with a readable manifest, newest first."""
    found: list[Checkpoint] = []
    for path in run.checkpoints.glob("step-*"):
        if path.is_symlink() or not path.is_dir():
            continue
        try:
            manifest = read_manifest(path)
        except CheckpointError as error:
            logger.warning("checkpoint ignored: %s", error)
            continue
        if path != step_dir(run.checkpoints, manifest.step):
            logger.warning("checkpoint ignored: %s holds the manifest of step %d", path, manifest.step)
            continue
        found.append(Checkpoint(path=path, manifest=manifest))
    return sorted(found, key=lambda c: c.step, reverse=True)


def verify(checkpoint: Checkpoint, *, run_id: str | None = None, trusted: Container[str] | None = None) -> list[str]:
    """Every reason not to load this checkpoint; empty when it may be loaded. Reads all of it.

    Args: as in `mismatches`.
    """
    return mismatches(checkpoint, run_id=run_id, trusted=trusted) or damage(checkpoint.path, checkpoint.manifest)


def mismatches(checkpoint: Checkpoint, *, run_id: str | None, trusted: Container[str] | None) -> list[str]:
    """Reasons not to load this checkpoint that its manifest shows.

    Args:
        run_id: the run it must belong to.
        trusted: sha256 of the manifests this run wrote (from its journal); None skips that check.
    """
    if run_id is not None and checkpoint.manifest.run_id != run_id:
        return [f"it belongs to run {checkpoint.manifest.run_id}, not to {run_id}"]
    if trusted is not None:
        sha256 = hashlib.sha256((checkpoint.path / MANIFEST).read_bytes()).hexdigest()
        if sha256 not in trusted:
            return ["its manifest was not written by this run"]
    return []


def newest_verified(
    run_dir: Path, *, run_id: str | None = None, trusted: Container[str] | None = None, step: int | None = None
) -> Checkpoint | None:
    """The newest checkpoint whose every byte is as it was written; damaged ones are named in the log and passed over.

    Args:
        step: only this step; if it is missing or damaged, that is an error, and no other is taken.
    Returns: None when the run has no checkpoint at all.
    Raises: CheckpointError when there are checkpoints but none can be trusted. Ranks: 0.
    """
    candidates = committed(RunPaths(run_dir))
    if step is not None:
        candidates = [c for c in candidates if c.step == step]
        if not candidates:
            raise CheckpointError(f"{run_dir}: there is no checkpoint of step {step}")
    return first_sound(run_dir, candidates, lambda c: verify(c, run_id=run_id, trusted=trusted))


def first_sound(
    run_dir: Path, candidates: Iterable[Checkpoint], problems_of: Callable[[Checkpoint], list[str]]
) -> Checkpoint | None:
    """The first of the candidates without problems; returns, logs and raises as `newest_verified`."""
    refused: list[str] = []
    for checkpoint in candidates:
        problems = problems_of(checkpoint)
        if not problems:
            return checkpoint
        refused.append(f"{checkpoint.path.name}: {'; '.join(problems[:3])}")
        logger.warning("checkpoint refused: %s", refused[-1])
    if refused:
        raise CheckpointError("no checkpoint can be trusted:\n" + "\n".join(f"  - {line}" for line in refused))
    if any(RunPaths(run_dir).checkpoints.glob("step-*")):
        raise CheckpointError(f"{run_dir}: there are checkpoint folders but none has a readable manifest")
    return None


def steps_to_keep(config: CheckpointConfig, committed_steps: Collection[int], *, best_step: int | None) -> set[int]:
    """The newest `keep_last` checkpoints, and the best one if configured. Never empty once something is committed."""
    keep = set(sorted(committed_steps, reverse=True)[: max(config.keep_last, 1)])
    if config.keep_best and best_step in committed_steps and best_step is not None:
        keep.add(best_step)
    return keep


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
        _discard(checkpoint.path)
        deleted.append(checkpoint.step)
    return deleted
