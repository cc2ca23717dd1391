"""What an engine holds, to compare before and after."""

from __future__ import annotations

from torch import Tensor, nn

from launcher.train.engines.replicated import ReplicatedEngine
from launcher.train.run import Run


def module_of(run: Run) -> nn.Module:
    assert isinstance(run.engine, ReplicatedEngine)
    return run.engine._module


def weights_of(run: Run) -> dict[str, Tensor]:
    """A copy of every weight."""
    return {name: p.detach().clone() for name, p in module_of(run).named_parameters()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Bit for bit."""
    return a.keys() == b.keys() and all(a[name].equal(b[name]) for name in a)
