"""Backward, step, save and load behind one face: replicated weights (single, DDP) or DeepSpeed ZeRO."""

from __future__ import annotations

import contextlib
import json
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import DeepSpeedPlugin, InitProcessGroupKwargs
from torch import Tensor, nn

from launcher.checkpoint.shards import (
    ZERO_TAG,
    read_replicated,
    read_rng,
    write_replicated,
    write_rng,
)
from launcher.checkpoint.zero_files import RecordingCheckpointEngine
from launcher.config.deepspeed import deepspeed_config
from launcher.config.schema import Derived, MethodKind, Precision, RunConfig, StrategyKind
from launcher.errors import CheckpointError, LauncherError, WorldError
from launcher.train.build_lock import use_build_lock
from launcher.train.optimizer import make_optimizer, trained_parameters
from launcher.train.world import COLLECTIVE_TIMEOUT, World

logger = logging.getLogger(__name__)

_HALF = {Precision.bf16: torch.bfloat16, Precision.fp16: torch.float16}


@dataclass(frozen=True, slots=True)
class StepResult:
    """What an optimizer step did. Not applied: a gradient was not finite, on any rank; weights are untouched."""

    grad_norm: float
    applied: bool


class Engine(Protocol):
    """The same few verbs for every strategy. Ranks: all, in step."""

    def forward(self, inputs: dict[str, object]) -> Tensor:
        """Logits [L, vocab] at the labelled positions of one row, in the compute precision."""

    def micro_step(self, *, last: bool) -> contextlib.AbstractContextManager[object]:
        """Surrounds forward and backward of one micro-batch; `last` closes the accumulation and reduces gradients."""

    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of this micro-batch's share of the step's loss."""

    def step(self, lr: float) -> StepResult:
        """Clips and applies the accumulated gradients, or throws them away if any rank's are not finite."""

    def discard(self) -> None:
        """Throws the accumulated gradients away."""

    def set_training(self, training: bool) -> None:
        """Dropout on or off."""

    def save(self, folder: Path) -> list[Path]:
        """Writes this rank's part of the state; returns the files."""

    def load(self, folder: Path) -> None:
        """Restores exactly what `save` wrote."""


def make_accelerator(config: RunConfig, derived: Derived, world: World) -> Accelerator:
    """Accelerate, told everything: nothing is read from ACCELERATE_* variables or filled in by it.

    Raises: WorldError when it sees another world than ours (without a GPU, Accelerate can take every rank for rank 0
    of 1).
    Ranks: all, before the model is loaded, so that ZeRO-3 partitions it while loading.
    """
    on_cpu = world.device.type == "cpu"
    if config.strategy.kind in (StrategyKind.single, StrategyKind.ddp):
        accelerator = Accelerator(cpu=on_cpu, gradient_accumulation_steps=derived.grad_accum_steps)
    else:
        use_build_lock()
        # The plugin marks the environment itself; a stale mark would make Accelerate drop DeepSpeed.
        plugin = DeepSpeedPlugin(hf_ds_config=deepspeed_config(config, derived))
        backend = "gloo" if on_cpu else "nccl"
        accelerator = Accelerator(
            deepspeed_plugin=plugin,
            gradient_accumulation_steps=derived.grad_accum_steps,
            kwargs_handlers=[InitProcessGroupKwargs(backend=backend, timeout=COLLECTIVE_TIMEOUT)],
        )
    if (accelerator.num_processes, accelerator.process_index) != (world.size, world.rank):
        raise WorldError(
            f"Accelerate sees rank {accelerator.process_index} of {accelerator.num_processes}, "
            f"the run is rank {world.rank} of {world.size}"
        )
    return accelerator


def make_engine(
    accelerator: Accelerator, model: nn.Module, config: RunConfig, derived: Derived, world: World
) -> Engine:
    """Wraps a loaded model. Ranks: all."""
    named = trained_parameters(model)
    optimizer = make_optimizer(named, config.optim, config.strategy)
    if config.strategy.kind in (StrategyKind.single, StrategyKind.ddp):
        return ReplicatedEngine(accelerator, model, optimizer, config, derived, world)
    return ZeroEngine(accelerator, model, optimizer, config, world)


class ReplicatedEngine:
    """Every rank holds all weights; DDP averages gradients in the last micro-step."""

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: RunConfig,
        derived: Derived,
        world: World,
    ) -> None:
        self._named = trained_parameters(model)
        self._optimizer = optimizer
        self._world = world
        self._clip = config.optim.grad_clip
        self._precision = config.strategy.precision
        # DDP averages over ranks; micro-steps add up by themselves.
        self._scale = float(world.size)
        self._scaler = torch.amp.GradScaler(world.device.type, enabled=self._precision is Precision.fp16)
        self._module: nn.Module = model.to(world.device) if world.size == 1 else accelerator.prepare_model(model)

    def forward(self, inputs: dict[str, object]) -> Tensor:
        half = _HALF.get(self._precision)
        with torch.autocast(self._world.device.type, dtype=half) if half else contextlib.nullcontext():
            logits: Tensor = self._module(**inputs).logits[0]
        return logits

    def micro_step(self, *, last: bool) -> contextlib.AbstractContextManager[object]:
        if last or not isinstance(self._module, nn.parallel.DistributedDataParallel):
            return contextlib.nullcontext()
        return self._module.no_sync()

    def backward(self, loss: Tensor) -> None:
        self._scaler.scale(loss * self._scale).backward()

    def step(self, lr: float) -> StepResult:
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._scaler.unscale_(self._optimizer)
        # Gradients are equal on all ranks by now, so their norm is an agreement in itself.
        norm = torch.nn.utils.get_total_norm([p.grad for p in self._named.values() if p.grad is not None])
        applied = bool(norm.isfinite())
        if applied and self._clip > 0:
            torch.nn.utils.clip_grads_with_norm_(self._named.values(), self._clip, norm)
        if applied or self._scaler.is_enabled():
            # With fp16 the scaler itself skips the step and lowers its scale.
            self._scaler.step(self._optimizer)
            self._scaler.update()
        self.discard()
        return StepResult(grad_norm=float(norm), applied=applied)

    def discard(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)

    def set_training(self, training: bool) -> None:
        self._module.train(training)

    def save(self, folder: Path) -> list[Path]:
        files = write_replicated(
            folder,
            named=self._named,
            optimizer=self._optimizer,
            rank=self._world.rank,
            world_size=self._world.size,
        )
        if self._world.is_main and self._scaler.is_enabled():
            path = folder / "scaler.json"
            path.write_text(json.dumps(self._scaler.state_dict()), encoding="utf-8")
            files.append(path)
        return [*files, write_rng(folder, self._world.rank)]

    def load(self, folder: Path) -> None:
        self.discard()
        read_replicated(folder, named=self._named, optimizer=self._optimizer)
        if self._scaler.is_enabled():
            self._scaler.load_state_dict(json.loads((folder / "scaler.json").read_text(encoding="utf-8")))
        read_rng(folder, self._world.rank)


class ZeroEngine:
    """DeepSpeed partitions optimizer state (1), gradients too (2), weights too (3)."""

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: RunConfig,
        world: World,
    ) -> None:
        self._world = world
        self._adapters = config.method.kind is not MethodKind.full
        self._engine, _ = accelerator.prepare(model, optimizer)
        self._files = RecordingCheckpointEngine()
        self._engine.checkpoint_engine = self._files
        # In fp32 DeepSpeed would let a NaN gradient into the weights; with this it skips the step, agreed by all ranks.
        self._engine.optimizer.check_grad_overflow = True
        # DeepSpeed averages over ranks and micro-steps.
        self._scale = float(world.size * accelerator.gradient_accumulation_steps)

    def forward(self, inputs: dict[str, object]) -> Tensor:
        logits: Tensor = self._engine(**inputs).logits[0]
        return logits

    @contextlib.contextmanager
    def micro_step(self, *, last: bool) -> Iterator[None]:
        self._engine.set_gradient_accumulation_boundary(is_boundary=last)
        yield

    def backward(self, loss: Tensor) -> None:
        self._engine.backward(loss * self._scale)

    def step(self, lr: float) -> StepResult:
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        self._engine.step()
        applied = self._engine.was_step_applied()
        norm = self._engine.get_global_grad_norm()
        return StepResult(grad_norm=float(norm) if applied and norm is not None else math.inf, applied=applied)

    def discard(self) -> None:
        # DeepSpeed offers no way to drop gradients it has partitioned but to find them not finite, which these are.
        self._engine.step()
        if self._engine.was_step_applied():
            raise LauncherError("the loss was not finite but every gradient was; DeepSpeed applied the step")

    def set_training(self, training: bool) -> None:
        self._engine.train(training)

    def save(self, folder: Path) -> list[Path]:
        self._engine.save_checkpoint(
            str(folder), tag=ZERO_TAG, save_latest=False, exclude_frozen_parameters=self._adapters
        )
        if self._world.is_main:
            # DeepSpeed drops a conversion script beside the files; `launcher export` does that job.
            for script in folder.glob("*.py"):
                script.unlink()
        return [*self._files.take(), write_rng(folder, self._world.rank)]

    def load(self, folder: Path) -> None:
        path, _ = self._engine.load_checkpoint(
            str(folder), tag=ZERO_TAG, load_module_strict=not self._adapters, load_lr_scheduler_states=False
        )
        if path is None:
            # DeepSpeed says so in a log line only, and would go on from scratch.
            raise CheckpointError(f"DeepSpeed loaded nothing from {folder}")
        read_rng(folder, self._world.rank)
