"""Saving and resuming a real run: nothing that damage or planting leaves behind costs a checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from launcher.checkpoint.commit import committed, newest_verified, step_dir
from launcher.checkpoint.manifest import MANIFEST, FileEntry, TrainState
from launcher.errors import CheckpointError
from launcher.train import saving
from launcher.train.run import Run
from launcher.train.saving import resume, save
from launcher.train.step import optimizer_step
from launcher.train.world import World
from tests.unit.checkpoint.made_checkpoints import damage_file
from tests.unit.train.conftest import OpenRun
from tests.unit.train.engine_state import same, weights_of


def steps(run: Run) -> list[int]:
    return [c.step for c in committed(run.paths)]


def test_what_is_saved_is_what_resumes(open_run: OpenRun) -> None:
    run = open_run()
    optimizer_step(run, 0)
    state = TrainState(step=1, total_tokens=77, best_eval_loss=0.5, best_step=1, evals_since_best=2)
    save(run, state)
    saved = weights_of(run)
    after = optimizer_step(run, 1)
    assert not same(weights_of(run), saved)
    assert resume(run) == state
    assert same(weights_of(run), saved)
    assert optimizer_step(run, 1) == after


def test_refused_checkpoints_ahead_do_not_cost_the_one_just_saved(open_run: OpenRun) -> None:
    run = open_run("checkpoint.keep_last=3", "checkpoint.keep_best=false")
    for step in (2, 4, 6):
        save(run, TrainState(step=step))
    for step in (4, 6):
        damage_file(step_dir(run.paths.checkpoints, step) / "model-rank00000.safetensors")
    run.config.checkpoint.keep_last = 2
    assert resume(run) == TrainState(step=2)
    save(run, TrainState(step=3))
    assert steps(run) == [3, 2]
    found = newest_verified(run.paths.root)
    assert found is not None and found.step == 3


def test_a_planted_checkpoint_in_the_way_is_replaced(open_run: OpenRun) -> None:
    run = open_run()
    save(run, TrainState(step=2))
    save(run, TrainState(step=4))
    manifest = step_dir(run.paths.checkpoints, 4) / MANIFEST
    manifest.write_text(manifest.read_text() + " ")
    assert resume(run) == TrainState(step=2)
    save(run, TrainState(step=4))
    assert resume(run) == TrainState(step=4)


def test_the_best_checkpoint_outlives_newer_ones(open_run: OpenRun) -> None:
    run = open_run("checkpoint.keep_last=1")
    for step, loss in [(1, 0.9), (2, 0.5), (3, 0.7), (4, None)]:
        save(run, TrainState(step=step, last_eval_step=0 if loss is None else step, last_eval_loss=loss))
    assert steps(run) == [4, 2]


def test_a_checkpoint_of_other_settings_is_refused_with_all_differences(open_run: OpenRun) -> None:
    run = open_run()
    save(run, TrainState(step=1))
    run.config.optim.lr = 0.5
    with pytest.raises(CheckpointError, match=r"(?s)must not change after the start.*settings \(hash\)"):
        resume(run)


def test_a_run_without_checkpoints_starts_afresh(open_run: OpenRun) -> None:
    assert resume(open_run()) is None


def test_ranks_share_the_reading_of_a_checkpoint(open_run: OpenRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run = open_run()
    checkpoint = save(run, TrainState(step=1))
    read: list[list[str]] = []

    def content_damage(folder: Path, entries: list[FileEntry], **named: object) -> list[str]:
        read.append([entry.name for entry in entries])
        return []

    monkeypatch.setattr(saving, "content_damage", content_damage)
    monkeypatch.setattr(World, "gather", lambda self, value: [value])
    for rank in range(2):
        saving._shared_damage(replace(run, world=replace(run.world, rank=rank, size=2)), checkpoint)
    names = sorted(entry.name for entry in checkpoint.manifest.files)
    assert sorted(read[0] + read[1]) == names and min(map(len, read)) >= len(names) // 2
