"""Saves and resumes: the commit protocol, run by all ranks together."""

from __future__ import annotations

import logging
import shutil
import time
from pathlib import Path

from launcher.checkpoint import commit
from launcher.checkpoint.commit import Checkpoint
from launcher.checkpoint.manifest import FileEntry, Manifest, TrainState, content_damage, seal_file, unlisted_files
from launcher.config.frozen import config_hash
from launcher.errors import ConfigMismatch, SaveFailed
from launcher.runs.events import written_manifests
from launcher.runs.heartbeat import Phase
from launcher.runs.jsonl import utc_now
from launcher.train.run import Run
from launcher.train.watchdog import WATCHDOG
from launcher.train.world import on_main

logger = logging.getLogger(__name__)


@WATCHDOG.phase(Phase.save)
def save(run: Run, state: TrainState) -> Checkpoint:
    """Commits the state after `state.step` steps, then prunes. Ranks: all, at a step edge.

    Raises: SaveFailed on every rank if any rank could not write; earlier checkpoints are untouched then.
    """
    started = time.perf_counter()
    staging = on_main(run.world, lambda: commit.begin(run.paths, state.step, run.attempt))
    shares = run.world.gather(_write_share(run, staging))
    errors = {rank: share for rank, share in enumerate(shares) if isinstance(share, OSError)}
    if errors:
        if run.world.is_main:
            shutil.rmtree(staging, ignore_errors=True)
        why = "; ".join(f"rank {rank}: {error}" for rank, error in errors.items())
        rank, error = next(iter(errors.items()))
        path = str(error.filename or staging)
        raise SaveFailed(
            f"could not save step {state.step}: {why}", step=state.step, rank=rank, errno=error.errno, path=path
        )
    files = [entry for share in shares if not isinstance(share, OSError) for entry in share]
    files.sort(key=lambda entry: entry.name)
    return on_main(run.world, lambda: _publish(run, state, staging, files, started))


def _write_share(run: Run, staging: Path) -> list[FileEntry] | OSError:
    """This rank's files, or why it could not write them: raised, the error would leave the others waiting."""
    try:
        return [seal_file(staging, path) for path in run.engine.save(staging)]
    except OSError as error:
        return error


def _publish(run: Run, state: TrainState, staging: Path, files: list[FileEntry], started: float) -> Checkpoint:
    recorder = run.recorder
    manifest = Manifest(
        run_id=run.derived.run_id,
        attempt=run.attempt,
        world_size=run.world.size,
        strategy=run.config.strategy.kind.value,
        method=run.config.method.kind.value,
        config_hash=config_hash(run.config, run.derived.data_key),
        state=state,
        files=files,
        time=utc_now(),
    )
    checkpoint = commit.publish(
        run.paths,
        staging,
        manifest,
        trusted=written_manifests(run.paths.events),
        journal=lambda sha256: recorder.event("checkpoint_prepared", step=state.step, manifest_sha256=sha256),
    )
    seconds = time.perf_counter() - started
    recorder.event("checkpoint", step=state.step, seconds=round(seconds, 3), bytes=checkpoint.manifest.size_bytes)
    recorder.status(last_checkpoint_step=state.step, last_checkpoint_time=utc_now())
    run.deadline.saves_s.append(seconds)
    # A checkpoint ahead of this one was refused when the run resumed behind it. Counted among the newest, it would be
    # kept and the one just saved deleted.
    present = [c for c in commit.committed(run.paths) if c.step <= state.step]
    losses = {c.step: loss for c in present if (loss := c.manifest.eval_loss) is not None}
    best = min(losses, key=lambda step: (losses[step], step)) if losses else None
    keep = commit.steps_to_keep(run.config.checkpoint, [c.step for c in present], best_step=best)
    commit.prune(run.paths, keep, attempt=run.attempt)
    logger.info("saved step=%d bytes=%d seconds=%.1f", state.step, checkpoint.manifest.size_bytes, seconds)
    return checkpoint


def resume(run: Run) -> TrainState | None:
    """Loads the newest checkpoint that can be trusted; None when the run has none yet. Ranks: all.

    Raises: CheckpointError when checkpoints exist but none fits: starting from scratch would discard the run's work.
    """
    candidates = on_main(run.world, lambda: _candidates(run))
    problems: dict[int, list[str]] = {}
    for checkpoint, known in candidates:
        problems[checkpoint.step] = known or _shared_damage(run, checkpoint)
        if not problems[checkpoint.step]:
            break
    tried = [checkpoint for checkpoint, _ in candidates if checkpoint.step in problems]
    found = on_main(run.world, lambda: _accept(run, tried, problems))
    if found is None:
        return None
    run.engine.load(found.path)
    return found.manifest.state


def _candidates(run: Run) -> list[tuple[Checkpoint, list[str]]]:
    """Checkpoints, newest first, each with the reasons against it that need no reading. From here on no older attempt
    can publish. Ranks: 0.
    """
    commit.fence(run.paths, run.attempt)
    trusted = written_manifests(run.paths.events)
    return [
        (
            checkpoint,
            commit.mismatches(checkpoint, run_id=run.derived.run_id, trusted=trusted)
            or unlisted_files(checkpoint.path, checkpoint.manifest),
        )
        for checkpoint in commit.committed(run.paths)
    ]


def _shared_damage(run: Run, checkpoint: Checkpoint) -> list[str]:
    """Reads a checkpoint that may hold terabytes, each rank its part. Ranks: all."""
    by_size = sorted(checkpoint.manifest.files, key=lambda entry: -entry.size_bytes)
    mine = by_size[run.world.rank :: run.world.size]
    shares = run.world.gather(content_damage(checkpoint.path, mine, beat=WATCHDOG.beat))
    return [problem for share in shares for problem in share]


def _accept(run: Run, tried: list[Checkpoint], problems: dict[int, list[str]]) -> Checkpoint | None:
    """The checkpoint to continue from, verified and of this run. Ranks: 0."""
    checkpoint = commit.first_sound(run.paths.root, tried, lambda one: problems[one.step])
    if checkpoint is None:
        return None
    manifest, own_hash = checkpoint.manifest, config_hash(run.config, run.derived.data_key)
    compared: list[tuple[str, object, object]] = [
        ("number of ranks", manifest.world_size, run.world.size),
        ("strategy.kind", manifest.strategy, run.config.strategy.kind.value),
        ("method.kind", manifest.method, run.config.method.kind.value),
        ("model, data or training settings (hash)", manifest.config_hash, own_hash),
    ]
    wrong = {name: f"{name}: checkpoint has {old}, run has {new}" for name, old, new in compared if old != new}
    if wrong:
        raise ConfigMismatch(
            f"{checkpoint.path} does not fit config.yaml, which must not change after the start:\n  - "
            + "\n  - ".join(wrong.values()),
            path=str(checkpoint.path),
            differing=list(wrong),
        )
    return checkpoint
