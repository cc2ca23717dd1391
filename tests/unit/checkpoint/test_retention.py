"""When to save and what to keep; and that no history of saves, damage and crashes loses the run."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from launcher.checkpoint.commit import committed, newest_verified, prune, step_dir, steps_to_keep, verify
from launcher.config.schema import CheckpointConfig
from tests.unit.checkpoint.made_checkpoints import RUN_ID, damage_file, new_run, save, stage


@given(st.sets(st.integers(0, 100), min_size=1), st.integers(0, 5), st.booleans(), st.integers(0, 100) | st.none())
def test_the_newest_and_the_best_are_kept_and_no_more(
    steps: set[int], keep_last: int, keep_best: bool, best_step: int | None
) -> None:
    config = CheckpointConfig(keep_last=keep_last, keep_best=keep_best)
    kept = steps_to_keep(config, steps, best_step=best_step)
    newest = set(sorted(steps)[-max(keep_last, 1) :])
    assert kept == newest | ({best_step} & steps if keep_best else set())
    assert max(steps) in kept


def test_nothing_committed_keeps_nothing() -> None:
    assert steps_to_keep(CheckpointConfig(), [], best_step=3) == set()


class Retention(RuleBasedStateMachine):
    """A run that saves, is damaged, crashes and resumes, with the same few lines as train/saving.py around it."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.run = new_run(self.folder / "run")
        self.journal: set[str] = set()
        self.losses: dict[int, float] = {}
        self.step = 0
        self.attempt = 1

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @initialize(keep_last=st.integers(1, 3), keep_best=st.booleans())
    def configure(self, keep_last: int, keep_best: bool) -> None:
        self.config = CheckpointConfig(keep_last=keep_last, keep_best=keep_best)

    def whole(self) -> list[int]:
        return [c.step for c in committed(self.run) if not verify(c, run_id=RUN_ID, trusted=self.journal)]

    @rule(steps=st.integers(1, 3), loss=st.none() | st.sampled_from([0.5, 1.0, 2.0]))
    def train_and_save(self, steps: int, loss: float | None) -> None:
        before = set(self.whole())
        self.step += steps
        saved = save(self.run, self.step, attempt=self.attempt, loss=loss, trusted=self.journal)
        present = [c for c in committed(self.run) if c.step <= self.step]
        losses = {c.step: x for c in present if (x := c.manifest.eval_loss) is not None}
        best = min(losses, key=lambda s: (losses[s], s)) if losses else None
        prune(self.run, steps_to_keep(self.config, [c.step for c in present], best_step=best))
        after = set(self.whole())
        assert saved.step == self.step == max(after)
        newest = {c.step for c in present[: self.config.keep_last]}
        assert newest & (before | {self.step}) <= after
        if self.config.keep_best and best in before:
            assert best in after
        assert not list(self.run.checkpoints.glob(".[st]*"))

    @rule()
    def crash_in_the_middle_of_a_save(self) -> None:
        stage(self.run, self.step + 1, attempt=self.attempt)
        self.resume()

    @precondition(lambda self: len(self.whole()) > 1)
    @rule(data=st.data())
    def damage_one_and_resume(self, data: st.DataObject) -> None:
        step = data.draw(st.sampled_from(self.whole()))
        files = sorted(p for p in step_dir(self.run.checkpoints, step).rglob("*") if p.is_file())
        damage_file(data.draw(st.sampled_from(files)))
        self.resume()

    @rule()
    def resume(self) -> None:
        self.attempt += 1
        self.run.attempt(self.attempt).mkdir()
        found = newest_verified(self.run.root, run_id=RUN_ID, trusted=self.journal)
        self.step = 0 if found is None else found.step

    @invariant()
    def a_checkpoint_that_verifies_is_there_once_one_was(self) -> None:
        assert bool(self.whole()) == bool(self.journal)


TestRetention = Retention.TestCase
Retention.TestCase.settings = settings(
    max_examples=60, stateful_step_count=12, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
