"""Scores against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from launcher.evaluate.scores import (
    Discordant,
    LabelLoss,
    bootstrap_interval,
    exact_match,
    loss_difference,
    mean_loss,
    normalize_exact,
    paired_difference,
    token_f1,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("answer", "expected", "score"),
    [
        ("43", "43", 1.0),
        ("  twenty\n three ", "twenty three", 1.0),
        ("\uff14\uff13", "43", 1.0),
        ("caf\u0065\u0301", "caf\u00e9", 1.0),
        ("Paris", "paris", 0.0),
        ("43.", "43", 0.0),
        ("", "43", 0.0),
    ],
)
def test_exact_match_ignores_spacing_and_unicode_form_but_not_case_or_punctuation(
    answer: str, expected: str, score: float
) -> None:
    assert exact_match(answer, expected) == score


def test_normalization_is_idempotent() -> None:
    text = " A \t \u00a0B\n\nc "
    assert normalize_exact(text) == "A B c" == normalize_exact(normalize_exact(text))


@pytest.mark.parametrize(
    ("answer", "expected", "score"),
    [
        ("the cat sat", "a cat sat down", 2 * 2 / (2 + 3)),
        ("cat cat", "cat", 2 * 1 / (2 + 1)),
        ("Paris!", "paris", 1.0),
        ("no overlap", "here", 0.0),
        ("", "", 1.0),
        ("the", "", 1.0),
        ("", "word", 0.0),
    ],
)
def test_token_f1_counts_words_as_squad_does(answer: str, expected: str, score: float) -> None:
    assert token_f1(answer, expected) == pytest.approx(score)


def test_wilson_interval_equals_the_closed_form() -> None:
    # 8 of 10, z = 1.96: centre (0.8 + 0.19207) / 1.38416, half-width 0.22645 (worked out by hand).
    low, high = wilson_interval(8, 10)
    assert low == pytest.approx(0.4901625, abs=1e-6)
    assert high == pytest.approx(0.9433178, abs=1e-6)


def test_wilson_interval_is_not_empty_at_the_edges() -> None:
    assert wilson_interval(0, 100) == pytest.approx((0.0, 0.0369935), abs=1e-6)
    assert wilson_interval(100, 100) == pytest.approx((0.9630065, 1.0), abs=1e-6)
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_bootstrap_interval_is_close_to_the_normal_one_for_a_large_sample() -> None:
    # 300 ones of 400: standard error sqrt(0.75 * 0.25 / 400) = 0.02165.
    low, high = bootstrap_interval([1.0] * 300 + [0.0] * 100)
    assert low == pytest.approx(0.75 - 1.96 * 0.02165, abs=0.005)
    assert high == pytest.approx(0.75 + 1.96 * 0.02165, abs=0.005)


def test_bootstrap_gives_the_same_interval_for_the_same_seed_and_another_for_another() -> None:
    values = [float(i % 7) for i in range(101)]
    assert bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1)
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2)


def test_bootstrap_blocks_do_not_change_the_distribution() -> None:
    # 30,000 values force many blocks; the mean of the resampled means must stay at the mean.
    values = [0.0, 1.0] * 15_000
    low, high = bootstrap_interval(values, resamples=400)
    assert low < 0.5 < high
    assert high - low == pytest.approx(2 * 1.96 * 0.5 / 30_000**0.5, rel=0.2)


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("count", [1, 3, 100])
def test_equal_values_leave_the_doubt_that_wilson_leaves(value: float, count: int) -> None:
    assert bootstrap_interval([value] * count) == pytest.approx(wilson_interval(int(value) * count, count))


def test_paired_difference_uses_the_pairing() -> None:
    theirs = [0.0, 1.0] * 50
    ours = [1.0, 1.0] * 50
    difference, (low, high) = paired_difference(ours, theirs)
    assert difference == 0.5
    assert 0.39 < low < 0.5 < high < 0.61
    # Equal scores on every example: the doubt is in the examples that were not seen, and not in how scores vary.
    assert paired_difference(theirs, theirs) == (0.0, pytest.approx(Discordant(0, 0, 100).interval()))


def test_paired_difference_refuses_scores_of_other_examples() -> None:
    with pytest.raises(ValueError, match="argument 2"):
        paired_difference([1.0, 0.0], [1.0])


@pytest.mark.parametrize(
    ("ours_only", "theirs_only", "pairs", "low", "high"),
    [
        # Cavo et al. (2012), worked out in Fagerland, Lydersen and Laake, Statistical Analysis of Contingency Tables
        # (2017), chapter 8, and by R's contingencytables: -0.1240 to -0.0054.
        (6, 16, 161, -0.1240, -0.0054),
        # No pair differs: n delta / (1 - delta) = z squared, so delta = z^2 / (n + z^2).
        (0, 0, 100, -3.841459 / 103.841459, 3.841459 / 103.841459),
    ],
)
def test_the_interval_of_a_paired_difference_is_the_published_one(
    ours_only: int, theirs_only: int, pairs: int, low: float, high: float
) -> None:
    found = Discordant(ours_only, theirs_only, pairs)
    assert found.interval() == pytest.approx((low, high), abs=5e-5)
    mirrored = Discordant(theirs_only, ours_only, pairs)
    assert mirrored.interval() == pytest.approx((-high, -low), abs=5e-5)


@pytest.mark.parametrize("pairs", [1, 2, 3])
def test_a_few_pairs_that_all_agree_do_not_exclude_no_difference(pairs: int) -> None:
    low, high = Discordant(pairs, 0, pairs).interval()
    assert low < 0 and high == pytest.approx(1.0)


def test_the_exact_test_counts_tosses_of_a_coin() -> None:
    assert Discordant(3, 0, 100).exact_p() == pytest.approx(2 / 2**3)
    assert Discordant(5, 1, 7).exact_p() == pytest.approx(2 * (1 + 6) / 2**6)
    # The published one of the same example.
    assert Discordant(6, 16, 161).exact_p() == pytest.approx(0.052479, abs=5e-7)
    assert Discordant(4, 4, 9).exact_p() == 1.0 == Discordant(0, 0, 9).exact_p()
    assert 0 < Discordant(700, 300, 5000).exact_p() < 1e-35


def outcomes(pairs: int, ours_only: float, theirs_only: float) -> list[tuple[Discordant, float]]:
    """Every outcome of `pairs` examples with its probability, given those of the two kinds that differ."""
    rest = 1 - ours_only - theirs_only
    return [
        (
            Discordant(b, c, pairs),
            math.comb(pairs, b) * math.comb(pairs - b, c) * ours_only**b * theirs_only**c * rest ** (pairs - b - c),
        )
        for b in range(pairs + 1)
        for c in range(pairs + 1 - b)
    ]


@pytest.mark.parametrize("pairs", [10, 25])
def test_the_interval_of_a_paired_difference_covers_the_truth(pairs: int) -> None:
    covered = []
    bounds = {found: found.interval() for found, _ in outcomes(pairs, 0.1, 0.1)}
    for ours_only, theirs_only in [(0.02, 0.02), (0.1, 0.1), (0.3, 0.1), (0.5, 0.05), (0.88, 0.01), (0.4, 0.4)]:
        truth = ours_only - theirs_only
        made = [
            chance for d, chance in outcomes(pairs, ours_only, theirs_only) if bounds[d][0] <= truth <= bounds[d][1]
        ]
        covered.append(sum(made))
    assert min(covered) > 0.93 and sum(covered) / len(covered) > 0.95


def test_loss_is_averaged_over_labels_and_its_interval_over_examples() -> None:
    base = [LabelLoss(2.0 * labels, labels) for labels in (1, 3, 6)]
    tuned = [LabelLoss(1.5 * labels, labels) for labels in (1, 3, 6)]
    assert mean_loss(base) == 2.0 and math.isnan(mean_loss([]))
    difference, interval = loss_difference(tuned, base)
    assert difference == pytest.approx(-0.5) and interval == pytest.approx((-0.5, -0.5))
    with pytest.raises(ValueError, match="argument 2"):
        loss_difference(tuned, base[:2])


def test_the_interval_of_a_loss_difference_covers_the_truth() -> None:
    draw = np.random.default_rng(11)
    hits = 0
    for trial in range(200):
        labels = draw.integers(1, 30, 40)
        shift = draw.normal(-0.2, 0.6, 40)
        base = [LabelLoss(3.0 * int(n), int(n)) for n in labels]
        tuned = [LabelLoss((3.0 + by) * int(n), int(n)) for n, by in zip(labels, shift, strict=True)]
        low, high = loss_difference(tuned, base, seed=trial, resamples=1000)[1]
        hits += low <= -0.2 <= high
    assert 0.90 <= hits / 200 <= 0.99
