"""What the parts of training share: one run on one rank."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.checkpoint.manifest import TrainState
from launcher.checkpoint.retention import save_due
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
    """Fixed for the life of the process; what moves is TrainState."""

    paths: RunPaths
    config: RunConfig
    derived: Derived
    attempt: int
    world: World
    engine: Engine
    objective: Objective
    train_data: Prepared
    heldout_data: Prepared | None
    order: Order
    recorder: Recorder | None
    """On rank 0 only."""
    deadline: Deadline
    """Rank 0 asks it and tells the others."""

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
        """Whether the held-out loss after `state.step` steps is asked for and not known yet."""
        if self.heldout_data is None or state.step == 0 or state.last_eval_step == state.step:
            return False
        every = self.config.track.eval_every_steps
        return (
            (every > 0 and state.step % every == 0)
            or self.order.ends_epoch(state.step)
            or state.step == self.derived.total_steps
        )

    def save_due(self, step: int) -> bool:
        """Whether the state after `step` steps is to be saved."""
        return save_due(
            self.config.checkpoint,
            steps_done=step,
            total_steps=self.derived.total_steps,
            ends_epoch=self.order.ends_epoch(step),
        )

    def time_runs_out(self, step: int, *, step_s: float) -> bool:
        """Whether the job ends before another step than `step` (the one under way) could be done and saved. Ranks: 0.

        Args:
            step_s: seconds since this step began.
        """
        if step == self.derived.total_steps:
            return False
        return self.deadline.leaves_no_step(
            step_s=step_s, evaluates=self.evaluation_due(TrainState(step=step)), saves=self.save_due(step)
        )
