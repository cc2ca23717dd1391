"""From answers to a judgement: scores with intervals, paired differences, and whether tuning helped. Pure."""

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
"""Below this nothing is claimed: resampling so few examples gives intervals that are too narrow."""
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
    """Examples shown in the prompt; None where the condition shows none."""


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

    @classmethod
    def score(cls, texts: Sequence[str], expected: Sequence[str]) -> Answers:
        pairs = list(zip(texts, expected, strict=True))
        return cls(list(texts), [exact_match(*pair) for pair in pairs], [token_f1(*pair) for pair in pairs])

    def scores(self, *, shots: int | None = None) -> Scores:
        count = len(self.texts)
        return Scores(
            exact_match=sum(self.exact) / count,
            exact_match_ci=wilson_interval(round(sum(self.exact)), count),
            token_f1=sum(self.f1) / count,
            token_f1_ci=bootstrap_interval(self.f1),
            shots=shots,
        )


def differences(answers: Mapping[str, Answers]) -> dict[str, Difference]:
    """Tuned against each baseline that was measured; empty where the tuned model was not."""
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
    difference: Mapping[str, Difference],
    losses: Mapping[str, float],
    loss: LossDifference | None = None,
) -> Judgement:
    """Says plainly whether tuning helped, against the baseline that is hardest to beat.

    By exact match; by token F1 where not one answer of any condition matches exactly, as with free text; by held-out
    loss where no answers were compared. Where no answer has even a word in common with the expected one, loss shows
    whether there is progress that does not reach the answers yet.
    """
    if not difference:
        return _judge_loss(losses, loss)
    if loss is not None and not any(scores.exact_match or scores.token_f1 for scores in conditions.values()):
        return _judge_speechless(losses, loss)
    by_exact = any(scores.exact_match > 0 for scores in conditions.values())
    rows = {name: _Row.of(d, by_exact=by_exact) for name, d in difference.items()}
    name = min(rows, key=lambda key: (rows[key].is_above, rows[key].ci[0], rows[key].mean))
    row = rows[name]
    tuned, base = (_value(conditions[key], by_exact) for key in (TUNED, name))
    measured = (
        f"{'exact match' if by_exact else 'token F1'} {tuned:.1%} against {base:.1%} {NAMES[name]}, difference "
        f"{_points(row.mean)} points (95 % interval {_points(row.ci[0])} to {_points(row.ci[1])})"
    )
    if row.examples < FEWEST_EXAMPLES:
        return _too_few(measured, row.examples)
    if row.is_above:
        return Judgement(TuningEffect.better, f"Tuning helped: {measured}.")
    if row.is_below:
        return Judgement(TuningEffect.worse, f"Tuning did not help, it made answers worse: {measured}.")
    includes = row.ci[0] <= 0 <= row.ci[1]
    why = "the interval includes no difference" if includes else f"McNemar's exact test finds chance (p = {row.p:.2f})"
    return Judgement(
        TuningEffect.unclear,
        f"Tuning did not help measurably: {measured}; {why}. More held-out examples narrow it.",
    )


@dataclass(frozen=True, slots=True)
class _Row:
    """One difference by the metric that decides. Exact match must pass its exact test as well: an interval from a
    normal approximation is a little too narrow where only four or five examples differ."""

    mean: float
    ci: Interval
    examples: int
    p: float

    @classmethod
    def of(cls, found: Difference, *, by_exact: bool) -> _Row:
        if by_exact:
            return cls(found.exact_match, found.ci, found.examples, found.exact_p)
        return cls(found.token_f1, found.token_f1_ci, found.examples, 0.0)

    @property
    def is_above(self) -> bool:
        return self.ci[0] > 0 and self.p < SURE_P

    @property
    def is_below(self) -> bool:
        return self.ci[1] < 0 and self.p < SURE_P


def _judge_loss(losses: Mapping[str, float], loss: LossDifference | None) -> Judgement:
    if loss is None:
        return Judgement(TuningEffect.unclear, "Base and tuned model were not compared.")
    measured = f"{_loss_measured(losses, loss)}; no answers were compared"
    if loss.examples < FEWEST_EXAMPLES:
        return _too_few(measured, loss.examples)
    if loss.ci[1] < 0:
        return Judgement(TuningEffect.better, f"Tuning helped: {measured}.")
    if loss.ci[0] > 0:
        return Judgement(TuningEffect.worse, f"Tuning did not help, held-out loss rose: {measured}.")
    return Judgement(
        TuningEffect.unclear, f"Tuning did not help measurably: {measured}, and the interval includes no change."
    )


def _judge_speechless(losses: Mapping[str, float], loss: LossDifference) -> Judgement:
    """Where exact match and token F1 are 0 in every condition."""
    nothing = "exact match and token F1 are 0 in every condition"
    measured = _loss_measured(losses, loss)
    if loss.examples < FEWEST_EXAMPLES:
        return _too_few(f"{nothing}; {measured}", loss.examples)
    if loss.ci[1] < 0:
        return Judgement(
            TuningEffect.unclear,
            f"Answers are not better yet: {nothing}. But held-out loss fell by {-loss.difference:.4f} (95 % interval "
            f"{-loss.ci[1]:.4f} to {-loss.ci[0]:.4f}), from {losses['base']:.4f} to {losses[TUNED]:.4f}.",
        )
    if loss.ci[0] > 0:
        return Judgement(TuningEffect.worse, f"Tuning did not help: {nothing}, and held-out loss rose: {measured}.")
    return Judgement(
        TuningEffect.unclear,
        f"Tuning did not help measurably: {nothing}; {measured}, and the interval includes no change.",
    )


def _loss_measured(losses: Mapping[str, float], loss: LossDifference) -> str:
    return (
        f"held-out loss {losses[TUNED]:.4f} against {losses['base']:.4f} for the base, difference "
        f"{loss.difference:+.4f} (95 % interval {loss.ci[0]:+.4f} to {loss.ci[1]:+.4f})"
    )


def _too_few(measured: str, examples: int) -> Judgement:
    count = f"{examples} held-out example{'' if examples == 1 else 's'}"
    return Judgement(
        TuningEffect.unclear,
        f"Too few examples to tell: {measured}; these are {count}, and it takes at least {FEWEST_EXAMPLES}.",
    )


def _value(scores: Scores, by_exact: bool) -> float:
    return scores.exact_match if by_exact else scores.token_f1


def _points(share: float) -> str:
    return f"{100 * share:+.1f}"
