"""AdamW over the trained parameters."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from launcher.config.schema import OptimConfig, StrategyConfig


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that get gradients, by name; tied ones once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def make_optimizer(
    named: Mapping[str, nn.Parameter], optim: OptimConfig, strategy: StrategyConfig
) -> torch.optim.Optimizer:
    """AdamW with weight decay on matrices only; the engine sets the learning rate before each step.

    Optimizer state in host memory needs DeepSpeed's CPU Adam, the only one that is fast there.
    """
    # Under ZeRO-3 a parameter is an empty shard; its real shape is ds_shape.
    matrices = {name for name, p in named.items() if len(getattr(p, "ds_shape", p.shape)) >= 2}
    groups = [
        {"params": [p for name, p in named.items() if name in matrices], "weight_decay": optim.weight_decay},
        {"params": [p for name, p in named.items() if name not in matrices], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    betas = (optim.beta1, optim.beta2)
    if strategy.offload_optimizer:
        return _exact_cpu_adam(groups, betas=betas, eps=optim.eps)
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=optim.eps, fused=True)


def _exact_cpu_adam(
    groups: list[dict[str, object]], *, betas: tuple[float, float], eps: float
) -> torch.optim.Optimizer:
    """DeepSpeed's CPU Adam as a function of its saved state alone.

    Its C++ part multiplies beta^step from step to step, but recomputes it after a restart. The two differ in the last
    bits, and so would a resumed run. A new C++ object for each step (a few numbers) always recomputes it.
    """
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    class ExactCPUAdam(DeepSpeedCPUAdam):  # type: ignore[misc]
        def step(self, closure: None = None) -> None:
            self.ds_opt_adam.create_adam(self.opt_id, 0.0, *betas, eps, 0.0, self.adam_w_mode, False)
            super().step(closure)

    optimizer: torch.optim.Optimizer = ExactCPUAdam(groups, lr=0.0, betas=betas, eps=eps, adamw_mode=True)
    return optimizer
