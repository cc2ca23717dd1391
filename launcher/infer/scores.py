"""Scores of answers and how sure they are: exact match, token F1, intervals, paired differences. Pure numpy."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Interval = tuple[float, float]

_PUNCTUATION = re.compile(r"[^\w\s]|_")
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalize_exact(text: str) -> str:
    """Text as exact match compares it: NFKC, runs of white space as one space, ends stripped; case is kept."""
    return " ".join(unicodedata.normalize("NFKC", text).split())


def exact_match(answer: str, expected: str) -> float:
    """1.0 if the two are the same after `normalize_exact`, else 0.0."""
    return float(normalize_exact(answer) == normalize_exact(expected))


def f1_tokens(text: str) -> list[str]:
    """Words as token F1 counts them: lower case, without punctuation and English articles (the SQuAD rules)."""
    lowered = unicodedata.normalize("NFKC", text).lower()
    return _ARTICLES.sub(" ", _PUNCTUATION.sub("", lowered)).split()


def token_f1(answer: str, expected: str) -> float:
    """Harmonic mean of word precision and recall, words counted with multiplicity; 1.0 when both have no words."""
    ours, theirs = f1_tokens(answer), f1_tokens(expected)
    if not ours or not theirs:
        return float(ours == theirs)
    shared = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * shared / (len(ours) + len(theirs))


def wilson_interval(successes: int, trials: int, *, z: float = 1.959964) -> Interval:
    """95 % Wilson score interval of a proportion; stays inside [0, 1] and is sound at 0 and at all successes."""
    if trials <= 0:
        return (0.0, 1.0)
    share = successes / trials
    shrink = 1 + z * z / trials
    center = (share + z * z / (2 * trials)) / shrink
    half = z / shrink * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    low = 0.0 if successes == 0 else max(0.0, center - half)
    high = 1.0 if successes == trials else min(1.0, center + half)
    return (low, high)


def bootstrap_interval(values: Sequence[float], *, seed: int = 0, resamples: int = 10_000) -> Interval:
    """95 % percentile bootstrap interval of the mean; resampling is by example, so pass one value per example.

    For a paired difference pass the per-example differences.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.size == 0:
        return (0.0, 0.0)
    low, high = np.percentile(_resampled_means(sample, seed, resamples), [2.5, 97.5])
    return (float(low), float(high))


def paired_difference(ours: Sequence[float], theirs: Sequence[float], *, seed: int = 0) -> tuple[float, Interval]:
    """Mean of ours - theirs over the same examples, with its 95 % bootstrap interval."""
    if len(ours) != len(theirs):
        raise ValueError(f"paired scores need the same examples: {len(ours)} against {len(theirs)}")
    differences = [mine - other for mine, other in zip(ours, theirs, strict=True)]
    mean = sum(differences) / len(differences) if differences else 0.0
    return mean, bootstrap_interval(differences, seed=seed)


def _resampled_means(sample: NDArray[np.float64], seed: int, resamples: int) -> NDArray[np.float64]:
    generator = np.random.default_rng(seed)
    means = np.empty(resamples)
    # In blocks: 10,000 x 100,000 indices at once would take 8 GB.
    block = max(1, 2_000_000 // sample.size)
    for start in range(0, resamples, block):
        count = min(block, resamples - start)
        means[start : start + count] = sample[generator.integers(0, sample.size, (count, sample.size))].mean(axis=1)
    return means
