"""Training of one run on one rank, from the frozen configuration to the last checkpoint."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import replace
from pathlib import Path

import psutil
from accelerate.utils import set_seed

from launcher.checkpoint.manifest import TrainState
from launcher.config.frozen import load_prepared
from launcher.config.package_floors import outdated_packages
from launcher.config.schema import Attention, Derived, RunConfig
from launcher.config.topology import AMPERE, old_gpu_problems
from launcher.data.order import Order
from launcher.data.prepared import Prepared
from launcher.errors import ConfigErrors, ExitCode, LauncherError, Preempted, RunError, public_name
from launcher.paths import RunPaths
from launcher.runs.events import read_events
from launcher.runs.heartbeat import Phase
from launcher.runs.metrics import read_metrics
from launcher.runs.rank_environment import job_end_time, rank_numbers
from launcher.tracking.replay import start as start_replay
from launcher.train.deadline import Deadline
from launcher.train.engines.choose import make_accelerator, make_engine
from launcher.train.loop import train_loop
from launcher.train.model import load_model
from launcher.train.objective import SupervisedCrossEntropy
from launcher.train.preflight import rehearse
from launcher.train.recorder import Recorder
from launcher.train.run import Run
from launcher.train.saving import resume
from launcher.train.stop import STOP
from launcher.train.watchdog import WATCHDOG
from launcher.train.world import World, capability_of, join_world, leave_if_stopped

logger = logging.getLogger(__name__)

TRACKERS_GRACE_S = 10.0


def train(run_dir: Path, attempt: int) -> ExitCode:
    """Trains or continues the run frozen in `run_dir`. Ranks: all; the process group is made here.

    Returns: DONE.
    Raises: Preempted after a stop signal, state saved; other LauncherErrors with what to do.
    """
    paths = RunPaths(run_dir)
    config, derived = load_prepared(paths.config)
    WATCHDOG.begin(paths, attempt, rank=rank_numbers(os.environ).rank, fault=config.fault)
    WATCHDOG.enter(Phase.meet)
    started, import_s = time.perf_counter(), seconds_since_process_start()
    world = join_world(derived, limit_s=config.fault.meet_limit_s)
    meet_s = time.perf_counter() - started
    WATCHDOG.enter(Phase.load)
    recorder = Recorder(paths, derived, attempt=attempt, enabled=world.is_main)
    replay = start_replay(run_dir, config.track, attempt=attempt) if world.is_main else None
    try:
        recorder.event("attempt_start", world_size=world.size, device=str(world.device))
        recorder.state("running")
        leave_if_stopped(world, "starting")
        started = time.perf_counter()
        run = prepare_run(paths, config, derived, attempt=attempt, world=world, recorder=recorder)
        seconds = {"import_s": import_s, "meet_s": meet_s, "load_s": time.perf_counter() - started}
        recorder.event("loaded", **{name: round(value, 3) for name, value in seconds.items()})
        state = train_loop(run, start_or_resume(run))
        # No rank leaves while another still reads from the last collective.
        world.barrier()
        record_success(recorder, state)
        return ExitCode.DONE
    except BaseException as error:
        record_failure(recorder, paths, error)
        raise
    finally:
        WATCHDOG.enter(Phase.finish)
        recorder.close()
        if replay is not None:
            replay.finish(TRACKERS_GRACE_S)


def prepare_run(
    paths: RunPaths, config: RunConfig, derived: Derived, *, attempt: int, world: World, recorder: Recorder
) -> Run:
    """Loads data and model. Ranks: all."""
    capability = capability_of(world.device)
    if capability is not None and capability < AMPERE and config.model.attention is Attention.auto:
        # A job is planned without knowing its GPUs.
        derived = replace(derived, attention=Attention.segments.value)
    attention = Attention(derived.attention)
    problems = outdated_packages(config)
    problems += old_gpu_problems(capability, config.strategy.precision, attention)
    if problems:
        raise ConfigErrors(problems)
    data_dir = Path(derived.data_dir)
    train_data = Prepared.open(data_dir, "train")
    if train_data.num_packs != derived.num_packs:
        raise RunError(f"{data_dir} has {train_data.num_packs} sequences, the run was planned with {derived.num_packs}")
    accelerator = make_accelerator(config, derived, world)
    started = time.perf_counter()
    model = load_model(config, derived, world)
    engine = make_engine(accelerator, model, config, world)
    engine.set_training(True)
    # Adapters were initialised alike on all ranks; from here on, dropout must differ between them.
    set_seed(config.seed + 7919 * (world.rank + 1))
    logger.info("loaded model and data seconds=%.1f ranks=%d", time.perf_counter() - started, world.size)
    return Run(
        paths=paths,
        config=config,
        derived=derived,
        attempt=attempt,
        world=world,
        engine=engine,
        objective=SupervisedCrossEntropy(),
        train_data=train_data,
        validation_data=Prepared.open(data_dir, "validation") if Prepared.exists(data_dir, "validation") else None,
        order=Order(seed=config.seed, num_packs=derived.num_packs, global_sequences=derived.global_sequences),
        recorder=recorder,
        deadline=make_deadline(paths, config),
    )


def make_deadline(paths: RunPaths, config: RunConfig) -> Deadline:
    """When to stop for the job's time limit, with the durations of saves and evaluations in earlier attempts."""
    end_s = job_end_time(os.environ)
    if end_s is None:
        return Deadline(None, margin_s=0.0)
    saves = [event.fields.get("seconds") for event in read_events(paths.events) if event.event == "checkpoint"]
    return Deadline(
        end_s,
        margin_s=config.fault.stop_margin_s,
        saves_s=[seconds for seconds in saves if isinstance(seconds, float)],
        evaluations_s=[record.eval_time_s for record in read_metrics(paths.metrics).evals],
    )


def start_or_resume(run: Run) -> TrainState:
    """The state to continue from: the newest trusted checkpoint, or step 0 after a rehearsal. Ranks: all.

    Raises: Preempted when a stop signal came while loading; nothing is lost then.
    """
    leave_if_stopped(run.world, "loading")
    state = resume(run)
    if state is None or state.step == 0:
        if run.config.checkpoint.rehearse:
            rehearse(run)
        leave_if_stopped(run.world, "rehearsing")
        return TrainState(step=0)
    leave_if_stopped(run.world, "loading the checkpoint")
    run.recorder.event("resume", step=state.step)
    run.recorder.status(step=state.step, epoch=run.order.epoch_of(state.step), last_checkpoint_step=state.step)
    run.recorder.note(f"resumed after step {state.step} of {run.derived.total_steps}")
    return state


def seconds_since_process_start() -> float:
    """How long starting Python and importing took."""
    began = psutil.Process().create_time()
    # create_time() includes the time of boot, which Linux gives in whole seconds; subtracted again, the rest is exact.
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - (began - psutil.boot_time()))


def record_success(recorder: Recorder, state: TrainState) -> None:
    if state.stopped_early:
        recorder.event("early_stop", step=state.step, best_step=state.best_step, best_eval_loss=state.best_eval_loss)
    recorder.event("attempt_end", exit_code=int(ExitCode.DONE), reason="done")
    recorder.state("succeeded", step=state.step)


def record_failure(recorder: Recorder, paths: RunPaths, error: BaseException) -> None:
    """Also records a stop that was asked for."""
    exit_code = error.exit_code if isinstance(error, LauncherError) else ExitCode.BUG
    recorder.event("attempt_end", exit_code=int(exit_code), reason=public_name(error), message=str(error)[:2000])
    if isinstance(error, Preempted):
        recorder.event("preempted", signal=STOP.signal_name, reason=STOP.reason or "a signal to another rank")
        if paths.cancel.exists():
            recorder.state("cancelled")
    else:
        recorder.state("failed", reason=str(error)[:2000])
