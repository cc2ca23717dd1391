"""Verdicts: what may be called better, and against which baseline."""

from __future__ import annotations

import json

import pytest

from launcher.infer.compare import Answers, EvalResult, differences, judge

EXPECTED = [str(number) for number in range(40)]


def answers(right: int, *, wrong: str = "no") -> Answers:
    """The first `right` of 40 answers are right."""
    return Answers.score(EXPECTED[:right] + [wrong] * (40 - right), EXPECTED)


def verdict(**conditions: Answers) -> tuple[bool, str]:
    judged = judge({name: a.scores() for name, a in conditions.items()}, differences(conditions), {})
    return judged.better, judged.text


def test_a_tuned_model_that_beats_every_baseline_is_better() -> None:
    better, text = verdict(zero_shot=answers(0), few_shot=answers(8), tuned=answers(36))
    assert better
    assert text.startswith("Tuning helped: exact match 90.0% against 20.0% few-shot, difference +70.0 points")


def test_beating_zero_shot_only_is_not_enough() -> None:
    better, text = verdict(zero_shot=answers(0), few_shot=answers(36), tuned=answers(36))
    assert not better
    assert text.startswith("Tuning did not help measurably: exact match 90.0% against 90.0% few-shot")


def test_a_worse_model_is_called_worse() -> None:
    better, text = verdict(zero_shot=answers(30), tuned=answers(5))
    assert not better
    assert text.startswith("Tuning did not help, it made answers worse: exact match 12.5% against 75.0% zero-shot")


def test_a_small_gain_on_few_examples_is_not_called_better() -> None:
    assert verdict(zero_shot=answers(20), tuned=answers(21))[0] is False


def test_free_text_is_judged_by_token_f1() -> None:
    expected = [f"it is number {i}" for i in range(40)]
    base = Answers.score(["who knows"] * 40, expected)
    tuned = Answers.score([f"it is {i}" for i in range(40)], expected)
    better, text = verdict(zero_shot=base, tuned=tuned)
    assert better
    assert "token F1 85.7% against 0.0%" in text


@pytest.mark.parametrize(("tuned", "better"), [(0.5, True), (1.5, False)])
def test_without_answers_the_loss_decides(tuned: float, better: bool) -> None:
    assert judge({}, {}, {"base": 1.0, "tuned": tuned}).better is better


def test_the_result_has_the_shape_of_eval_json() -> None:
    conditions = {"zero_shot": answers(0), "few_shot": answers(10), "tuned": answers(30)}
    scores = {name: a.scores(shots=5 if name == "few_shot" else None) for name, a in conditions.items()}
    difference = differences(conditions)
    result = EvalResult(
        examples=40,
        step=12,
        conditions=scores,
        difference=difference,
        heldout_loss={"base": 2.0, "tuned": 1.0},
        verdict=judge(scores, difference, {}),
        samples=[{"prompt": "1", "expected": "2", "zero_shot": "no", "tuned": "2"}],
    )
    document = json.loads(json.dumps(result.as_dict()))
    assert document["conditions"]["few_shot"]["shots"] == 5
    assert "shots" not in document["conditions"]["tuned"]
    assert document["conditions"]["zero_shot"]["exact_match_ci"] == [0.0, pytest.approx(0.0876, abs=1e-4)]
    assert document["difference"]["vs_few_shot"]["exact_match"] == 0.5
    assert document["difference"]["vs_few_shot"]["ci"][0] > 0.3
    assert document["better"] is True
    assert {"examples", "step", "heldout_loss", "verdict", "samples"} <= document.keys()
