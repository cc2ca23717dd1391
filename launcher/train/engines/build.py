"""Picks the engine of a strategy. A strategy without one does not type-check."""

from __future__ import annotations

from typing import assert_never

from accelerate import Accelerator
from torch import nn

from launcher.config.schema import Derived, RunConfig
from launcher.config.sharding import EngineKind
from launcher.errors import WorldError
from launcher.train.engines.base import Engine
from launcher.train.engines.replicated import ReplicatedEngine, replicated_accelerator
from launcher.train.optimizer import make_optimizer, trained_parameters
from launcher.train.world import World


def make_accelerator(config: RunConfig, derived: Derived, world: World) -> Accelerator:
    """Accelerate with every setting given: it reads no ACCELERATE_* variable and fills in no default.

    Raises: WorldError when it sees another world than ours (without a GPU, Accelerate can take every rank for rank 0
    of 1).
    Ranks: all, before the model is loaded.
    """
    kind = config.strategy.kind.sharding.engine
    match kind:
        case EngineKind.replicated:
            accelerator = replicated_accelerator(derived, world)
        case EngineKind.zero:
            from launcher.train.engines.zero import zero_accelerator

            accelerator = zero_accelerator(config, derived, world)
        case _:
            assert_never(kind)
    if (accelerator.num_processes, accelerator.process_index) != (world.size, world.rank):
        raise WorldError(
            f"Accelerate sees rank {accelerator.process_index} of {accelerator.num_processes}, "
            f"the run is rank {world.rank} of {world.size}"
        )
    return accelerator


def make_engine(accelerator: Accelerator, model: nn.Module, config: RunConfig, world: World) -> Engine:
    """Wraps a loaded model. Ranks: all."""
    optimizer = make_optimizer(trained_parameters(model), config.optim, config.strategy)
    kind = config.strategy.kind.sharding.engine
    match kind:
        case EngineKind.replicated:
            return ReplicatedEngine(accelerator, model, optimizer, config, world)
        case EngineKind.zero:
            from launcher.train.engines.zero import ZeroEngine

            return ZeroEngine(accelerator, model, optimizer, config, world)
        case _:
            assert_never(kind)
