"""Advice for the next run from the loss curve: number of epochs, learning rate, what went wrong.

The rule for epochs is that of hosted tuning services: take the lowest point just before the plateau. An epoch is on the
plateau when nothing after it lowers the loss by a further `FLAT_GAIN`.
"""

from __future__ import annotations

import itertools
import math
import statistics
from dataclasses import dataclass, field
from enum import Enum

from launcher.config.schema import RunConfig
from launcher.report.epochs import Snapshot, snapshots
from launcher.report.smoothing import smoothed
from launcher.runs.metrics import Metrics

FLAT_GAIN = 0.01
"""Share of the loss that later epochs must still gain to be worth their time."""
RISE = 0.02
"""Share by which validation loss must rise above its lowest point to be called over-fitting."""
SWING = 0.02
"""Share by which validation loss must move to count as a swing up or down."""
TRAIN_FALL = 0.02
"""Share by which training loss must fall over a run that learns anything."""
SPIKE_WINDOW_STEPS = 25
SPIKE_RATIO = 1.5
SPIKE_SPREADS = 6.0
"""Median absolute deviations above the median of the window that a spike must reach."""
SPIKE_FLOOR = 0.25
"""Share of the first step's loss below which a jump is the noise of small batches, late in training."""
DIVERGED_RATIO = 1.5


class Level(Enum):
    good = "good"
    advice = "advice"
    warning = "warning"


@dataclass(frozen=True, slots=True)
class Finding:
    """One observation about the curve, and the setting that acts on it."""

    code: str
    """plateau, overfit, rising, still_falling, too_short, no_heldout, no_data, diverged, not_finite, spikes, ..."""
    level: Level
    text: str
    override: str = ""
    """The setting to add to the next command, such as `optim.epochs=4`."""


@dataclass(frozen=True, slots=True)
class Advice:
    """All findings, the most important first."""

    findings: list[Finding] = field(default_factory=list)
    best_epochs: float | None = None
    """Epochs for the next run; None if the curve does not tell."""

    @property
    def headline(self) -> str:
        return self.findings[0].text if self.findings else "the loss curve gives no reason to change anything"


def plateau_advice(metrics: Metrics, config: RunConfig) -> Advice:
    """All advice from the curve of a run."""
    if not metrics.steps:
        text = "no optimizer step was recorded, so there is no loss curve"
        return Advice([Finding("no_data", Level.advice, text)])
    losses = [record.loss for record in metrics.steps]
    trouble = [*_stability(losses, config), *_oscillation(snapshots(metrics), config)]
    epochs = epoch_advice(snapshots(metrics))
    if any(finding.code in ("diverged", "not_finite") for finding in trouble):
        return Advice(trouble)
    return Advice([*epochs.findings, *trouble], epochs.best_epochs)


def epoch_advice(found: list[Snapshot]) -> Advice:
    """How many epochs the per-epoch losses ask for."""
    points = [(one.epoch, loss) for one in found if (loss := one.validation_loss) is not None and math.isfinite(loss)]
    if len(points) >= 2:
        train = [shot.train_loss for shot in found]
        return _from_points(points, "validation loss", train_falls=train[-1] < train[0])
    train_points = [(shot.epoch, shot.train_loss) for shot in found if math.isfinite(shot.train_loss)]
    if len(train_points) < 2:
        text = "fewer than two epochs: too short to see where the loss flattens"
        return Advice([Finding("too_short", Level.advice, text)])
    advice = _from_points(train_points, "training loss", train_falls=False)
    if points or any(shot.validation_loss is not None for shot in found):
        return advice
    text = "without validation examples over-fitting cannot be seen"
    blind = Finding("no_heldout", Level.advice, text, "data.validation_fraction=0.1")
    return Advice([*advice.findings, blind], advice.best_epochs)


def _from_points(points: list[tuple[float, float]], what: str, *, train_falls: bool) -> Advice:
    epochs, losses = [epoch for epoch, _ in points], [loss for _, loss in points]
    last = len(points) - 1
    lowest = losses.index(min(losses))
    flat = next(index for index in range(last + 1) if _gain(losses[index], min(losses[index:])) < FLAT_GAIN)
    best = epochs[flat]
    override = f"optim.epochs={best:g}"
    if losses[last] > losses[lowest] * (1 + RISE):
        rise = losses[last] / losses[lowest] - 1 if losses[lowest] > 0 else math.inf
        code, over, also = "rising", "", ""
        if train_falls:
            code, over, also = "overfit", "over-fitting: ", " while training loss falls"
        near = f"; epoch {best:g} is within {FLAT_GAIN:.1%} of it" if flat < lowest else ""
        text = (
            f"{over}{what} is lowest after epoch {epochs[lowest]:g} ({losses[lowest]:.4g}) and rises to "
            f"{losses[last]:.4g} ({rise:.1%} more){also}{near}; set {override}"
        )
        return Advice([Finding(code, Level.warning, text, override)], best)
    if flat < last:
        span = f"epochs {epochs[flat + 1]:g}-{epochs[last]:g}" if flat + 1 < last else f"epoch {epochs[last]:g}"
        gained = _gain(losses[flat], min(losses[flat:]))
        text = f"{what} flattens after epoch {best:g}: {span} gained {gained:.1%}; set {override}"
        return Advice([Finding("plateau", Level.advice, text, override)], best)
    override = f"optim.epochs={math.ceil(epochs[last] * 1.5)}"
    gained = _gain(losses[last - 1], losses[last])
    text = f"{what} still falls: the last epoch gained {gained:.1%}; train longer, for example {override}"
    return Advice([Finding("still_falling", Level.advice, text, override)])


def _stability(losses: list[float], config: RunConfig) -> list[Finding]:
    """Losses that are not finite, diverge, jump or do not move."""
    lower = f"optim.lr_multiplier={config.optim.lr_multiplier * 0.3:.2g}"
    broken = sum(1 for loss in losses if not math.isfinite(loss))
    if broken:
        text = f"loss is not finite in {broken} step{'' if broken == 1 else 's'}; lower the learning rate: {lower}"
        return [Finding("not_finite", Level.warning, text, lower)]
    smooth = smoothed(losses, half_life=max(2.0, len(losses) / 50))
    lowest = min(smooth[len(smooth) // 20 :])
    if len(losses) >= 10 and smooth[-1] > DIVERGED_RATIO * lowest and smooth[-1] > 0.9 * smooth[0]:
        course = f"smoothed loss was {lowest:.4g} and ends at {smooth[-1]:.4g}"
        text = f"training diverges: {course}; lower the learning rate: {lower}"
        return [Finding("diverged", Level.warning, text, lower)]
    return [*_spikes(losses, lower), *_stillness(losses, config)]


def _spikes(losses: list[float], lower: str) -> list[Finding]:
    spikes = [losses[index] for index in spike_indices(losses)]
    if not spikes:
        return []
    count = "1 loss spike" if len(spikes) == 1 else f"{len(spikes)} loss spikes"
    text = (
        f"{count} (up to {max(spikes):.4g}): look at those examples; "
        f"if they persist, warm up longer or lower the learning rate: {lower}"
    )
    return [Finding("spikes", Level.advice, text, lower)]


def _stillness(losses: list[float], config: RunConfig) -> list[Finding]:
    edge = max(1, len(losses) // 20)
    start, end = statistics.fmean(losses[:edge]), statistics.fmean(losses[-edge:])
    if len(losses) < 20 or _gain(start, end) >= TRAIN_FALL:
        return []
    higher = f"optim.lr_multiplier={config.optim.lr_multiplier * 3:.2g}"
    course = f"training loss hardly moved ({start:.4g} to {end:.4g})"
    text = f"{course}: nothing left to learn, or the learning rate is too low; try {higher}"
    return [Finding("slow", Level.advice, text, higher)]


def spike_indices(losses: list[float]) -> list[int]:
    """Indices of losses far above those of the steps before them."""
    found = []
    for index in range(SPIKE_WINDOW_STEPS, len(losses)):
        window = losses[index - SPIKE_WINDOW_STEPS : index]
        middle = statistics.median(window)
        spread = statistics.median(abs(loss - middle) for loss in window)
        threshold = max(SPIKE_RATIO * middle, middle + SPIKE_SPREADS * spread, SPIKE_FLOOR * losses[0])
        if losses[index] > threshold:
            found.append(index)
    return found


def _oscillation(found: list[Snapshot], config: RunConfig) -> list[Finding]:
    """Validation loss that goes up and down from epoch to epoch."""
    losses = [loss for shot in found if (loss := shot.validation_loss) is not None and math.isfinite(loss)]
    moves = [after / before - 1 for before, after in itertools.pairwise(losses) if before > 0]
    swings = [move for move in moves if abs(move) > SWING]
    turns = sum(1 for before, after in itertools.pairwise(swings) if before * after < 0)
    if turns < 2:
        return []
    lower = f"optim.lr_multiplier={config.optim.lr_multiplier * 0.5:.2g}"
    text = f"validation loss swings up and down between epochs ({turns} turns); lower the learning rate: {lower}"
    return [Finding("oscillation", Level.advice, text, lower)]


def _gain(before: float, after: float) -> float:
    return (before - after) / before if before > 0 else 0.0
