"""Nearest texts by character n-grams."""

from __future__ import annotations

from launcher.evaluate.retrieval import NearestTexts


def test_the_text_itself_comes_first_then_the_most_alike() -> None:
    texts = ["seven hundred", "forty two", "forty three", "9,999", "forty-two thousand"]
    first, *next_two = NearestTexts(texts).search("Forty  two", 3)
    assert first == 1
    assert set(next_two) == {2, 4}


def test_rare_ngrams_count_more_than_common_ones() -> None:
    texts = ["what is the capital of france", "what is the capital of peru", "tell me about peru"]
    assert NearestTexts(texts).search("peru?", 1) == [2]


def test_a_query_unlike_all_texts_gives_the_first_ones() -> None:
    assert NearestTexts(["abc", "def"]).search("zzz", 5) == [0, 1]
