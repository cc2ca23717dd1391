"""Moving averages of a curve."""

from __future__ import annotations

import math


def smoothed(values: list[float], half_life: float) -> list[float]:
    """Exponential moving average, unbiased at the start; values that are not finite are skipped.

    The weight of a value halves every `half_life` values.
    """
    keep = 0.5 ** (1 / max(half_life, 1e-9))
    total = weight = 0.0
    result = []
    for value in values:
        if math.isfinite(value):
            total = keep * total + (1 - keep) * value
            weight = keep * weight + (1 - keep)
        result.append(total / weight if weight else math.nan)
    return result


def centred(values: list[float]) -> list[float]:
    """Smoothed from both sides, so that a falling curve does not lag; values that are not finite are skipped."""
    keep = 0.5 ** (1 / max(1.0, len(values) / 120))
    totals, weights = [0.0] * len(values), [0.0] * len(values)
    for order in (range(len(values)), range(len(values) - 1, -1, -1)):
        total = weight = 0.0
        for index in order:
            # Each direction counts half of the value itself.
            half = 0.5 if math.isfinite(values[index]) else 0.0
            own = values[index] if half else 0.0
            totals[index] += keep * total + half * own
            weights[index] += keep * weight + half
            total, weight = keep * total + 2 * half * own, keep * weight + 2 * half
    return [total / weight if weight else math.nan for total, weight in zip(totals, weights, strict=True)]
