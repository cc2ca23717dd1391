"""Scores of answers and their confidence intervals: exact match, token F1, loss, paired differences. Pure numpy."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Interval = tuple[float, float]
Z95 = 1.959964

_PUNCTUATION = re.compile(r"[^\w\s]|_")
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalize_exact(text: str) -> str:
    """Text as exact match compares it: NFKC, white space collapsed and stripped, case kept."""
    return " ".join(unicodedata.normalize("NFKC", text).split())


def exact_match(answer: str, expected: str) -> float:
    """1.0 if the two are equal after `normalize_exact`, otherwise 0.0."""
    return float(normalize_exact(answer) == normalize_exact(expected))


def f1_tokens(text: str) -> list[str]:
    """Words as token F1 counts them: lower case, without punctuation and English articles (the SQuAD rules)."""
    lowered = unicodedata.normalize("NFKC", text).lower()
    return _ARTICLES.sub(" ", _PUNCTUATION.sub("", lowered)).split()


def token_f1(answer: str, expected: str) -> float:
    """Harmonic mean of word precision and recall, words counted with multiplicity; 1.0 if neither has any."""
    ours, theirs = f1_tokens(answer), f1_tokens(expected)
    if not ours or not theirs:
        return float(ours == theirs)
    shared = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * shared / (len(ours) + len(theirs))


def wilson_interval(successes: int, trials: int) -> Interval:
    """95 % Wilson score interval of a proportion; stays inside [0, 1] and is sound at 0 and at all successes."""
    if trials <= 0:
        return (0.0, 1.0)
    share, z = successes / trials, Z95
    shrink = 1 + z * z / trials
    center = (share + z * z / (2 * trials)) / shrink
    half = z / shrink * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    low = 0.0 if successes == 0 else max(0.0, center - half)
    high = 1.0 if successes == trials else min(1.0, center + half)
    return (low, high)


def bootstrap_interval(
    values: Sequence[float], *, bounds: Interval = (0.0, 1.0), seed: int = 0, resamples: int = 10_000
) -> Interval:
    """95 % percentile bootstrap interval of the mean; resampling is by example, so pass one value per example.

    For a paired difference pass the per-example differences. If all values are equal, the bootstrap would give a point,
    for one example as for a thousand; instead, the share of other values that may exist unseen (Wilson's upper end for
    none in so many) is assumed to lie at `bounds`, the ends of the scale.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.size == 0:
        return bounds
    if (sample == sample[0]).all():
        value, unseen = float(sample[0]), wilson_interval(0, sample.size)[1]
        return (value - unseen * (value - bounds[0]), value + unseen * (bounds[1] - value))
    return _percentiles(_resampled_ratios(sample, np.ones_like(sample), seed, resamples))


def paired_difference(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, Interval]:
    """Mean of ours - theirs over the same examples, scores from 0 to 1, with its 95 % bootstrap interval."""
    differences = [mine - other for mine, other in zip(ours, theirs, strict=True)]
    mean = sum(differences) / len(differences) if differences else 0.0
    return mean, bootstrap_interval(differences, bounds=(-1.0, 1.0))


@dataclass(frozen=True, slots=True)
class Discordant:
    """Paired outcomes, right or wrong: only the examples where the two differ count."""

    ours_only: int
    """Examples only ours has right."""
    theirs_only: int
    pairs: int
    """All examples."""

    @classmethod
    def count(cls, ours: Sequence[float], theirs: Sequence[float]) -> Discordant:
        """From scores that are 0 or 1."""
        found = list(zip(ours, theirs, strict=True))
        return cls(sum(a > b for a, b in found), sum(a < b for a, b in found), len(found))

    @property
    def difference(self) -> float:
        return (self.ours_only - self.theirs_only) / self.pairs if self.pairs else 0.0

    def interval(self) -> Interval:
        """95 % score interval of the difference of the two shares; never a point, however alike the pairs are.

        Tango T. (1998), Equivalence test and confidence interval for the difference in proportions for the
        paired-sample design, Statistics in Medicine 17:891-908. Its ends are the differences whose score test just
        rejects; at no difference that test is McNemar's.
        """
        if self.pairs == 0:
            return (-1.0, 1.0)
        middle = self.difference
        low = _falling_root(lambda delta: self._score(delta) - Z95, -1.0, middle)
        high = _falling_root(lambda delta: self._score(delta) + Z95, middle, 1.0)
        return (low, high)

    def exact_p(self) -> float:
        """Two-sided p of McNemar's exact test: if neither is better, each difference is a coin toss."""
        tosses = self.ours_only + self.theirs_only
        fewer = min(self.ours_only, self.theirs_only)
        logs = [
            math.lgamma(tosses + 1) - math.lgamma(k + 1) - math.lgamma(tosses - k + 1) - tosses * math.log(2)
            for k in range(fewer + 1)
        ]
        return min(1.0, 2 * sum(map(math.exp, logs)))

    def _score(self, delta: float) -> float:
        """Tango's statistic for a true difference of `delta`; falls as delta grows."""
        ours, theirs, n = self.ours_only, self.theirs_only, self.pairs
        # The most likely share of `theirs_only` given delta solves a x^2 + b x + c = 0.
        a, b, c = 2 * n, (2 * n - ours + theirs) * delta - ours - theirs, -theirs * delta * (1 - delta)
        share = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
        variance = n * (2 * share + delta * (1 - delta))
        distance = ours - theirs - n * delta
        if variance <= 0:
            return 0.0 if distance == 0 else math.copysign(math.inf, distance)
        return distance / math.sqrt(variance)


@dataclass(frozen=True, slots=True)
class LabelLoss:
    """Cross-entropy of one example: its sum over the labels, natural log, and how many labels there are."""

    total: float
    labels: int


def mean_loss(losses: Sequence[LabelLoss]) -> float:
    """Mean over all labels; NaN where there is none."""
    labels = sum(loss.labels for loss in losses)
    return sum(loss.total for loss in losses) / labels if labels else math.nan


def loss_difference(
    ours: Sequence[LabelLoss], theirs: Sequence[LabelLoss], *, seed: int = 0, resamples: int = 10_000
) -> tuple[float, Interval]:
    """Mean loss of ours - that of theirs, with its 95 % interval: a paired percentile bootstrap over the examples.

    The mean is over labels, but examples are resampled, because labels of one example are not independent. At least one
    example must have a label.
    """
    totals = np.array([mine.total - other.total for mine, other in zip(ours, theirs, strict=True)], dtype=np.float64)
    labels = np.array([loss.labels for loss in ours], dtype=np.float64)
    totals, labels = totals[labels > 0], labels[labels > 0]
    return float(totals.sum() / labels.sum()), _percentiles(_resampled_ratios(totals, labels, seed, resamples))


def _falling_root(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a falling function crosses zero between `low` and `high`; the nearer end if it does not."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) > 0 else (low, middle)
    return (low + high) / 2


def _percentiles(means: NDArray[np.float64]) -> Interval:
    low, high = np.percentile(means, [2.5, 97.5])
    return (float(low), float(high))


def _resampled_ratios(
    above: NDArray[np.float64], below: NDArray[np.float64], seed: int, resamples: int
) -> NDArray[np.float64]:
    """Sum of `above` by sum of `below` in samples drawn with replacement."""
    generator = np.random.default_rng(seed)
    ratios = np.empty(resamples)
    # In blocks: 10,000 x 100,000 indices at once would take 8 GB.
    block = max(1, 2_000_000 // above.size)
    for start in range(0, resamples, block):
        count = min(block, resamples - start)
        drawn = generator.integers(0, above.size, (count, above.size))
        ratios[start : start + count] = above[drawn].sum(axis=1) / below[drawn].sum(axis=1)
    return ratios
