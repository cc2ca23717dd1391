"""The learning rate as a pure function of the step, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math

from launcher.config.schema import OptimConfig, Schedule


def lr_at(step: int, optim: OptimConfig, peak_lr: float, *, warmup_steps: int, total_steps: int) -> float:
    """Learning rate of optimizer step `step`, counted from 0.

    Warm-up is linear and its first step already moves: step s < warmup_steps gets peak * (s + 1) / warmup_steps.
    After it, the shape runs from peak to peak * min_lr_ratio, which the step after the last one would reach.
    """
    if step < warmup_steps:
        return peak_lr * (step + 1) / warmup_steps
    floor = peak_lr * optim.min_lr_ratio
    left = max(total_steps - warmup_steps, 1)
    progress = min((step - warmup_steps) / left, 1.0)
    match optim.schedule:
        case Schedule.constant:
            return peak_lr
        case Schedule.linear:
            share = 1.0 - progress
        case Schedule.cosine:
            share = 0.5 * (1.0 + math.cos(math.pi * progress))
        case Schedule.wsd:
            decay_steps = min(max(round(total_steps * optim.decay_ratio), 1), left)
            share = min((total_steps - step) / decay_steps, 1.0)
    return floor + (peak_lr - floor) * max(share, 0.0)
