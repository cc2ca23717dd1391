"""One run on one rank: the object that all parts of training share."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.checkpoint.manifest import TrainState
from launcher.config.schema import Derived, RunConfig
from launcher.data.order import Order, Slots, step_slots
from launcher.data.prepared import Prepared
from launcher.paths import RunPaths
from launcher.train.deadline import Deadline
from launcher.train.engines.base import Engine
from launcher.train.objective import Objective
from launcher.train.recorder import Recorder
from launcher.train.world import World


@dataclass(frozen=True, slots=True)
class Run:
    """Constant for the life of the process; TrainState is what changes."""

    paths: RunPaths
    config: RunConfig
    derived: Derived
    attempt: int
    world: World
    engine: Engine
    objective: Objective
    train_data: Prepared
    validation_data: Prepared | None
    order: Order
    recorder: Recorder
    deadline: Deadline
    """Used by rank 0, which passes its decisions to the others."""

    def slots(self, step: int) -> Slots:
        """Packs of optimizer step `step` (from 0), by rank and micro-step."""
        return step_slots(
            self.order.step_packs(step),
            self.train_data.pack_lengths,
            world_size=self.derived.world_size,
            grad_accum_steps=self.derived.grad_accum_steps,
            micro_sequences=self.derived.micro_sequences,
        )

    def sample_ids(self, step: int) -> list[int]:
        """Examples of optimizer step `step` over all ranks."""
        return [int(i) for pack in self.order.step_packs(step) for i in self.train_data.pack(int(pack))]

    def evaluation_due(self, state: TrainState) -> bool:
        """Whether the validation loss after `state.step` steps is due and not yet measured."""
        if self.validation_data is None or state.step == 0 or state.last_eval_step == state.step:
            return False
        every = self.config.track.eval_every_steps
        due = (every > 0 and state.step % every == 0) or self.order.ends_epoch(state.step)
        return due or state.step == self.derived.total_steps

    def save_due(self, step: int) -> bool:
        """Whether the state after `step` steps is to be saved: at an interval if one is set, otherwise every epoch."""
        every = self.config.checkpoint.save_every_steps
        due = step % every == 0 if every > 0 else self.order.ends_epoch(step)
        return due or step == self.derived.total_steps

    def time_runs_out(self, step: int, *, step_s: float) -> bool:
        """Whether the job ends before a step after `step`, the current one, could be done and saved. Ranks: 0.

        Args:
            step_s: seconds since this step began.
        """
        evaluates, saves = self.evaluation_due(TrainState(step=step)), self.save_due(step)
        is_last = step == self.derived.total_steps
        return not is_last and self.deadline.leaves_no_step(step_s=step_s, evaluates=evaluates, saves=saves)
