"""Beginnings of prompts: the keywords, first words and system message that nearly all share, and the exceptions.

What is shared is decided on the first examples only, so that memory does not grow with the data.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from launcher.data.example import Example

Value = TypeVar("Value", bound=Hashable)

SHARE = 0.8
"""A pattern is what at least this share of the examples has; less is variety."""

_SAMPLE = 2000
_SEARCHED_CHARS = 4000
_MAX_WORDS = 12
_FEWEST_WORDS = 3
_NEXT_WORD_SHARE = 0.95
_MAX_SYSTEM_CHARS = 200

# Up to four words before a colon at the beginning of a line, or two after the end of a sentence. Elsewhere in a
# sentence (`he said: no`) it is content, and so are the colons of addresses, paths, times and C++ names.
_WORD = r"[\w'-]{1,25}"
_LABEL = re.compile(
    rf"(?:^[#*>_ \t-]*((?=[^\W\d_]){_WORD}(?: {_WORD}){{0,3}})|(?<=[.!?]\s)((?=[^\W\d_]){_WORD}(?: {_WORD})?))"
    r"[*_]*[:\uff1a](?![/\\:])(?!(?<=\d:)\d)[*_]*(\s|\Z)?",
    re.MULTILINE,
)
_CODE = frozenset(("else", "try", "finally", "except", "do", "default", "public", "private", "protected", "then"))


@dataclass(frozen=True, slots=True)
class Opening:
    """How the prompt of one example begins."""

    labels: tuple[str, ...]
    """Keywords of the first user message in order, such as `question: `, or `question:` if no space follows."""
    words: tuple[str, ...]
    system: str
    """The system message; a long one is cut and followed by its digest."""
    is_cut: bool
    """The message is longer than the part searched for keywords."""


def opening_of(example: Example, system_prompt: str | None) -> Opening | None:
    """The opening of the example, or None if it has no user message. `system_prompt` applies where it has none."""
    asked = next((message.content for message in example.messages if message.role == "user"), None)
    if asked is None:
        return None
    first = example.messages[0]
    system = (first.content if first.role in ("system", "developer") else system_prompt or "").strip()
    if len(system) > _MAX_SYSTEM_CHARS:
        system = f"{system[:_MAX_SYSTEM_CHARS]}... {hashlib.blake2b(system.encode(), digest_size=8).hexdigest()}"
    asked = asked.strip()
    text = asked[:_SEARCHED_CHARS]
    words = tuple(text.split(maxsplit=_MAX_WORDS)[:_MAX_WORDS])
    return Opening(_labels(text), words, system, is_cut=len(asked) > len(text))


def _labels(text: str) -> tuple[str, ...]:
    found = ((match[1] or match[2], match[3]) for match in _LABEL.finditer(text))
    return tuple(
        dict.fromkeys(f"{name}:" if space is None else f"{name}: " for name, space in found if name not in _CODE)
    )


@dataclass(frozen=True, slots=True)
class Shared:
    """Common to nearly all examples; empty fields are not compared."""

    labels: tuple[str, ...] = ()
    start: tuple[str, ...] = ()
    system: str = ""

    def differences(self, opening: Opening) -> tuple[str, ...]:
        """How the opening differs from most, in plain English."""
        why: list[str] = []
        names = [label.strip() for label in self.labels]
        if not opening.is_cut and tuple(label for label in opening.labels if label in self.labels) != self.labels:
            own = [label.strip() for label in opening.labels if label.strip() in names]
            spacing = " with other white space after the colons" if own == names else ""
            why.append(f"most have {' '.join(names)}{spacing}")
        elif self.start and opening.words[: len(self.start)] != self.start:
            why.append(f"most begin with {' '.join(self.start)!r}")
        if self.system and opening.system != self.system:
            usual = self.system if len(self.system) <= 60 else f"{self.system[:60]}..."
            why.append(f"{'another' if opening.system else 'no'} system message; most have {usual!r}")
        return tuple(why)


def shared_by(openings: Sequence[Opening]) -> Shared:
    """Common to nearly all of the openings."""
    least = max(1.0, SHARE * len(openings))
    uses = Counter(label for opening in openings for label in opening.labels)
    usual = {label for label, count in uses.items() if count >= least}
    labels, count = _most_common((tuple(x for x in opening.labels if x in usual) for opening in openings), ())
    system, same_system = _most_common((opening.system for opening in openings), "")
    # Fields that come and go, or change their order, are not a pattern, and neither are the first words.
    start = () if usual and count < least else _start(openings, least)
    return Shared(labels if count >= least else (), start, system if same_system >= least else "")


def _start(openings: Sequence[Opening], least: float) -> tuple[str, ...]:
    """The words that nearly all begin with; empty if they are so few that it may be chance."""
    start: tuple[str, ...] = ()
    for length in range(1, _MAX_WORDS + 1):
        longer, count = _most_common((one.words[:length] for one in openings if len(one.words) >= length), ())
        if count < least:
            break
        start, least = longer, max(least, _NEXT_WORD_SHARE * count)
    return start if len(start) >= _FEWEST_WORDS else ()


def _most_common(values: Iterable[Value], default: Value) -> tuple[Value, int]:
    return next(iter(Counter(values).most_common(1)), (default, 0))


@dataclass(slots=True)
class Openings:
    """Numbers the openings of examples as they come; `reasons` then says what is odd about each number."""

    _sample: list[Opening] = field(default_factory=list)
    _shared: Shared | None = None
    _later: dict[tuple[str, ...], int] = field(default_factory=dict)

    def number(self, opening: Opening | None) -> int:
        """A number for the opening; -1 if there is none."""
        if opening is None:
            return -1
        if self._shared is not None:
            return _SAMPLE + self._later.setdefault(self._shared.differences(opening), len(self._later))
        self._sample.append(opening)
        if len(self._sample) == _SAMPLE:
            self._shared = shared_by(self._sample)
        return len(self._sample) - 1

    def reasons(self, train: Sequence[int]) -> list[tuple[str, ...]]:
        """How the openings of each number differ from most; `train` holds the numbers of the training examples.

        A difference that is frequent in the training data is variety: the first examples were not like the others.
        """
        uses = Counter(number for number in train if number >= 0)
        shared = self._shared or shared_by([self._sample[number] for number in uses])
        reasons = [*map(shared.differences, self._sample), *self._later]
        odd: Counter[str] = Counter()
        for number, count in uses.items():
            odd.update(dict.fromkeys(reasons[number], count))
        most = uses.total() - SHARE * uses.total()
        return [tuple(reason for reason in why if odd[reason] <= most) for why in reasons]
