"""Picks the engine of a strategy. A strategy without one does not type-check."""

from __future__ import annotations

from typing import assert_never

from accelerate import Accelerator
from torch import nn

from launcher.config.schema import Derived, RunConfig
from launcher.config.sharding import EngineKind
from launcher.errors import WorldError
from launcher.train.engines.base import Engine
from launcher.train.engines.replicated import ReplicatedEngine
from launcher.train.optimizer import make_optimizer, trainable_parameters
from launcher.train.world import World


def engine_class(config: RunConfig) -> type[Engine]:
    """The engine that shards as the strategy says."""
    kind = config.strategy.kind.sharding.engine
    match kind:
        case EngineKind.replicated:
            return ReplicatedEngine
        case EngineKind.zero:
            from launcher.train.engines.zero import ZeroEngine

            return ZeroEngine
        case _:
            assert_never(kind)


def make_accelerator(config: RunConfig, derived: Derived, world: World) -> Accelerator:
    """Accelerate with every setting given: it reads no ACCELERATE_* variable and fills in no default.

    Ranks: all, before the model is loaded, so that ZeRO-3 can partition it while loading.
    Raises: WorldError when Accelerate sees another world than ours (without a GPU, it can take every rank for rank 0
    of 1).
    """
    accelerator = engine_class(config).make_accelerator(config, derived, world)
    if (accelerator.num_processes, accelerator.process_index) != (world.size, world.rank):
        raise WorldError(
            f"Accelerate sees rank {accelerator.process_index} of {accelerator.num_processes}, "
            f"the run is rank {world.rank} of {world.size}"
        )
    return accelerator


def make_engine(accelerator: Accelerator, model: nn.Module, config: RunConfig, world: World) -> Engine:
    """Wraps a loaded model. Ranks: all."""
    optimizer = make_optimizer(trainable_parameters(model), config.optim, config.strategy)
    return engine_class(config)(accelerator, model, optimizer, config, world)
