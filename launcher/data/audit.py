"""Findings of the data audit, their severity, and whether they block the run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum

from launcher.data.example import Example
from launcher.errors import DataError, ExampleError, Problem
from launcher.files import as_json

MAX_LOCATIONS = 20


class Severity(Enum):
    error = "error"
    warning = "warning"


@dataclass(frozen=True, slots=True)
class Rule:
    """A kind of finding."""

    severity: Severity
    what: str
    hint: str
    keeps: bool = False
    """Whether such an example can be trained on if data.allow accepts it; otherwise it is always left out."""
    can_allow: bool = True


_E, _W = Severity.error, Severity.warning

RULES: dict[str, Rule] = {
    # Files and records.
    "broken_json": Rule(_E, "not valid JSON", "correct the lines"),
    "not_utf8": Rule(_E, "not UTF-8 text", "save the file as UTF-8"),
    "bad_unicode": Rule(_E, "text that is not valid Unicode", "correct the escapes"),
    "not_an_object": Rule(_E, "a record that is not a JSON object", "write one {...} object per example"),
    "duplicate_key": Rule(_E, "duplicate key in an object; one value would be lost", "rename or remove one of them"),
    "nan_value": Rule(_E, "NaN or Infinity instead of text", "use an empty string, or leave the field out"),
    "broken_row": Rule(_E, "a CSV row with more or fewer cells than the header", "quote cells that hold separators"),
    "empty_line": Rule(_W, "empty lines (skipped)", "no action needed if intended"),
    "unknown_format": Rule(_E, "fields that match no known format", "see docs/data.md, or set data.format"),
    "wrong_fields": Rule(_E, "a record that does not match the format of its file", "correct the records"),
    "non_text_content": Rule(_E, "content that is not text", "remove images, audio and files; only text is supported"),
    "unknown_role": Rule(_E, "unknown role", "use system, user, assistant or tool"),
    "broken_tool_arguments": Rule(_E, "tool call arguments that are not valid JSON", "correct the arguments"),
    # Conversations.
    "no_assistant_turn": Rule(_E, "no assistant turn, so nothing to learn", "add an answer, or remove the example"),
    "last_turn_not_assistant": Rule(_W, "turns after the last answer; they are not learned", "end with an answer"),
    "empty_output": Rule(_E, "empty answer; the model would learn to say nothing", "write the answer", keeps=True),
    "empty_input": Rule(_W, "empty user message", "write the question"),
    "wrong_role_order": Rule(_E, "invalid order of roles", "system first, then user and assistant in turn", keeps=True),
    "too_long_input_chars": Rule(_E, "input over data.max_input_chars", "shorten it or raise the limit", keeps=True),
    "too_long_output_chars": Rule(_E, "output over data.max_output_chars", "shorten it or raise the limit", keeps=True),
    "special_token_in_text": Rule(
        _E,
        "text with a special token of the tokenizer, which the model would read as a control token",
        "remove it from the text, or accept it if intended",
        keeps=True,
    ),
    # Template and mask.
    "template_error": Rule(_E, "the chat template rejects the conversation", "correct it, or give data.chat_template"),
    "mask_unresolved": Rule(_E, "an answer whose position in the rendered text is unclear", "give data.chat_template"),
    "content_lost": Rule(
        _E,
        "the chat template drops part of an answer (such as thinking or tool calls)",
        "give a data.chat_template that keeps it, or remove that part from the examples",
        keeps=True,
    ),
    "earlier_turns_differ": Rule(
        _W,
        "the chat template renders earlier answers differently from the last, so the model learns unused text",
        "split into one example per answer, or set weight 0 on earlier answers",
    ),
    "no_supervised_tokens": Rule(_E, "no supervised token", "set weight 1 on an answer, or remove the example"),
    "end_of_turn_not_trained": Rule(
        _E,
        "the chat template writes no end-of-turn token after an answer; the tuned model would not stop",
        "give a data.chat_template that writes the end token after each answer",
        keeps=True,
    ),
    "generation_prompt_differs": Rule(
        _W,
        "the generation prompt of the chat template ends in text that training examples do not have",
        "give a data.chat_template in which both match",
    ),
    "generation_prompt_added": Rule(
        _W,
        "the chat template has no generation prompt; its answer header was added as one",
        "no action needed: the corrected template is saved with the tuned model",
    ),
    # Lengths.
    "over_length": Rule(_E, "longer than data.seq_len_tokens", "raise it, or set data.over_length to drop or truncate"),
    "over_length_dropped": Rule(
        _W, "longer than data.seq_len_tokens (dropped, as configured)", "no action needed if intended"
    ),
    "truncated": Rule(_W, "longer than data.seq_len_tokens (truncated, as configured)", "no action needed if intended"),
    "truncated_end_of_turn": Rule(
        _W, "truncation cut the end of the answer, so the model does not learn to stop", "raise data.seq_len_tokens"
    ),
    "truncated_to_nothing": Rule(
        _W, "truncation removed all supervised tokens, so the example was dropped", "raise data.seq_len_tokens"
    ),
    # The dataset as a whole.
    "no_examples": Rule(
        _E, "no usable example", "see the other findings; if there are none, the file is empty", can_allow=False
    ),
    "too_few_examples": Rule(_W, "few examples", "collect more"),
    "duplicate": Rule(_W, "duplicate example", "remove duplicates; each copy is trained on"),
    "conflicting_outputs": Rule(_W, "same input with different outputs", "keep one output, unless variety is intended"),
    "train_validation_overlap": Rule(
        _E, "validation inputs that are also in the training data (leakage)", "remove them from one of the two"
    ),
    "inconsistent_prefix": Rule(
        _W,
        "prompts that do not begin like most others: different keywords, order, first words or system message",
        "use the same keywords, format, order and system message in all examples, and at inference",
    ),
    "held_out_files_ignored": Rule(_W, "test files in the data folder (not read)", "no action needed if intended"),
}


@dataclass(frozen=True, slots=True)
class Location:
    """Where a finding is: file, line (row of a table, item of a list; 0 for the whole file) and details."""

    file: str
    line: int
    detail: str = ""

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        return f"{where}: {self.detail}" if self.detail else where


@dataclass(frozen=True, slots=True)
class AuditFinding:
    """All findings of one kind in a dataset."""

    code: str
    severity: Severity
    count: int
    places: tuple[Location, ...]
    """The first MAX_LOCATIONS."""
    what: str
    hint: str = field(metadata={"json": "todo"})
    accepted: bool = False
    """In data.allow."""

    @property
    def blocks(self) -> bool:
        return self.severity is Severity.error and not self.accepted

    def as_problem(self) -> Problem:
        shown = "; ".join(map(str, self.places))
        more = f"; and {self.count - len(self.places)} more" if self.count > len(self.places) > 0 else ""
        where = f" ({shown}{more})" if shown else ""
        hint = f"{self.hint}; or accept it: data.allow=[{self.code}]" if RULES[self.code].can_allow else self.hint
        return Problem(f"data: {self.code}", self.count, f"{self.what}{where}", hint)


@dataclass(slots=True)
class Tally:
    """Counts findings and remembers the first locations of each kind."""

    counts: dict[str, int] = field(default_factory=dict)
    places: dict[str, list[Location]] = field(default_factory=dict)

    def add(self, code: str, location: Location | None = None, count: int = 1) -> None:
        self.counts[code] = self.counts.get(code, 0) + count
        known = self.places.setdefault(code, [])
        if location is not None and len(known) < MAX_LOCATIONS:
            known.append(location)

    def note(self, example: Example, code: str, detail: str = "") -> None:
        self.add(code, Location(example.source, example.line, detail))

    @contextmanager
    def catching(self, example: Example) -> Iterator[None]:
        """Counts an ExampleError raised in the block."""
        try:
            yield
        except ExampleError as error:
            self.note(example, error.code, error.why)

    def remove(self, code: str) -> None:
        self.counts.pop(code, None)
        self.places.pop(code, None)

    def merge(self, other: Tally) -> None:
        for code, count in other.counts.items():
            self.add(code, None, count)
            room = MAX_LOCATIONS - len(self.places[code])
            self.places[code] += other.places[code][:room]

    def findings(self, allow: Iterable[str]) -> tuple[AuditFinding, ...]:
        """All findings, errors first, in the order of the table."""
        allowed = {code for code in allow if code in RULES and RULES[code].can_allow}
        made = [
            AuditFinding(
                code, rule.severity, self.counts[code], tuple(self.places[code]), rule.what, rule.hint, code in allowed
            )
            for code, rule in RULES.items()
            if code in self.counts
        ]
        return tuple(sorted(made, key=lambda finding: finding.severity is Severity.warning))


@dataclass(frozen=True, slots=True)
class SplitCounts:
    """Counts of one split; tokens are those of the examples kept."""

    examples_read: int = 0
    examples_kept: int = 0
    examples_dropped: int = 0
    examples_truncated: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    tokens_cut: int = 0


@dataclass(frozen=True, slots=True)
class Audit:
    """The audit of a dataset; `audit.json`."""

    findings: tuple[AuditFinding, ...]
    counts: dict[str, SplitCounts]
    """By split: train, validation."""
    formats: dict[str, str]
    """Format of each file."""
    allow: tuple[str, ...] = ()

    @property
    def blocked(self) -> bool:
        return any(finding.blocks for finding in self.findings)

    def raise_if_blocked(self) -> None:
        """Raises DataError with all findings that block the run."""
        problems = [finding.as_problem() for finding in self.findings if finding.blocks]
        if problems:
            raise DataError("the data audit rejects these examples:", problems)

    def as_dict(self) -> dict[str, object]:
        return {
            "vetoed": self.blocked,
            **as_json(self),
            "findings": [{**as_json(finding), "vetoes": finding.blocks} for finding in self.findings],
        }
