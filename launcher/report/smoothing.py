"""Moving averages of a curve."""

from __future__ import annotations

import math


def smoothed(values: list[float], half_life: float) -> list[float]:
    """Exponential moving average in which a value counts half after `half_life` further ones.

    Unbiased at the start, and values that are not finite are passed over.
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
    """Smoothed from both sides alike, so that a falling curve is not drawn late; values not finite are passed over."""
    keep = 0.5 ** (1 / max(1.0, len(values) / 120))
    totals, weights = [0.0] * len(values), [0.0] * len(values)
    for order in (range(len(values)), range(len(values) - 1, -1, -1)):
        total = weight = 0.0
        for place in order:
            # Each side leaves the value itself to the other one, but for half of it.
            half = 0.5 if math.isfinite(values[place]) else 0.0
            own = values[place] if half else 0.0
            totals[place] += keep * total + half * own
            weights[place] += keep * weight + half
            total, weight = keep * total + 2 * half * own, keep * weight + 2 * half
    return [total / weight if weight else math.nan for total, weight in zip(totals, weights, strict=True)]
