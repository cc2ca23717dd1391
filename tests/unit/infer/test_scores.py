"""Scores against values worked out by hand."""

from __future__ import annotations

import pytest

from launcher.infer.scores import (
    bootstrap_interval,
    exact_match,
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


def test_paired_difference_uses_the_pairing() -> None:
    theirs = [0.0, 1.0] * 50
    ours = [1.0, 1.0] * 50
    difference, (low, high) = paired_difference(ours, theirs)
    assert difference == 0.5
    assert 0.39 < low < 0.5 < high < 0.61
    # Equal scores on every example leave no doubt, however much the scores themselves vary.
    assert paired_difference(theirs, theirs) == (0.0, (0.0, 0.0))


def test_paired_difference_refuses_scores_of_other_examples() -> None:
    with pytest.raises(ValueError, match="2 against 1"):
        paired_difference([1.0, 0.0], [1.0])
