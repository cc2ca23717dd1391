"""The built-in data set: right, mixed, repeatable, and with nothing held out that was trained on."""

from __future__ import annotations

import re
from itertools import chain

import pytest

from launcher.demo import next_number
from launcher.demo.next_number import generate, in_words
from launcher.errors import UserError


def test_counts_and_fields_are_as_promised() -> None:
    train, heldout = generate(0)
    assert (len(train), len(heldout)) == (600, 100)
    assert all(set(example) == {"text_input", "output"} for example in train + heldout)


def test_no_input_comes_twice_on_either_side() -> None:
    train, heldout = generate(3)
    inputs = [example["text_input"] for example in train + heldout]
    assert len(set(inputs)) == len(inputs)


def test_the_same_seed_gives_the_same_examples_and_another_gives_others() -> None:
    assert generate(1) == generate(1)
    assert generate(1) != generate(2)


def test_every_output_is_the_next_number_in_the_same_spelling() -> None:
    words = {in_words(number): number for number in range(4100)}
    for example in chain(*generate(5)):
        given, answer = example["text_input"], example["output"]
        if given in words:
            assert words[answer] == words[given] + 1
        else:
            assert int(answer.replace(",", "")) == int(given.replace(",", "")) + 1
            number = int(answer.replace(",", ""))
            assert answer == (f"{number:,}" if "," in given else str(number))


@pytest.mark.parametrize("side", [0, 1])
def test_all_kinds_are_on_both_sides(side: int) -> None:
    inputs = [example["text_input"] for example in generate(0)[side]]
    patterns = (r"\d+", r"\d+,\d{3}", r"-\d+", r"[a-z ]+")
    shares = [sum(bool(re.fullmatch(pattern, text)) for text in inputs) / len(inputs) for pattern in patterns]
    assert sum(shares) == 1.0
    assert min(shares) > 0.08


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "zero"),
        (22, "twenty two"),
        (30, "thirty"),
        (107, "one hundred seven"),
        (999, "nine hundred ninety nine"),
        (3040, "three thousand forty"),
        (512_900, "five hundred twelve thousand nine hundred"),
    ],
)
def test_numbers_in_words(number: int, words: str) -> None:
    assert in_words(number) == words


def test_a_number_without_words_is_refused() -> None:
    with pytest.raises(ValueError, match="1000000"):
        in_words(1_000_000)


def test_more_examples_than_exist_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(next_number, "_draw", lambda rng: ("1", "2"))
    with pytest.raises(UserError, match="too few different"):
        generate(0, 2, 1)
