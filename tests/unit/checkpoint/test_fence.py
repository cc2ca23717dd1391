"""An old attempt that comes back to life cannot publish, nor spoil what the new one saves; wherever it was stopped."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

from launcher.checkpoint.commit import committed, fence, newest_verified, publish, verify
from launcher.checkpoint.manifest import seal_file
from launcher.errors import ExitCode, SupersededError
from launcher.paths import RunPaths
from tests.unit.checkpoint.made_checkpoints import (
    FEW,
    RUN_ID,
    damage_file,
    make_manifest,
    new_run,
    save,
    save_and_prune,
    stage,
    stopped_at,
)

MOMENTS = ("attempt made", "fenced", "staged", "published", "pruned")


class OldAttempt:
    """Attempt 1, stopped in the middle of a save, continued at one moment of attempt 2."""

    def __init__(self, pid: int, moment: str) -> None:
        self.pid = pid
        self.moment = moment
        self.exit_code: int | None = None

    def at(self, moment: str) -> None:
        if moment == self.moment:
            os.kill(self.pid, signal.SIGCONT)
            _, status = os.waitpid(self.pid, 0)
            self.exit_code = os.waitstatus_to_exitcode(status)


def new_attempt_works(run: RunPaths, old: OldAttempt) -> int:
    """What attempt 2 does, with the old one coming back at its moment; gives the step it saved."""
    run.attempt(2).mkdir()
    old.at("attempt made")
    fence(run, 2)
    old.at("fenced")
    found = newest_verified(run.root, run_id=RUN_ID)
    assert found is not None
    step = found.step + 1
    staging = stage(run, step, attempt=2, contents=FEW)
    old.at("staged")
    publish(run, staging, make_manifest(step, [seal_file(staging, staging / name) for name in FEW], attempt=2))
    old.at("published")
    save_and_prune(run, step + 1, attempt=2, keep_last=2)
    old.at("pruned")
    return step + 1


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("damaged", [False, True], ids=["new step", "step there but damaged"])
def test_an_old_attempt_stopped_anywhere_in_a_save_changes_nothing_afterwards(
    tmp_path: Path, moment: str, damaged: bool
) -> None:
    operation, codes = 0, set()
    while True:
        operation += 1
        run = new_run(tmp_path / str(operation))
        save(run, 1, contents=FEW)
        if damaged:
            damage_file(next(iter(save(run, 2, contents=FEW).path.glob("*.safetensors"))))
        pid = stopped_at(operation, lambda run=run: save_and_prune(run, 2))  # type: ignore[misc]
        if pid is None:
            break
        old = OldAttempt(pid, moment)
        step = new_attempt_works(run, old)
        where = f"stopped before operation {operation}, continued when {moment}"
        assert old.exit_code in (ExitCode.DONE, ExitCode.CHECKPOINT, ExitCode.SUPERSEDED), where
        codes.add(old.exit_code)
        newest = newest_verified(run.root, run_id=RUN_ID)
        assert newest is not None and (newest.step, newest.manifest.attempt) == (step, 2), where
        assert all(verify(checkpoint) == [] for checkpoint in committed(run)), where
        if moment != "attempt made":
            mine = [c.step for c in committed(run) if c.manifest.attempt == 2]
            assert mine == [step, step - 1], where
        assert save_and_prune(run, step + 1, attempt=2).step == step + 1, where
        shutil.rmtree(run.root)
    assert operation > 15
    assert ExitCode.SUPERSEDED in codes


def test_a_fenced_attempt_finds_its_staging_gone_and_publishes_nothing(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    staging = stage(run, 1, contents=FEW)
    run.attempt(2).mkdir()
    fence(run, 2)
    assert not staging.exists()
    with pytest.raises(SupersededError):
        fence(run, 1)


def test_an_old_attempt_leaves_alone_what_a_newer_one_stages(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    run.attempt(2).mkdir()
    staging = stage(run, 1, attempt=2, contents=FEW)
    with pytest.raises(SupersededError, match="attempt 1 was superseded by attempt 2"):
        stage(run, 2, attempt=1)
    assert staging.is_dir()
