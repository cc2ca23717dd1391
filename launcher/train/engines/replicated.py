"""Every rank holds all weights, gradients and optimizer state (single, DDP)."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from launcher.checkpoint.shards import read_replicated, read_rng, write_replicated, write_rng
from launcher.config.schema import Derived, Precision, RunConfig
from launcher.train.engines.base import StepResult
from launcher.train.optimizer import trainable_parameters
from launcher.train.world import World

_HALF = {Precision.bf16: torch.bfloat16, Precision.fp16: torch.float16}


class ReplicatedEngine:
    """DDP averages gradients in the last micro-step."""

    @staticmethod
    def make_accelerator(config: RunConfig, derived: Derived, world: World) -> Accelerator:
        return Accelerator(cpu=world.device.type == "cpu", gradient_accumulation_steps=derived.grad_accum_steps)

    def __init__(
        self, accelerator: Accelerator, model: nn.Module, optimizer: Optimizer, config: RunConfig, world: World
    ) -> None:
        self._named = trainable_parameters(model)
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
        # Gradients are equal on all ranks by now, so all ranks get the same norm.
        norm = torch.nn.utils.get_total_norm([p.grad for p in self._named.values() if p.grad is not None])
        applied = bool(norm.isfinite())
        if applied and self._clip > 0:
            torch.nn.utils.clip_grads_with_norm_(self._named.values(), self._clip, norm)
        if applied or self._scaler.is_enabled():
            # In fp16 the scaler itself skips the step and lowers its scale.
            self._scaler.step(self._optimizer)
            self._scaler.update()
        self.discard()
        return StepResult(grad_norm=float(norm), applied=applied)

    def discard(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)

    def set_training(self, training: bool) -> None:
        self._module.train(training)

    def save(self, folder: Path) -> list[Path]:
        rank, size = self._world.rank, self._world.size
        files = write_replicated(folder, named=self._named, optimizer=self._optimizer, rank=rank, world_size=size)
        if rank == 0 and self._scaler.is_enabled():
            path = folder / "scaler.json"
            path.write_text(json.dumps(self._scaler.state_dict()), encoding="utf-8")
            files.append(path)
        return [*files, write_rng(folder, rank)]

    def load(self, folder: Path) -> None:
        self.discard()
        read_replicated(folder, named=self._named, optimizer=self._optimizer)
        if self._scaler.is_enabled():
            self._scaler.load_state_dict(json.loads((folder / "scaler.json").read_text(encoding="utf-8")))
        read_rng(folder, self._world.rank)
