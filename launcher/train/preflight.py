"""A rehearsal before the run: whatever would fail after hours fails in the first minutes."""

from __future__ import annotations

import logging
import time

import torch

from launcher.checkpoint.manifest import TrainState
from launcher.config.model_files import find_architecture
from launcher.data.order import heaviest_step
from launcher.errors import MicroBatchTooLarge, ModelError, NonFiniteError
from launcher.files import find_record
from launcher.plan.memory import Load, micro_batch_bytes
from launcher.plan.plan import Plan
from launcher.runs.heartbeat import Phase
from launcher.train.micro_batch import make_micro_batch
from launcher.train.recorder import peak_memory_gib
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
    started, data = time.perf_counter(), run.train_data
    checkpoint = save(run, TrainState(step=0))
    step, packs = find_heaviest(run)
    tokens, supervised = (int(size[packs].sum()) for size in (data.pack_lengths, data.pack_supervised))
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
            f"the heaviest micro-batch of the epoch ({tokens} tokens on one device, {supervised} of them supervised) "
            f"does not fit into memory: {error}. "
            f"Lower batch.micro_tokens below {tokens}, lower data.seq_len_tokens, "
            "or set strategy.activation_checkpointing=true",
            tokens=tokens,
        ) from error
    run.engine.load(checkpoint.path)
    seen_gib = max(run.world.gather(peak_memory_gib(run.world.device)))
    seconds = time.perf_counter() - started
    planned_gib = _planned_gib(run)
    run.recorder.event(
        "rehearsal",
        seconds=round(seconds, 3),
        step=step,
        tokens=tokens,
        supervised_tokens=supervised,
        memory_gib=round(seen_gib, 3),
        planned_gib=None if planned_gib is None else round(planned_gib, 3),
    )
    run.recorder.note(f"rehearsed the heaviest batch ({tokens} tokens), evaluation, save and load in {seconds:.1f} s")
    if planned_gib is not None:
        off = seen_gib / planned_gib - 1
        run.recorder.note(f"peak memory of one rank {seen_gib:.1f} GiB, planned {planned_gib:.1f} GiB ({off:+.0%})")


def find_heaviest(run: Run) -> tuple[int, list[int]]:
    """The step of the first epoch whose micro-batch needs most memory, and the packs of that micro-batch."""
    architecture = find_architecture(run.config.model, model_dir=run.derived.model_dir)

    def cost(tokens: int, supervised: int) -> float:
        if architecture is None:
            return float(tokens)
        return micro_batch_bytes(run.config, architecture, Load(tokens, supervised))

    sizes = (run.train_data.pack_lengths, run.train_data.pack_supervised)
    return heaviest_step(run.order, sizes, run.slots, micro_sequences=run.derived.micro_sequences, cost=cost)


def _planned_gib(run: Run) -> float | None:
    """What the plan expects `peak_memory_gib` to be; None where the model is not known to it."""
    plan = find_record(Plan, run.paths.plan)
    if plan is None or plan.memory is None:
        return None
    memory = plan.memory
    if run.world.device.type == "cuda":  # what CUDA and NCCL take for themselves is not torch's
        return memory.device_total - memory.device.get("reserve", 0.0)
    return memory.host_total / run.derived.devices_per_node


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
