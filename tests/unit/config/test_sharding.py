"""How each strategy spreads the training state."""

from __future__ import annotations

from launcher.config.deepspeed import zero_stage
from launcher.config.schema import StrategyConfig
from launcher.config.sharding import EngineKind, StrategyKind


def test_every_strategy_has_a_sharding() -> None:
    assert all(kind.sharding.engine in EngineKind for kind in StrategyKind)


def test_a_strategy_is_replicated_exactly_if_deepspeed_has_no_stage_for_it() -> None:
    stages = {kind.value: zero_stage(StrategyConfig(kind=kind)) for kind in StrategyKind}
    assert stages == {"single": 0, "ddp": 0, "zero1": 1, "zero2": 2, "zero3": 3}
    assert all(kind.sharding.is_replicated == (stages[kind.value] == 0) for kind in StrategyKind)
