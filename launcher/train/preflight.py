"""A rehearsal before the run: whatever would fail after hours fails in the first minutes."""

from __future__ import annotations

import logging
import time

import torch

from launcher.checkpoint.manifest import TrainState
from launcher.data.order import heaviest_step
from launcher.errors import MicroBatchTooLarge, ModelError, NonFiniteError
from launcher.runs.heartbeat import Phase
from launcher.train.micro_batch import make_micro_batch
from launcher.train.run import Run
from launcher.train.saving import save
from launcher.train.step import optimizer_step, searches_loss_scale
from launcher.train.validation import validation_loss
from launcher.train.watchdog import WATCHDOG

logger = logging.getLogger(__name__)


@WATCHDOG.phase(Phase.rehearse)
def rehearse(run: Run) -> None:
    """Saves step 0, runs the heaviest batch of the first epoch and one evaluation, and loads step 0 back. Ranks: all.

    Loading restores weights, optimizer and generators, so the run that follows is bitwise the run without a rehearsal
    (tests/dist/test_resume.py).
    Raises: MicroBatchTooLarge naming the batch setting when memory runs out; Preempted when a stop signal comes.
    """
    started = time.perf_counter()
    checkpoint = save(run, TrainState(step=0))
    lengths, size = run.train_data.pack_lengths, run.derived.micro_sequences
    step, tokens = heaviest_step(run.order, lengths, run.slots, micro_sequences=size)
    try:
        refuse_leaking_model(run)
        outcome = optimizer_step(run, step)
        if not outcome.applied and not searches_loss_scale(run, outcome):
            raise NonFiniteError(
                f"rehearsal: the gradient of the heaviest batch is not finite (loss {outcome.loss})",
                step=step,
                sample_ids=run.sample_ids(step),
            )
        if run.validation_data is not None:
            validation_loss(run)
    except torch.OutOfMemoryError as error:
        raise MicroBatchTooLarge(
            f"the heaviest micro-batch of the epoch ({tokens} tokens on one device) does not fit into memory: {error}. "
            f"Lower batch.micro_tokens below {tokens}, lower data.seq_len_tokens, "
            "or set strategy.activation_checkpointing=true",
            tokens=tokens,
        ) from error
    run.engine.load(checkpoint.path)
    seconds = time.perf_counter() - started
    run.recorder.event("rehearsal", seconds=round(seconds, 3), step=step, tokens=tokens)
    run.recorder.note(f"rehearsed the heaviest batch ({tokens} tokens), evaluation, save and load in {seconds:.1f} s")


def refuse_leaking_model(run: Run) -> None:
    """Tests on the real model that examples in one row do not see each other. Ranks: all.

    The first example of a row is changed; the logits of the others must not change. Our attention separates them, but
    a layer of another kind (state space, convolution, linear attention) may carry state along the row.
    Raises: ModelError.
    """
    data = run.train_data
    by_length = sorted(range(data.num_packs), key=lambda p: int(data.pack_lengths[p]))
    packs = by_length[: max(1, run.derived.micro_sequences)]
    batch = make_micro_batch(data, packs, stand_in=packs[0], device=run.world.device)
    if len(batch.cu_seq_lens) <= 2:
        return
    first = int(batch.cu_seq_lens[1])
    changed = batch.input_ids.clone()
    # Other tokens, not the same ones in another order: a sum along the row would not change.
    changed[0, :first] = batch.input_ids[0, -1]
    behind = batch.keep >= first
    run.engine.set_training(False)
    with torch.no_grad():
        before = run.engine.forward(batch.model_inputs())[behind].float()
        after = run.engine.forward({**batch.model_inputs(), "input_ids": changed})[behind].float()
    run.engine.set_training(True)
    if not len(before):
        return
    moved = float((after - before).abs().max())
    if moved > 1e-3 * max(1.0, float(before.abs().max())):
        raise ModelError(
            f"in this model, examples in one row see each other: changing one moved the logits of the next by "
            f"{moved:.3g}. "
            "Give every example a row of its own: data.packing=false batch.micro_sequences=1"
        )
