"""DeepSpeed ZeRO. Importing DeepSpeed takes seconds, and single and DDP run without it: choose.py imports this late."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import DeepSpeedPlugin, InitProcessGroupKwargs
from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine
from torch import Tensor, nn
from torch.optim import Optimizer

from launcher.checkpoint.shards import ZERO_TAG, read_rng, write_rng
from launcher.config.deepspeed import deepspeed_config
from launcher.config.schema import Derived, MethodKind, RunConfig
from launcher.errors import CheckpointError, LauncherError
from launcher.train.build_lock import use_build_lock
from launcher.train.engines.base import StepResult
from launcher.train.world import COLLECTIVE_TIMEOUT, World


class ZeroEngine:
    """DeepSpeed partitions optimizer state (1), gradients too (2), weights too (3)."""

    @staticmethod
    def make_accelerator(config: RunConfig, derived: Derived, world: World) -> Accelerator:
        use_build_lock()
        # The plugin marks the environment itself; a stale mark would make Accelerate drop DeepSpeed.
        plugin = DeepSpeedPlugin(hf_ds_config=deepspeed_config(config, derived))
        backend = "gloo" if world.device.type == "cpu" else "nccl"
        return Accelerator(
            deepspeed_plugin=plugin,
            gradient_accumulation_steps=derived.grad_accum_steps,
            kwargs_handlers=[InitProcessGroupKwargs(backend=backend, timeout=COLLECTIVE_TIMEOUT)],
        )

    def __init__(
        self, accelerator: Accelerator, model: nn.Module, optimizer: Optimizer, config: RunConfig, world: World
    ) -> None:
        self._world = world
        self._adapters = config.method.kind is not MethodKind.full
        self._engine, _ = accelerator.prepare(model, optimizer)
        self._files = _RecordedFiles()
        self._engine.checkpoint_engine = self._files
        # In fp32, ZeRO-1 and -2 apply a gradient that is not finite unless this is set. ZeRO-3 has no such switch: it
        # skips every step whose gradient norm is not finite. The norm is that of all ranks, so all do the same.
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
        # DeepSpeed drops gradients it has partitioned only if they are not finite; after such a loss they are not.
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
            # DeepSpeed adds a conversion script; `launcher export` does that job.
            for script in folder.glob("*.py"):
                script.unlink()
        return [*self._files.take(), write_rng(folder, self._world.rank)]

    def load(self, folder: Path) -> None:
        path, _ = self._engine.load_checkpoint(
            str(folder), tag=ZERO_TAG, load_module_strict=not self._adapters, load_lr_scheduler_states=False
        )
        if path is None:
            # DeepSpeed only logs this and would start from scratch.
            raise CheckpointError(f"DeepSpeed loaded nothing from {folder}")
        read_rng(folder, self._world.rank)


class _RecordedFiles(TorchCheckpointEngine):
    """DeepSpeed's file writer, which also remembers what this rank wrote, and what could not be written."""

    def __init__(self) -> None:
        super().__init__()
        # The zip format has checksums, and DeepSpeed's converters can read it lazily.
        self.zipfile_serialization = True
        self._written: list[Path] = []
        self._problems: list[str] = []

    def save(self, state_dict: dict[str, object], path: str) -> None:
        try:
            super().save(state_dict, path)
            self._written.append(Path(path))
        except (OSError, RuntimeError) as error:
            # torch reports a full disk as RuntimeError. Raised here, it would leave the others in DeepSpeed's barrier.
            self._problems.append(f"{path}: {error}")

    def take(self) -> list[Path]:
        """The files written since the last call.

        Raises: OSError if one could not be written.
        """
        written, self._written = self._written, []
        problems, self._problems = self._problems, []
        if problems:
            raise OSError("; ".join(problems))
        return written
