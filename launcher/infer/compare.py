"""From answers to a judgement: scores with intervals, paired differences, and whether tuning helped. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from launcher.infer.scores import (
    Interval,
    bootstrap_interval,
    exact_match,
    paired_difference,
    token_f1,
    wilson_interval,
)

TUNED = "tuned"
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

    def as_dict(self) -> dict[str, object]:
        return _plain(asdict(self))


@dataclass(frozen=True, slots=True)
class Verdict:
    """`better`: the interval of the difference is above zero against every baseline (or, with none, loss fell)."""

    better: bool
    text: str


@dataclass(frozen=True, slots=True)
class EvalResult:
    """What `launcher eval` found; eval.json is `as_dict`."""

    examples: int
    step: int
    conditions: dict[str, Scores]
    difference: dict[str, Difference]
    heldout_loss: dict[str, float]
    verdict: Verdict
    samples: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, object]:
        return {
            "examples": self.examples,
            "step": self.step,
            "conditions": {name: scores.as_dict() for name, scores in self.conditions.items()},
            "heldout_loss": self.heldout_loss,
            "difference": {f"vs_{name}": difference.as_dict() for name, difference in self.difference.items()},
            "verdict": self.verdict.text,
            "better": self.verdict.better,
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
            exact, exact_ci = paired_difference(tuned.exact, answers[name].exact)
            f1, f1_ci = paired_difference(tuned.f1, answers[name].f1)
            found[name] = Difference(exact, exact_ci, f1, f1_ci)
    return found


def judge(
    conditions: Mapping[str, Scores], difference: Mapping[str, Difference], heldout_loss: Mapping[str, float]
) -> Verdict:
    """Says plainly whether tuning helped, against the baseline that is hardest to beat.

    By exact match; by token F1 where not one answer of any condition matches exactly, as with free text; by held-out
    loss where no answers were compared.
    """
    if not difference:
        return _judge_loss(heldout_loss)
    by_exact = any(scores.exact_match > 0 for scores in conditions.values())
    metric = "exact match" if by_exact else "token F1"
    rows = {name: (d.exact_match, d.ci) if by_exact else (d.token_f1, d.token_f1_ci) for name, d in difference.items()}
    name = min(rows, key=lambda key: (rows[key][1][0], rows[key][0]))
    mean, (low, high) = rows[name]
    tuned, base = (_value(conditions[key], by_exact) for key in (TUNED, name))
    measured = (
        f"{metric} {tuned:.1%} against {base:.1%} {NAMES[name]}, difference {_points(mean)} points "
        f"(95 % interval {_points(low)} to {_points(high)})"
    )
    if low > 0:
        return Verdict(True, f"Tuning helped: {measured}.")
    if high < 0:
        return Verdict(False, f"Tuning did not help, it made answers worse: {measured}.")
    return Verdict(
        False,
        f"Tuning did not help measurably: {measured}; the interval includes no difference. "
        "More held-out examples narrow it.",
    )


def _judge_loss(loss: Mapping[str, float]) -> Verdict:
    if not {"base", "tuned"} <= loss.keys():
        return Verdict(False, "Base and tuned model were not compared.")
    measured = f"held-out loss {loss['tuned']:.4f} against {loss['base']:.4f} for the base"
    if loss["tuned"] < loss["base"]:
        return Verdict(True, f"Tuning helped: {measured}; no answers were compared.")
    return Verdict(False, f"Tuning did not help: {measured}; no answers were compared.")


def _value(scores: Scores, by_exact: bool) -> float:
    return scores.exact_match if by_exact else scores.token_f1


def _points(share: float) -> str:
    return f"{100 * share:+.1f}"


def _plain(values: dict[str, object]) -> dict[str, object]:
    """Intervals as lists, as JSON has them."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
