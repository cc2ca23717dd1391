"""Decides when to save and which checkpoints to keep."""

from __future__ import annotations

from collections.abc import Collection

from launcher.config.schema import CheckpointConfig


def save_due(config: CheckpointConfig, *, steps_done: int, total_steps: int, ends_epoch: bool) -> bool:
    """Whether the state after `steps_done` optimizer steps is to be saved."""
    if steps_done == total_steps:
        return True
    if config.save_every_steps > 0:
        return steps_done % config.save_every_steps == 0
    return ends_epoch


def steps_to_keep(config: CheckpointConfig, committed_steps: Collection[int], *, best_step: int | None) -> set[int]:
    """The newest `keep_last` checkpoints, and the best one if configured. Never empty once something is committed."""
    keep = set(sorted(committed_steps, reverse=True)[: max(config.keep_last, 1)])
    if config.keep_best and best_step in committed_steps and best_step is not None:
        keep.add(best_step)
    return keep
