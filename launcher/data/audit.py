"""What the audit found, how bad each finding is, and whether the run may start."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path

from launcher.errors import DataError, Problem

MAX_PLACES = 20


class Severity(Enum):
    error = "error"
    warning = "warning"


@dataclass(frozen=True, slots=True)
class Rule:
    """One kind of finding."""

    severity: Severity
    what: str
    todo: str
    keeps: bool = False
    """Whether an example with this finding can be trained on (data.allow then decides); otherwise it is left out."""
    can_allow: bool = True


_E, _W = Severity.error, Severity.warning

RULES: dict[str, Rule] = {
    # Files and records.
    "broken_json": Rule(_E, "not valid JSON", "correct the lines"),
    "not_utf8": Rule(_E, "not UTF-8 text", "save the file as UTF-8"),
    "bad_unicode": Rule(_E, "text that is not valid Unicode", "correct the escapes"),
    "not_an_object": Rule(_E, "a record that is no JSON object", "write one {...} object per example"),
    "duplicate_key": Rule(_E, "a key twice in one object; one value would be lost", "rename or remove one of the two"),
    "nan_value": Rule(_E, "NaN or Infinity where text belongs", "write empty text, or leave the field out"),
    "broken_row": Rule(_E, "a CSV row with more or fewer cells than the header", "quote cells that hold separators"),
    "empty_line": Rule(_W, "empty lines, skipped", "nothing, if that is meant"),
    "unknown_format": Rule(_E, "fields that fit no known format", "see docs/data.md, or name the format: data.format"),
    "wrong_fields": Rule(_E, "a record that does not fit the format of its file", "correct the records"),
    "non_text_content": Rule(_E, "content that is not text", "remove images, audio and files; only text is taught"),
    "unknown_role": Rule(_E, "a role nobody knows", "use system, user, assistant or tool"),
    "broken_tool_arguments": Rule(_E, "arguments of a tool call that are no JSON", "correct the arguments"),
    # Conversations.
    "no_assistant_turn": Rule(_E, "no assistant turn, so nothing to learn", "add the answer, or remove the example"),
    "last_turn_not_assistant": Rule(_W, "turns after the last answer; they teach nothing", "end with an answer"),
    "empty_output": Rule(_E, "an empty answer; the model would learn to say nothing", "write the answer", keeps=True),
    "empty_input": Rule(_W, "an empty user message", "write the question"),
    "wrong_role_order": Rule(
        _E, "roles in an impossible order", "system first, then user and assistant in turn", keeps=True
    ),
    "too_long_input_chars": Rule(_E, "input over data.max_input_chars", "shorten it, or raise the limit", keeps=True),
    "too_long_output_chars": Rule(
        _E, "output over data.max_output_chars", "shorten it, or raise the limit", keeps=True
    ),
    "special_token_in_text": Rule(
        _E,
        "text that holds a special token of the tokenizer, which would be read as a command",
        "remove it from the text, or allow it if it is meant",
        keeps=True,
    ),
    # Template and mask.
    "template_error": Rule(_E, "the chat template refuses the conversation", "correct it, or give data.chat_template"),
    "mask_unresolved": Rule(
        _E, "an answer that cannot be found in the rendered text beyond doubt", "give data.chat_template"
    ),
    "content_lost": Rule(
        _E,
        "the chat template leaves out part of an answer (such as its thinking or tool calls)",
        "give a data.chat_template that keeps it, or remove that part from the examples",
        keeps=True,
    ),
    "earlier_turns_differ": Rule(
        _W,
        "the chat template writes earlier answers differently from the last one, so they teach what is never asked for",
        "give each answer its own example, or set weight 0 on earlier ones",
    ),
    "no_supervised_tokens": Rule(_E, "no token to learn from", "set weight 1 on an answer, or remove the example"),
    "end_of_turn_not_trained": Rule(
        _E,
        "the template writes no end-of-turn token after an answer; the tuned model would not stop",
        "give a data.chat_template that writes the end token after each answer",
        keeps=True,
    ),
    "generation_prompt_differs": Rule(
        _W,
        "the template's generation prompt ends in text that training examples do not have",
        "give a data.chat_template in which both agree",
    ),
    "generation_prompt_added": Rule(
        _W,
        "the template has no generation prompt; the header it writes before each answer was added as one",
        "nothing: the corrected template travels with the tuned model",
    ),
    # Lengths.
    "over_length": Rule(_E, "longer than data.seq_len_tokens", "raise it, or set data.over_length to drop or truncate"),
    "over_length_dropped": Rule(_W, "longer than data.seq_len_tokens, dropped as asked", "nothing, if that is meant"),
    "truncated": Rule(_W, "longer than data.seq_len_tokens, cut at its end as asked", "nothing, if that is meant"),
    "truncated_end_of_turn": Rule(
        _W, "the cut took the end of the answer, so the model does not see it stop there", "raise data.seq_len_tokens"
    ),
    "truncated_to_nothing": Rule(
        _W, "nothing to learn was left after the cut, so the example was dropped", "raise data.seq_len_tokens"
    ),
    # The data set as a whole.
    "no_examples": Rule(
        _E, "no usable example", "see the other findings; without any, the file is empty", can_allow=False
    ),
    "too_few_examples": Rule(_W, "few examples", "collect more"),
    "duplicate": Rule(_W, "the same example again", "remove copies; each counts as often as it is there"),
    "conflicting_outputs": Rule(_W, "the same input with different outputs", "decide for one, unless variety is meant"),
    "train_validation_overlap": Rule(
        _E, "inputs of the held-out data that are trained on too; its loss would flatter", "remove them from one side"
    ),
    "inconsistent_prefix": Rule(
        _W,
        "prompts that do not begin as most do: other keywords, order, first words or system message",
        "use the same keywords, format, order and system message in all examples, and in production",
    ),
    "held_out_files_ignored": Rule(_W, "files named for testing in the data folder, not read", "nothing, if meant"),
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a finding is: file, line (row in a table, number in a list; 0 for the file), and what was seen."""

    file: str
    line: int
    detail: str = ""

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        return f"{where}: {self.detail}" if self.detail else where


@dataclass(frozen=True, slots=True)
class Finding:
    """One kind of finding in one data set."""

    code: str
    severity: Severity
    count: int
    places: tuple[Place, ...]
    """The first ones, at most MAX_PLACES."""
    what: str
    todo: str
    accepted: bool = False
    """In data.allow."""

    @property
    def vetoes(self) -> bool:
        return self.severity is Severity.error and not self.accepted

    def as_problem(self) -> Problem:
        shown = "; ".join(str(place) for place in self.places)
        more = f"; and {self.count - len(self.places)} more" if self.count > len(self.places) > 0 else ""
        where = f" ({shown}{more})" if shown else ""
        hint = f"{self.todo}; or accept it: data.allow=[{self.code}]" if RULES[self.code].can_allow else self.todo
        return Problem(f"data: {self.code}", self.count, f"{self.what}{where}", hint)


@dataclass(slots=True)
class Tally:
    """Findings while they are being counted; places beyond the first are counted only."""

    counts: dict[str, int] = field(default_factory=dict)
    places: dict[str, list[Place]] = field(default_factory=dict)

    def add(self, code: str, place: Place | None = None, count: int = 1) -> None:
        self.counts[code] = self.counts.get(code, 0) + count
        known = self.places.setdefault(code, [])
        if place is not None and len(known) < MAX_PLACES:
            known.append(place)

    def remove(self, code: str) -> None:
        self.counts.pop(code, None)
        self.places.pop(code, None)

    def merge(self, other: Tally) -> None:
        for code, count in other.counts.items():
            self.add(code, None, count)
            room = MAX_PLACES - len(self.places[code])
            self.places[code] += other.places[code][:room]

    def findings(self, allow: Iterable[str]) -> tuple[Finding, ...]:
        """All findings, errors first, in the order of the table."""
        allowed = {code for code in allow if code in RULES and RULES[code].can_allow}
        made = [
            Finding(
                code, rule.severity, self.counts[code], tuple(self.places[code]), rule.what, rule.todo, code in allowed
            )
            for code, rule in RULES.items()
            if code in self.counts
        ]
        return tuple(sorted(made, key=lambda finding: finding.severity is Severity.warning))


@dataclass(frozen=True, slots=True)
class SplitCounts:
    """What became of the examples of one split; token counts are of what was kept."""

    examples_read: int = 0
    examples_kept: int = 0
    examples_dropped: int = 0
    examples_truncated: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    tokens_cut: int = 0


@dataclass(frozen=True, slots=True)
class Audit:
    """The audit of one data set; `audit.json`."""

    findings: tuple[Finding, ...]
    counts: Mapping[str, SplitCounts]
    """By split: train, validation."""
    formats: Mapping[str, str]
    """File -> format it was read in."""
    allow: tuple[str, ...] = ()

    @property
    def vetoed(self) -> bool:
        return any(finding.vetoes for finding in self.findings)

    def raise_if_vetoed(self) -> None:
        """Raises DataError with all findings that stop the run."""
        problems = [finding.as_problem() for finding in self.findings if finding.vetoes]
        if problems:
            raise DataError("the data audit refuses these examples:", problems)

    def as_dict(self) -> dict[str, object]:
        return {
            "vetoed": self.vetoed,
            "allow": list(self.allow),
            "formats": dict(self.formats),
            "counts": {split: asdict(counts) for split, counts in self.counts.items()},
            "findings": [
                {**asdict(finding), "severity": finding.severity.value, "vetoes": finding.vetoes}
                for finding in self.findings
            ],
        }

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(self.as_dict(), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Audit:
        values = json.loads(path.read_text(encoding="utf-8"))
        findings = tuple(
            Finding(
                code=entry["code"],
                severity=Severity(entry["severity"]),
                count=entry["count"],
                places=tuple(Place(**place) for place in entry["places"]),
                what=entry["what"],
                todo=entry["todo"],
                accepted=entry["accepted"],
            )
            for entry in values["findings"]
        )
        counts = {split: SplitCounts(**numbers) for split, numbers in values["counts"].items()}
        return cls(findings, counts, values["formats"], tuple(values["allow"]))
