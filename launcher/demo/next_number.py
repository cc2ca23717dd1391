"""The built-in data set of the first run: one input, the number that follows it as output."""

from __future__ import annotations

import random

from launcher.errors import UserError

_ONES = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    *("ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def generate(
    seed: int, num_train: int = 600, num_validation: int = 100
) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Training and validation examples as `text_input` and `output`; no input is in both, none comes twice.

    Digits, thousands separators, number words and negative numbers, in fixed shares; the same for the same seed.

    Raises: UserError: more examples asked for than there are different ones.
    """
    wanted = num_train + num_validation
    rng = random.Random(seed)
    drawn: dict[str, str] = {}
    # Duplicates are drawn again; the words are the smallest pool, and far larger than this asks for.
    for _ in range(50 * wanted):
        if len(drawn) == wanted:
            break
        text_input, output = _draw(rng)
        drawn.setdefault(text_input, output)
    if len(drawn) < wanted:
        raise UserError(f"next_number has too few different examples for {wanted}")
    examples = [{"text_input": text_input, "output": output} for text_input, output in drawn.items()]
    rng.shuffle(examples)
    return examples[:num_train], examples[num_train:]


def in_words(number: int) -> str:
    """The number in English words, 0 to 999,999: twenty two, one hundred seven, three thousand forty."""
    if not 0 <= number <= 999_999:
        raise ValueError(f"{number} is not in 0..999999")
    if number < 20:
        return _ONES[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return _TENS[tens] + (f" {_ONES[ones]}" if ones else "")
    size, word = (1000, "thousand") if number >= 1000 else (100, "hundred")
    count, rest = divmod(number, size)
    return f"{in_words(count)} {word}" + (f" {in_words(rest)}" if rest else "")


def _draw(rng: random.Random) -> tuple[str, str]:
    """One input and its output."""
    kind = rng.choices(("digits", "separators", "words", "negative"), weights=(35, 20, 30, 15))[0]
    if kind == "digits":
        number = _number(rng, (99, 999, 9999))
        return str(number), str(number + 1)
    if kind == "separators":
        number = rng.randint(1000, 9999)
        if rng.random() < 0.15:
            number += 99 - number % 100  # 1,999: to learn: the carry over the separator
        return f"{number:,}", f"{number + 1:,}"
    if kind == "words":
        number = _number(rng, (99, 999, 2999))
        return in_words(number), in_words(number + 1)
    number = _number(rng, (99, 999))
    return f"-{number}", str(1 - number)


def _number(rng: random.Random, limits: tuple[int, ...]) -> int:
    """A number with a limit drawn first, so that small numbers are not rare; one in six ends in nine."""
    number = rng.randint(1, rng.choice(limits))
    return number - number % 10 + 9 if rng.random() < 1 / 6 else number
