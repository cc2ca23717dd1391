"""Scores of each condition with intervals, paired differences, and whether tuning helped. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

from launcher.evaluate.scores import (
    Discordant,
    Interval,
    LabelLoss,
    bootstrap_interval,
    exact_match,
    loss_difference,
    paired_difference,
    token_f1,
    wilson_interval,
)
from launcher.files import as_json

TUNED = "tuned"
FEWEST_EXAMPLES = 10
"""With fewer nothing is claimed: resampling gives intervals that are too narrow."""
SURE_P = 0.05
BASELINES = ("zero_shot", "few_shot", "retrieval")
NAMES = {"zero_shot": "zero-shot", "few_shot": "few-shot", "retrieval": "retrieval", "tuned": "tuned"}


@dataclass(frozen=True, slots=True)
class Scores:
    """One condition, over all examples."""

    exact_match: float
    exact_match_ci: Interval
    token_f1: float
    token_f1_ci: Interval
    shots: int | None = None
    """Examples in the prompt; None if the condition has none."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Tuned minus a baseline, paired by example."""

    exact_match: float
    ci: Interval
    token_f1: float
    token_f1_ci: Interval
    examples: int
    exact_p: float
    """Of McNemar's exact test of exact match."""


@dataclass(frozen=True, slots=True)
class LossDifference:
    """Validation loss of the tuned model minus that of the base, paired by example."""

    difference: float
    ci: Interval
    examples: int
    """Those with supervised tokens."""

    @classmethod
    def between(cls, tuned: Sequence[LabelLoss], base: Sequence[LabelLoss]) -> LossDifference:
        difference, interval = loss_difference(tuned, base)
        return cls(difference, interval, sum(loss.labels > 0 for loss in tuned))


class TuningEffect(Enum):
    better = "better"
    """The interval of the difference is above zero against every baseline; without baselines, the loss fell."""
    worse = "worse"
    unclear = "unclear"


class Judgement(NamedTuple):
    effect: TuningEffect
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalResult:
    """What `launcher eval` measured: eval.json."""

    examples: int
    step: int
    conditions: dict[str, Scores]
    validation_loss: dict[str, float] = field(metadata={"json": "heldout_loss"})
    """By model: base, tuned."""
    loss_difference: LossDifference | None = field(default=None, metadata={"json": "heldout_loss_difference"})
    """None unless base and tuned model were both measured."""
    difference: dict[str, Difference]
    """By vs_BASELINE."""
    verdict: str
    """Whether tuning helped, in a sentence."""
    better: bool
    effect: TuningEffect = field(metadata={"json": "outcome"})
    samples: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    path: Path | None = None
    """Where it was written; not in the file."""

    def as_dict(self) -> dict[str, Any]:
        """For eval.json and --json."""
        document: dict[str, Any] = as_json(self)
        del document["path"]
        for scores in document["conditions"].values():
            if scores["shots"] is None:
                del scores["shots"]
        return document


@dataclass(frozen=True, slots=True)
class Answers:
    """The answers of one condition, and the scores of each."""

    texts: list[str]
    exact: list[float]
    f1: list[float]
    shots: int | None = None

    @classmethod
    def score(cls, texts: Sequence[str], expected: Sequence[str], *, shots: int | None = None) -> Answers:
        pairs = list(zip(texts, expected, strict=True))
        return cls(list(texts), [exact_match(*pair) for pair in pairs], [token_f1(*pair) for pair in pairs], shots)

    def scores(self) -> Scores:
        count = len(self.texts)
        return Scores(
            exact_match=sum(self.exact) / count,
            exact_match_ci=wilson_interval(round(sum(self.exact)), count),
            token_f1=sum(self.f1) / count,
            token_f1_ci=bootstrap_interval(self.f1),
            shots=self.shots,
        )


def compare_answers(answers: Mapping[str, Answers]) -> dict[str, Difference]:
    """Tuned against each measured baseline; empty if the tuned model was not measured."""
    if TUNED not in answers:
        return {}
    tuned = answers[TUNED]
    found = {}
    for name in BASELINES:
        if name in answers:
            exact = Discordant.count(tuned.exact, answers[name].exact)
            f1, f1_ci = paired_difference(tuned.f1, answers[name].f1)
            found[name] = Difference(exact.difference, exact.interval(), f1, f1_ci, exact.pairs, exact.exact_p())
    return found


def judge_tuning(
    conditions: Mapping[str, Scores],
    differences: Mapping[str, Difference],
    losses: Mapping[str, float],
    loss: LossDifference | None = None,
) -> Judgement:
    """Whether tuning helped, against the baseline that is hardest to beat.

    By exact match; by token F1 if no answer of any condition matches exactly, as with free text; by validation loss if
    no answers were compared. If no answer shares even a word with the expected one, the loss shows whether there is
    progress that does not reach the answers yet.
    """
    is_silent = not any(scores.exact_match or scores.token_f1 for scores in conditions.values())
    if not differences or (loss is not None and is_silent):
        return _judge_loss(losses, loss, has_answers=bool(differences))
    by_exact = any(scores.exact_match > 0 for scores in conditions.values())
    rows = {
        name: (found.exact_match, found.ci, found.exact_p) if by_exact else (found.token_f1, found.token_f1_ci, 0.0)
        for name, found in differences.items()
    }

    def margin(name: str) -> tuple[bool, float, float]:
        mean, (low, _), p = rows[name]
        return low > 0 and p < SURE_P, low, mean

    name = min(rows, key=margin)
    mean, (low, high), p = rows[name]
    values = [found.exact_match if by_exact else found.token_f1 for found in (conditions[TUNED], conditions[name])]
    measured = (
        f"{'exact match' if by_exact else 'token F1'} {values[0]:.1%} against {values[1]:.1%} {NAMES[name]}, "
        f"difference {100 * mean:+.1f} points (95 % interval {100 * low:+.1f} to {100 * high:+.1f})"
    )
    if differences[name].examples < FEWEST_EXAMPLES:
        return _too_few(measured, differences[name].examples)
    # Exact match must pass its exact test as well: an interval from a normal approximation is a little too narrow
    # where only four or five examples differ.
    if low > 0 and p < SURE_P:
        return Judgement(TuningEffect.better, f"Tuning helped: {measured}.")
    if high < 0 and p < SURE_P:
        return Judgement(TuningEffect.worse, f"Tuning made answers worse: {measured}.")
    why = "the interval includes zero" if low <= 0 <= high else f"McNemar's exact test finds chance (p = {p:.2f})"
    text = f"Tuning did not help measurably: {measured}; {why}. More validation examples narrow it."
    return Judgement(TuningEffect.unclear, text)


def _judge_loss(losses: Mapping[str, float], loss: LossDifference | None, *, has_answers: bool) -> Judgement:
    """Without answers to compare, or with answers that share no word with the expected ones."""
    if loss is None:
        return Judgement(TuningEffect.unclear, "Base and tuned model were not compared.")
    low, high = loss.ci
    reason = "exact match and token F1 are 0 in every condition" if has_answers else "no answers were compared"
    measured = (
        f"validation loss {losses[TUNED]:.4f} against {losses['base']:.4f} for the base, difference "
        f"{loss.difference:+.4f} (95 % interval {low:+.4f} to {high:+.4f}); {reason}"
    )
    if loss.examples < FEWEST_EXAMPLES:
        return _too_few(measured, loss.examples)
    if low > 0:
        return Judgement(TuningEffect.worse, f"Tuning did not help, validation loss rose: {measured}.")
    if high >= 0:
        text = f"Tuning did not help measurably, the interval includes zero: {measured}."
        return Judgement(TuningEffect.unclear, text)
    if has_answers:
        return Judgement(TuningEffect.unclear, f"Answers are not better yet, but validation loss fell: {measured}.")
    return Judgement(TuningEffect.better, f"Tuning helped: {measured}.")


def _too_few(measured: str, examples: int) -> Judgement:
    count = f"{examples} validation example{'' if examples == 1 else 's'}"
    text = f"Too few examples to tell: {measured}; {count}, at least {FEWEST_EXAMPLES} are needed."
    return Judgement(TuningEffect.unclear, text)
