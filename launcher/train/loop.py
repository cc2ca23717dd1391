"""The training loop. Read it top to bottom."""

from __future__ import annotations

import time
from dataclasses import replace

from launcher.checkpoint.manifest import TrainState
from launcher.config.schema import NonFinite
from launcher.errors import CheckpointError, ErrorOnMain, ExitCode, NonFiniteError, Preempted
from launcher.runs.heartbeat import Phase
from launcher.runs.jsonl import utc_now
from launcher.runs.metrics import StepRecord
from launcher.train.run import Run
from launcher.train.saving import save
from launcher.train.step import StepOutcome, optimizer_step, searches_loss_scale
from launcher.train.stop import STOP
from launcher.train.validation import evaluate
from launcher.train.watchdog import WATCHDOG

MAX_FP16_SKIPS_IN_A_ROW = 30


def train_loop(run: Run, state: TrainState) -> TrainState:
    """Trains from `state` to the last step, evaluating and saving on the way. Ranks: all.

    Returns: the final state, saved.
    Raises: Preempted after a stop signal, once the state is saved; NonFiniteError; CheckpointError if the last save
    failed.
    """
    WATCHDOG.enter(Phase.step, step=state.step)
    total_steps = run.derived.total_steps
    skips_in_a_row = 0
    if run.evaluation_due(state):  # the attempt before stopped between this step and its evaluation
        state = evaluate(run, state)
    while state.step < total_steps and not state.stopped_early:
        started = time.perf_counter()
        outcome = optimizer_step(run, state.step)
        skips_in_a_row = 0 if outcome.applied else skips_in_a_row + 1
        if not outcome.applied:
            handle_nonfinite(run, state.step, outcome, skips_in_a_row)

        state = replace(state, step=state.step + 1, total_tokens=state.total_tokens + outcome.tokens)
        record(run, state, outcome, step_time_s=time.perf_counter() - started)
        WATCHDOG.beat(step=state.step)

        stop = outcome.stop
        if not stop and run.evaluation_due(state):
            try:
                state = evaluate(run, state)
            except Preempted:  # this step must be saved first; the next attempt evaluates
                stop = True
        is_last = state.step == total_steps or state.stopped_early
        if stop or is_last or run.save_due(state.step):
            save_or_warn(run, state, required=stop or is_last)
        if stop and not is_last:
            raise STOP.preempted(f"after step {state.step}, saved")
    if run.evaluation_due(state):  # stopped in the last step or its evaluation, and saved
        state = evaluate(run, state)
    return state


def record(run: Run, state: TrainState, outcome: StepOutcome, *, step_time_s: float) -> None:
    """Records one finished step. Ranks: all."""
    run.deadline.steps_s.append(step_time_s)
    run.recorder.step(
        StepRecord(
            step=state.step,
            epoch=run.order.epoch_of(state.step),
            loss=outcome.loss,
            lr=outcome.lr,
            grad_norm=outcome.grad_norm,
            tokens=outcome.tokens,
            supervised_tokens=outcome.supervised_tokens,
            tokens_per_s=outcome.tokens / step_time_s,
            step_time_s=step_time_s,
            memory_gib=outcome.memory_gib,
            total_tokens=state.total_tokens,
            attempt=run.attempt,
            time=utc_now(),
            data_time_s=outcome.data_time_s,
            metrics=outcome.metrics,
        )
    )


def handle_nonfinite(run: Run, step: int, outcome: StepOutcome, skips_in_a_row: int) -> None:
    """After a step that was not applied: continues or raises, as optim.on_nonfinite says. Ranks: all, all alike.

    In fp16 a few such steps in a row are normal: an overflowing gradient is how the loss scale finds its level.
    """
    skip = run.config.optim.on_nonfinite is NonFinite.skip
    if searches_loss_scale(run, outcome):
        skip = skips_in_a_row <= MAX_FP16_SKIPS_IN_A_ROW
    samples = run.sample_ids(step)
    action = "skip" if skip else "stop"
    run.recorder.event("nonfinite", step=step + 1, loss=str(outcome.loss), action=action, sample_ids=samples)
    run.recorder.note(f"step {step + 1}: loss {outcome.loss}, gradient not finite: {action}")
    if not skip:
        lines = [":".join(str(part) for part in run.train_data.source_line(i)) for i in samples[:20]]
        raise NonFiniteError(
            f"step {step + 1}: loss is {outcome.loss} or a gradient is not finite; the step changed no weight.\n"
            f"  examples of the step: {', '.join(lines)}{' ...' if len(samples) > 20 else ''}\n"
            "  Look at these examples, lower optim.lr, use bf16 or fp32 instead of fp16, "
            "or set optim.on_nonfinite=skip to skip such steps",
            step=step + 1,
            sample_ids=samples,
        )


def save_or_warn(run: Run, state: TrainState, *, required: bool) -> None:
    """Saves; unless it is required, a failed save is only a warning, because a later one may succeed. Ranks: all."""
    try:
        save(run, state)
    except (CheckpointError, ErrorOnMain) as error:
        if required or error.exit_code is ExitCode.SUPERSEDED:
            raise
        run.recorder.event("warning", what="checkpoint", step=state.step, why=str(error))
        run.recorder.note(f"WARNING: {error}; training continues, the previous checkpoint is intact")
