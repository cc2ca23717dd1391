"""What forked ranks run. Arguments and results are JSON."""

from __future__ import annotations

import faulthandler
import os
import signal
from pathlib import Path


def train(run_dir: str, attempt: int = 1, stop_after: int | None = None, stop_rank: int = 0) -> str:
    """Trains a run; with `stop_after`, rank `stop_rank` gets a real SIGTERM once that many steps are recorded."""
    import launcher.train.loop as loop
    from launcher.train.main import train as train_run
    from launcher.train.stop import STOP

    STOP.arm()
    # A rank that hangs says where before the harness kills it.
    faulthandler.dump_traceback_later(20)
    original = loop.record

    def record(run, state, outcome, *, step_time_s):  # type: ignore[no-untyped-def]
        original(run, state, outcome, step_time_s=step_time_s)
        if state.step == stop_after and run.world.rank == stop_rank:
            os.kill(os.getpid(), signal.SIGTERM)

    loop.record = record
    return train_run(Path(run_dir), attempt).name


def gradients(run_dir: str, out: str) -> float:
    """Gradients of the first optimizer step's loss, gathered to full tensors and saved by rank 0. Returns the loss."""
    from deepspeed.utils import safe_get_full_grad
    from safetensors.torch import save_file

    from launcher.checkpoint.consolidate import hugging_face_name
    from launcher.config.frozen import load_config
    from launcher.paths import RunPaths
    from launcher.train.engines.base import StepResult
    from launcher.train.engines.replicated import ReplicatedEngine
    from launcher.train.main import prepare_run
    from launcher.train.recorder import Recorder
    from launcher.train.step import optimizer_step
    from launcher.train.world import join_world

    paths = RunPaths(Path(run_dir))
    frozen = load_config(paths.config)
    assert frozen.derived is not None
    world = join_world(frozen.derived)
    recorder = Recorder(paths, frozen.derived, attempt=1, enabled=False)
    run = prepare_run(paths, frozen.config, frozen.derived, attempt=1, world=world, recorder=recorder)
    found = {}

    def capture(lr: float) -> StepResult:
        if isinstance(run.engine, ReplicatedEngine):
            grads = {name: p.grad for name, p in run.engine._named.items()}
        else:
            named = run.engine._engine.module.named_parameters()
            grads = {name: safe_get_full_grad(p) for name, p in named if p.requires_grad}
        found.update({hugging_face_name(name): g.detach().float().clone() for name, g in grads.items()})
        return StepResult(grad_norm=0.0, applied=True)

    run.engine.step = capture  # type: ignore[method-assign]
    outcome = optimizer_step(run, 0)
    if world.is_main:
        save_file(found, out)
    return outcome.loss


def train_and_keep_weights(run_dir: str, out: str) -> str:
    """Trains a run; then rank 0 saves the weights as they are in memory, gathered, under the names training has."""
    from deepspeed.runtime.zero.partition_parameters import GatheredParameters
    from safetensors.torch import save_file

    import launcher.train.main as main
    from launcher.train.engines.replicated import ReplicatedEngine

    original = main.train_loop

    def train_loop(run, state):  # type: ignore[no-untyped-def]
        state = original(run, state)
        replicated = isinstance(run.engine, ReplicatedEngine)
        module = run.engine._module if replicated else run.engine._engine.module
        parameters = dict(module.named_parameters())
        partitioned = [p for p in parameters.values() if hasattr(p, "ds_id")]
        with GatheredParameters(partitioned, enabled=bool(partitioned)):
            if run.world.is_main:
                save_file({name.removeprefix("module."): p.detach().clone() for name, p in parameters.items()}, out)
        return state

    main.train_loop = train_loop
    return main.train(Path(run_dir), 1).name


def train_poisoned(run_dir: str, kind: str, step: int, rank: int) -> str:
    """Trains while rank `rank` meets a NaN loss or an infinite gradient in optimizer step `step` (from 1)."""
    import launcher.train.loop as loop
    import launcher.train.objective as objective_module
    from launcher.train.main import train as train_run

    original_step, original_loss = loop.optimizer_step, objective_module.cross_entropy_sum
    poison = False

    def optimizer_step(run, number):  # type: ignore[no-untyped-def]
        nonlocal poison
        poison = number + 1 == step and run.world.rank == rank
        return original_step(run, number)

    def cross_entropy_sum(logits, labels):  # type: ignore[no-untyped-def]
        if poison and kind == "gradient":
            logits.register_hook(lambda g: g * float("inf"))
        loss = original_loss(logits, labels)
        return loss * float("nan") if poison and kind == "loss" else loss

    loop.optimizer_step, objective_module.cross_entropy_sum = optimizer_step, cross_entropy_sum
    return train_run(Path(run_dir), 1).name


def train_on_full_disk(run_dir: str, full_after: int, free_after: int) -> str:
    """Trains while the last rank cannot write files over 4 KiB between two steps."""
    import resource

    import launcher.train.loop as loop
    from launcher.train.main import train as train_run

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    original = loop.record

    def record(run, state, outcome, *, step_time_s):  # type: ignore[no-untyped-def]
        original(run, state, outcome, step_time_s=step_time_s)
        if run.world.rank == run.world.size - 1 and state.step in (full_after, free_after):
            limit = 4096 if state.step == full_after else resource.RLIM_INFINITY
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    loop.record = record
    return train_run(Path(run_dir), 1).name


def train_leaking(run_dir: str) -> str:
    """Trains a model whose logits carry something of every position along the row."""
    import launcher.train.engines.replicated as engine_module
    from launcher.train.main import train as train_run

    original = engine_module.ReplicatedEngine.forward

    def forward(self, inputs):  # type: ignore[no-untyped-def]
        # A running mean over the row, as a recurrent layer would leave behind.
        return original(self, inputs) + inputs["input_ids"].float().cumsum(1)[0, inputs["logits_to_keep"], None] / 1e4

    engine_module.ReplicatedEngine.forward = forward  # type: ignore[method-assign]
    return train_run(Path(run_dir), 1).name


def train_stopped_while_loading(run_dir: str) -> str:
    """Trains; rank 1 gets a real SIGTERM while the model loads."""
    import launcher.train.main as main_module
    from launcher.train.stop import STOP

    STOP.arm()
    original = main_module.load_model

    def load_model(config, derived, world):  # type: ignore[no-untyped-def]
        if world.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(config, derived, world)

    main_module.load_model = load_model
    return main_module.train(Path(run_dir), 1).name


def as_on_gpu(call: str, *args: object) -> object:
    """Another trial with the DeepSpeed settings of a GPU; ZeRO-3 releases every parameter between its uses."""
    import launcher.train.main as main
    from launcher.config import deepspeed

    settings, prepare_run, runs = deepspeed._zero, main.prepare_run, []

    def of_gpu(strategy, stage, device):  # type: ignore[no-untyped-def]
        values = settings(strategy, stage, "cuda")
        assert values["overlap_comm"]
        for name in ("offload_optimizer", "offload_param"):
            values[name]["pin_memory"] = False
        if stage == 3:  # the test model is smaller than what is kept otherwise
            values |= {"stage3_param_persistence_threshold": 0, "stage3_model_persistence_threshold": 0}
        return values

    def keep(*given, **named):  # type: ignore[no-untyped-def]
        runs.append(prepare_run(*given, **named))
        return runs[-1]

    deepspeed._zero, main.prepare_run = of_gpu, keep
    result = globals()[call](*args)
    for parameter in runs[0].engine._engine.module.parameters():
        assert not hasattr(parameter, "ds_status") or parameter.ds_status.name == "NOT_AVAILABLE"
    return result


def with_varlen(call: str, *args: object) -> object:
    """Another trial with the attention kernel of GPUs."""
    import launcher.train.model as model
    from launcher.train.attention import VARLEN
    from tests import varlen_on_cpu

    varlen_on_cpu.register()
    model.implementation = lambda name: VARLEN
    return globals()[call](*args)


def meet_with_one_silent(silent: int, limit_s: float) -> int:
    """All ranks meet, and one of them then takes no part in the first collective."""
    import time

    import launcher.train.world as world
    from launcher.train.stop import STOP

    STOP.arm()
    if int(os.environ["RANK"]) == silent:

        def say_nothing(tensor, limit_s):  # type: ignore[no-untyped-def]
            time.sleep(4 * limit_s)
            return tensor

        world._sum_within = say_nothing
    return world.meet("cpu", limit_s=limit_s).rank
