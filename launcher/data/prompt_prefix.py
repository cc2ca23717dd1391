"""How prompts begin: their keywords, first words and system message; what nearly all share, and which examples lack it.

What nearly all share is looked for in the first examples only, so that of the others a few numbers are remembered.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from launcher.data.example import Example

SHARE = 0.8
"""What at least this share of the examples has is meant to be in all of them; less is variety."""

_SAMPLE = 2000
_CANDIDATE_SHARE = 0.5
_MAX_LABELS = 200
_SCANNED_CHARS = 4000
_MAX_TRAITS = 4000
"""More kinds of openings are not told apart; what comes later counts as no opening."""
_MAX_ORDERED = 8
"""Of more labels that are not all in the same order nearly everywhere, only so many are looked at."""
_MAX_WORDS = 12
_FEWEST_WORDS = 2
_CHANCE = 0.05
_MAX_SYSTEM_CHARS = 200

# Prompts that begin with these are questions in their own words, even where many do.
_ASKING = (
    *("what", "who", "whom", "whose", "which", "when", "where", "why", "how", "is", "are", "was", "were", "do", "does"),
    *("did", "can", "could", "will", "would", "should", "have", "i"),
)

# A label is a few words before a colon: up to four at the beginning of a line, two behind the end of a sentence.
# Behind other words of a sentence (`he said: no`) it is content. The colons of addresses, paths, times and C++ names
# make none.
_COLON = re.compile(r"(?<=[\w'*])[:\uff1a](?![/\\:])(?!(?<=\d:)\d)[*_]*(\s|\Z)?")
_WORD = r"[\w'-]{1,25}"
_BEFORE_COLON = re.compile(
    rf"(?:^[#*>-]*[ \t]?[*_]*((?=[^\W\d_]){_WORD}(?: {_WORD}){{0,3}})[*_]*"
    rf"|(?<=[.!?]\s)((?=[^\W\d_]){_WORD}(?: {_WORD})?))\Z",
    re.MULTILINE,
)
# What stands before a colon in program code; further words may follow the first ones.
_CODE = re.compile(
    r"(?:else|try|finally|except|do|default|public|private|protected|then)\Z"
    r"|(?:if|elif|else if|for|while|with|class|def|case|except|match|switch|async) ",
)
_LABEL_CHARS = 120


@dataclass(frozen=True, slots=True)
class Opening:
    """How the prompt of one example begins."""

    labels: tuple[str, ...]
    """Keywords such as `question: ` and `context: ` of the first user message, in order; without the space where
    text follows the colon at once."""
    words: tuple[str, ...]
    """The first words of that message."""
    system: str
    """The system message; a long one as its beginning and a digest."""
    is_cut: bool = False
    """The message is longer than what was searched for keywords."""


def opening_of(example: Example, system_prompt: str | None) -> Opening | None:
    """How the example begins, with the system prompt it is given if it has none; None where there is no prompt."""
    asked = next((message.content for message in example.messages if message.role == "user"), None)
    if asked is None:
        return None
    first = example.messages[0]
    system = first.content if first.role in ("system", "developer") else system_prompt or ""
    asked = asked.strip()
    text = asked[:_SCANNED_CHARS]
    words = tuple(text.split(maxsplit=_MAX_WORDS)[:_MAX_WORDS])
    return Opening(_labels(text), words, _short(system.strip()), is_cut=len(asked) > len(text))


def _labels(text: str) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for colon in _COLON.finditer(text):
        line = text.rfind("\n", 0, colon.start()) + 1
        before = _BEFORE_COLON.search(text, max(line, colon.start() - _LABEL_CHARS), colon.start())
        name = "" if before is None else before[1] or before[2]
        if not name or _CODE.match(name):
            continue
        found[f"{name}:" if colon[1] is None else f"{name}: "] = None
        if len(found) == _MAX_LABELS:
            break
    return tuple(found)


def _short(text: str) -> str:
    if len(text) <= _MAX_SYSTEM_CHARS:
        return text
    return f"{text[:_MAX_SYSTEM_CHARS]}... {hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}"


@dataclass(frozen=True, slots=True)
class Traits:
    """What of the shared opening an example has."""

    labels: tuple[str, ...]
    starts_alike: bool
    has_system: bool
    same_system: bool
    is_cut: bool = False
    """Further labels may follow where nobody looked."""


@dataclass(frozen=True, slots=True)
class Common:
    """What many of the first examples share."""

    labels: frozenset[str] = frozenset()
    start: tuple[str, ...] = ()
    system: str = ""

    def traits(self, opening: Opening) -> Traits:
        return Traits(
            labels=tuple(label for label in opening.labels if label in self.labels),
            starts_alike=opening.words[: len(self.start)] == self.start,
            has_system=bool(opening.system),
            same_system=opening.system == self.system,
            is_cut=opening.is_cut,
        )


def common_of(openings: Sequence[Opening]) -> Common:
    """What is worth counting in all examples, as these show it."""
    labels = Counter(label for opening in openings for label in opening.labels)
    often = {label for label, number in labels.items() if number >= _CANDIDATE_SHARE * len(openings)}
    # Each with and without a space behind the colon, so that one can be told from the other.
    often |= {label[:-1] if label.endswith(" ") else f"{label} " for label in often}
    systems = Counter(opening.system for opening in openings if opening.system).most_common(1)
    return Common(frozenset(often), _common_start(openings), systems[0][0] if systems else "")


def _common_start(openings: Sequence[Opening]) -> tuple[str, ...]:
    """The words nearly all begin with, as far as they seem to be meant; empty where two of them may be chance."""
    shared: list[str] = []
    share = 1.0
    left: Sequence[Opening] = openings
    while len(shared) < _MAX_WORDS:
        at = len(shared)
        following = Counter(opening.words[at] for opening in left if len(opening.words) > at).most_common(1)
        if not following or following[0][1] < SHARE * len(openings):
            break
        word, number = following[0]
        # Behind what is meant, many contents may by chance begin with the same word.
        if shared and share - number / len(openings) > _CHANCE and not _closes(word):
            break
        shared.append(word)
        share = number / len(openings)
        left = [opening for opening in left if opening.words[at : at + 1] == (word,)]
    while shared and not _closes(shared[-1]) and any(map(_closes, shared)):
        shared.pop()
    fewest = _FEWEST_WORDS + (shared[:1] != [] and shared[0].lower() in _ASKING)
    is_meant = len(shared) >= fewest or (bool(shared) and _closes(shared[-1]))
    return tuple(shared) if is_meant else ()


def _closes(word: str) -> bool:
    return word[-1] in ".:!?\uff1a"


@dataclass(slots=True)
class Openings:
    """Numbers the openings of examples as they come; `traits` then says what each number stands for."""

    _sample: list[Opening] = field(default_factory=list)
    _common: Common | None = None
    _later: dict[Traits, int] = field(default_factory=dict)

    def number(self, opening: Opening | None) -> int:
        """A number for the opening; -1 for none, and for those beyond what is told apart."""
        if opening is None:
            return -1
        if self._common is None:
            self._sample.append(opening)
            if len(self._sample) == _SAMPLE:
                self._common = common_of(self._sample)
            return len(self._sample) - 1
        traits = self._common.traits(opening)
        if traits not in self._later and len(self._later) >= _MAX_TRAITS:
            return -1
        return _SAMPLE + self._later.setdefault(traits, len(self._later))

    def close(self) -> tuple[Common, list[Traits]]:
        """What is common, and the traits of each number given."""
        common = self._common or common_of(self._sample)
        return common, [*map(common.traits, self._sample), *self._later]


@dataclass(frozen=True, slots=True)
class Expected:
    """What an example should have, given what nearly all have."""

    labels: tuple[str, ...]
    start: tuple[str, ...]
    system: str

    def lacks(self, traits: Traits) -> str:
        """What an example has otherwise, in words; empty if nothing."""
        why: list[str] = []
        own = tuple(label for label in traits.labels if label in self.labels)
        names = " ".join(label.strip() for label in self.labels)
        begins_so = traits.is_cut and own == self.labels[: len(own)]
        if own != self.labels and not begins_so:
            spaced = tuple(label.strip() for label in traits.labels) == tuple(label.strip() for label in self.labels)
            why.append(f"most have {names}" + (" with other white space after the colons" if spaced else ""))
        elif self.start and not traits.starts_alike:
            why.append(f"most begin with {' '.join(self.start)!r}")
        if self.system and not traits.same_system:
            other = "another system message" if traits.has_system else "no system message"
            why.append(f"{other}; most have {_beginning(self.system)!r}")
        return "; ".join(why)


def expected_of(common: Common, counted: Iterable[tuple[Traits, int]]) -> Expected:
    """What nearly all have, of what is common; `counted` holds traits and how many examples have them."""
    counts = [(traits, number) for traits, number in counted if number]
    least = SHARE * sum(number for _, number in counts)
    alike = sum(number for traits, number in counts if traits.starts_alike) >= least
    same = sum(number for traits, number in counts if traits.same_system) >= least
    usual = _usual_labels(counts, least)
    labels = _in_order(usual, counts, least)
    # A field that comes and goes is no pattern where it is the first one either.
    begins = " ".join(common.start)
    dropped = any(begins.endswith(label.strip()) for label in usual if label not in labels)
    start = common.start if alike and not dropped else ()
    return Expected(labels, start, common.system if same else "")


def _usual_labels(counts: Sequence[tuple[Traits, int]], least: float) -> list[str]:
    """The labels nearly all have, those of most examples first."""
    uses: Counter[str] = Counter()
    for traits, number in counts:
        uses.update(dict.fromkeys(traits.labels, number))
    return sorted((label for label in uses if uses[label] >= least), key=lambda label: (-uses[label], label))


def _in_order(usual: list[str], counts: Sequence[tuple[Traits, int]], least: float) -> tuple[str, ...]:
    """The labels in the order in which nearly all have them; fewer where the order varies.

    None where most of them would have to go: then they are fields that come and go, and no pattern.
    """
    size = len(usual)
    while size and 2 * size >= len(usual):
        kept = frozenset(usual[:size])
        orders: Counter[tuple[str, ...]] = Counter()
        for traits, number in counts:
            orders[tuple(label for label in traits.labels if label in kept)] += number
        order = max(orders, key=lambda order: (orders[order], order))
        if orders[order] >= least:
            return order
        size = min(size - 1, _MAX_ORDERED)
    return ()


def _beginning(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:60]}..."
