"""From answers to a judgement: scores with intervals, paired differences, and whether tuning helped. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path

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

    def as_dict(self) -> dict[str, object]:
        values = asdict(self)
        if self.shots is None:
            del values["shots"]
        return _plain(values)


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

    def as_dict(self) -> dict[str, object]:
        return _plain(asdict(self))


@dataclass(frozen=True, slots=True)
class LossDifference:
    """Held-out loss of the tuned model minus that of the base, paired by example."""

    difference: float
    ci: Interval
    examples: int
    """Those with anything to learn in them."""

    @classmethod
    def between(cls, tuned: Sequence[LabelLoss], base: Sequence[LabelLoss]) -> LossDifference:
        difference, interval = loss_difference(tuned, base)
        return cls(difference, interval, sum(loss.labels > 0 for loss in tuned))

    def as_dict(self) -> dict[str, object]:
        return _plain(asdict(self))


class Outcome(Enum):
    better = "better"
    worse = "worse"
    unclear = "unclear"


@dataclass(frozen=True, slots=True)
class Verdict:
    """`better`: the interval of the difference is above zero against every baseline (or, with none, loss fell)."""

    outcome: Outcome
    text: str

    @property
    def better(self) -> bool:
        return self.outcome is Outcome.better


@dataclass(frozen=True, slots=True)
class EvalResult:
    """What `launcher eval` found; eval.json is `as_dict`."""

    examples: int
    step: int
    conditions: dict[str, Scores]
    difference: dict[str, Difference]
    heldout_loss: dict[str, float]
    verdict: Verdict
    loss_difference: LossDifference | None = None
    """None where base and tuned model were not both measured."""
    samples: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    path: Path | None = None
    """Where it was written."""

    def as_dict(self) -> dict[str, object]:
        return {
            "examples": self.examples,
            "step": self.step,
            "conditions": {name: scores.as_dict() for name, scores in self.conditions.items()},
            "heldout_loss": self.heldout_loss,
            "heldout_loss_difference": self.loss_difference.as_dict() if self.loss_difference else None,
            "difference": {f"vs_{name}": difference.as_dict() for name, difference in self.difference.items()},
            "verdict": self.verdict.text,
            "better": self.verdict.better,
            "outcome": self.verdict.outcome.value,
            "samples": self.samples,
            "notes": self.notes,
        }


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


def judge(
    conditions: Mapping[str, Scores],
    difference: Mapping[str, Difference],
    heldout_loss: Mapping[str, float],
    loss: LossDifference | None = None,
) -> Verdict:
    """Says plainly whether tuning helped, against the baseline that is hardest to beat.

    By exact match; by token F1 where not one answer of any condition matches exactly, as with free text; by held-out
    loss where no answers were compared. Where no answer has even a word in common with the expected one, loss shows
    whether there is progress that does not reach the answers yet.
    """
    if not difference:
        return _judge_loss(heldout_loss, loss)
    if loss is not None and not any(scores.exact_match or scores.token_f1 for scores in conditions.values()):
        return _judge_speechless(heldout_loss, loss)
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
        return Verdict(Outcome.better, f"Tuning helped: {measured}.")
    if row.is_below:
        return Verdict(Outcome.worse, f"Tuning did not help, it made answers worse: {measured}.")
    includes = row.ci[0] <= 0 <= row.ci[1]
    why = "the interval includes no difference" if includes else f"McNemar's exact test finds chance (p = {row.p:.2f})"
    return Verdict(
        Outcome.unclear,
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


def _judge_loss(heldout_loss: Mapping[str, float], loss: LossDifference | None) -> Verdict:
    if loss is None:
        return Verdict(Outcome.unclear, "Base and tuned model were not compared.")
    measured = f"{_loss_measured(heldout_loss, loss)}; no answers were compared"
    if loss.examples < FEWEST_EXAMPLES:
        return _too_few(measured, loss.examples)
    if loss.ci[1] < 0:
        return Verdict(Outcome.better, f"Tuning helped: {measured}.")
    if loss.ci[0] > 0:
        return Verdict(Outcome.worse, f"Tuning did not help, held-out loss rose: {measured}.")
    return Verdict(Outcome.unclear, f"Tuning did not help measurably: {measured}, and the interval includes no change.")


def _judge_speechless(heldout_loss: Mapping[str, float], loss: LossDifference) -> Verdict:
    """Where exact match and token F1 are 0 in every condition."""
    nothing = "exact match and token F1 are 0 in every condition"
    measured = _loss_measured(heldout_loss, loss)
    if loss.examples < FEWEST_EXAMPLES:
        return _too_few(f"{nothing}; {measured}", loss.examples)
    if loss.ci[1] < 0:
        return Verdict(
            Outcome.unclear,
            f"Answers are not better yet: {nothing}. But held-out loss fell by {-loss.difference:.4f} (95 % interval "
            f"{-loss.ci[1]:.4f} to {-loss.ci[0]:.4f}), from {heldout_loss['base']:.4f} to {heldout_loss[TUNED]:.4f}.",
        )
    if loss.ci[0] > 0:
        return Verdict(Outcome.worse, f"Tuning did not help: {nothing}, and held-out loss rose: {measured}.")
    return Verdict(
        Outcome.unclear,
        f"Tuning did not help measurably: {nothing}; {measured}, and the interval includes no change.",
    )


def _loss_measured(heldout_loss: Mapping[str, float], loss: LossDifference) -> str:
    return (
        f"held-out loss {heldout_loss[TUNED]:.4f} against {heldout_loss['base']:.4f} for the base, difference "
        f"{loss.difference:+.4f} (95 % interval {loss.ci[0]:+.4f} to {loss.ci[1]:+.4f})"
    )


def _too_few(measured: str, examples: int) -> Verdict:
    count = f"{examples} held-out example{'' if examples == 1 else 's'}"
    return Verdict(
        Outcome.unclear,
        f"Too few examples to tell: {measured}; these are {count}, and it takes at least {FEWEST_EXAMPLES}.",
    )


def _value(scores: Scores, by_exact: bool) -> float:
    return scores.exact_match if by_exact else scores.token_f1


def _points(share: float) -> str:
    return f"{100 * share:+.1f}"


def _plain(values: dict[str, object]) -> dict[str, object]:
    """Intervals as lists, as JSON has them."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
