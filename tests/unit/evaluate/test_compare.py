"""Verdicts: what may be called better, and against which baseline."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from launcher.evaluate.compare import Answers, EvalResult, LossDifference, TuningEffect, compare_answers, judge_tuning
from launcher.evaluate.scores import Discordant, LabelLoss
from launcher.files import record_from
from tests.unit.evaluate.test_scores import outcomes

EXPECTED = [str(number) for number in range(40)]


def answers(right: int, *, wrong: str = "no") -> Answers:
    """The first `right` of 40 answers are right."""
    return Answers.score(EXPECTED[:right] + [wrong] * (40 - right), EXPECTED)


def verdict(**conditions: Answers) -> tuple[bool, str]:
    judged = judge_tuning({name: a.scores() for name, a in conditions.items()}, compare_answers(conditions), {})
    return judged.effect is TuningEffect.better, judged.text


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
    assert text.startswith("Tuning made answers worse: exact match 12.5% against 75.0% zero-shot")


def test_a_small_gain_on_few_examples_is_not_called_better() -> None:
    assert verdict(zero_shot=answers(20), tuned=answers(21))[0] is False


def test_free_text_is_judged_by_token_f1() -> None:
    expected = [f"it is number {i}" for i in range(40)]
    base = Answers.score(["who knows"] * 40, expected)
    tuned = Answers.score([f"it is {i}" for i in range(40)], expected)
    better, text = verdict(zero_shot=base, tuned=tuned)
    assert better
    assert "token F1 85.7% against 0.0%" in text


def test_f1_that_is_everywhere_the_same_is_no_certainty() -> None:
    expected = [f"it is number {i}" for i in range(40)]
    same = Answers.score(["it is"] * 40, expected)
    found = compare_answers({"zero_shot": same, "tuned": same})["zero_shot"]
    assert found.token_f1 == 0.0 and found.token_f1_ci == pytest.approx((-0.0876, 0.0876), abs=1e-4)
    nothing = Answers.score(["-"] * 40, expected).scores()
    assert nothing.token_f1_ci == pytest.approx((0.0, 0.0876), abs=1e-4)


@pytest.mark.parametrize("count", [1, 3, 9])
@pytest.mark.parametrize(("tuned", "base"), [("0", "no"), ("no", "0")])
def test_a_few_examples_that_all_agree_are_too_few_to_tell(count: int, tuned: str, base: str) -> None:
    conditions = {
        name: Answers.score([text] * count, ["0"] * count) for name, text in (("zero_shot", base), ("tuned", tuned))
    }
    judged = judge_tuning({name: a.scores() for name, a in conditions.items()}, compare_answers(conditions), {})
    assert judged.effect is TuningEffect.unclear
    assert judged.text.startswith("Too few examples to tell: exact match")
    assert f"; {count} validation example{'' if count == 1 else 's'}, at least 10 are needed" in judged.text


def test_four_answers_that_got_right_are_not_called_better_against_the_exact_test() -> None:
    better, text = verdict(zero_shot=answers(0), tuned=answers(4))
    assert not better
    assert "difference +10.0 points" in text and "McNemar's exact test finds chance (p = 0.12)" in text
    assert verdict(zero_shot=answers(0), tuned=answers(6))[0]


@pytest.mark.parametrize("differ", [0.02, 0.2, 0.6, 1.0])
@pytest.mark.parametrize("pairs", [10, 30])
def test_where_neither_is_better_a_claim_is_made_at_most_once_in_twenty(pairs: int, differ: float) -> None:
    def claims(found: Discordant) -> bool:
        base = [0.0] * found.ours_only + [1.0] * (pairs - found.ours_only)
        tuned = [1.0] * (pairs - found.theirs_only) + [0.0] * found.theirs_only
        made = {"zero_shot": Answers(["-"] * pairs, base, base), "tuned": Answers(["-"] * pairs, tuned, tuned)}
        scores = {name: found.scores() for name, found in made.items()}
        return judge_tuning(scores, compare_answers(made), {}).effect is not TuningEffect.unclear

    # A claim needs five that differ at the least; asking only there keeps this quick.
    asked = [(found, chance) for found, chance in outcomes(pairs, differ / 2, differ / 2) if chance > 1e-7]
    asked = [(found, chance) for found, chance in asked if abs(found.ours_only - found.theirs_only) > 4]
    assert sum(chance for found, chance in asked if claims(found)) <= 0.05


def losses(*means: float) -> list[LabelLoss]:
    return [LabelLoss(mean * labels, labels) for mean, labels in zip(means, [3, 5, 8] * len(means), strict=False)]


def loss_verdict(tuned: list[LabelLoss], base: list[LabelLoss]) -> tuple[TuningEffect, str]:
    loss = LossDifference.between(tuned, base)
    judged = judge_tuning({}, {}, {"base": 2.0, "tuned": 2.0 + loss.difference}, loss)
    return judged.effect, judged.text


def test_without_answers_the_loss_decides_and_says_how_sure_it_is() -> None:
    base, lower = losses(*[2.0] * 20), losses(*[1.4, 1.6] * 10)
    outcome, text = loss_verdict(lower, base)
    assert outcome is TuningEffect.better
    assert text.startswith("Tuning helped: validation loss 1.5019 against 2.0000 for the base, difference -0.4981")
    assert "(95 % interval -0.5" in text and "no answers were compared" in text
    outcome, text = loss_verdict(base, lower)
    assert outcome is TuningEffect.worse and text.startswith("Tuning did not help, validation loss rose")
    outcome, text = loss_verdict(losses(*[1.5, 2.5] * 10), base)
    assert outcome is TuningEffect.unclear and "the interval includes zero" in text


def test_the_loss_of_a_few_examples_is_too_little_to_tell() -> None:
    outcome, text = loss_verdict(losses(*[1.0] * 9), losses(*[2.0] * 9))
    assert outcome is TuningEffect.unclear
    assert text.startswith("Too few examples to tell: validation loss") and "9 validation examples" in text


def test_without_a_tuned_model_nothing_was_compared() -> None:
    assert judge_tuning({}, {}, {"base": 1.0}).text == "Base and tuned model were not compared."


def test_where_no_answer_has_a_right_word_the_loss_shows_whether_there_is_progress() -> None:
    silent = {name: Answers.score(["-"] * 40, EXPECTED) for name in ("zero_shot", "tuned")}
    scores = {name: found.scores() for name, found in silent.items()}

    def judged(tuned: list[LabelLoss]) -> tuple[TuningEffect, str]:
        loss = LossDifference.between(tuned, losses(*[5.0] * 40))
        found = judge_tuning(scores, compare_answers(silent), {"base": 5.0, "tuned": 5.0 + loss.difference}, loss)
        return found.effect, found.text

    outcome, text = judged(losses(*[2.0, 2.2] * 20))
    assert outcome is TuningEffect.unclear
    assert text.startswith("Answers are not better yet, but validation loss fell")
    assert "validation loss 2.0986 against 5.0000 for the base, difference -2.9014 (95 % interval -" in text
    assert judged(losses(*[6.0, 6.2] * 20))[0] is TuningEffect.worse
    assert judged(losses(*[4.0, 6.0] * 20))[1].startswith("Tuning did not help measurably")


def test_the_result_has_the_shape_of_eval_json() -> None:
    conditions = {"zero_shot": answers(0), "few_shot": answers(10), "tuned": answers(30)}
    conditions["few_shot"] = replace(conditions["few_shot"], shots=5)
    scores = {name: a.scores() for name, a in conditions.items()}
    judgement = judge_tuning(scores, compare_answers(conditions), {})
    result = EvalResult(
        examples=40,
        step=12,
        conditions=scores,
        difference={f"vs_{name}": found for name, found in compare_answers(conditions).items()},
        validation_loss={"base": 2.0, "tuned": 1.0},
        verdict=judgement.text,
        better=judgement.effect is TuningEffect.better,
        effect=judgement.effect,
        samples=[{"prompt": "1", "expected": "2", "zero_shot": "no", "tuned": "2"}],
    )
    document = json.loads(json.dumps(result.as_dict()))
    assert document["conditions"]["few_shot"]["shots"] == 5
    assert "shots" not in document["conditions"]["tuned"]
    assert document["conditions"]["zero_shot"]["exact_match_ci"] == [0.0, pytest.approx(0.0876, abs=1e-4)]
    assert document["difference"]["vs_few_shot"]["exact_match"] == 0.5
    assert document["difference"]["vs_few_shot"]["ci"][0] > 0.3
    assert document["difference"]["vs_few_shot"]["examples"] == 40
    assert document["difference"]["vs_few_shot"]["exact_p"] < 1e-4
    assert (document["better"], document["outcome"]) == (True, "better")
    assert document["heldout_loss_difference"] is None
    assert {"examples", "step", "heldout_loss", "verdict", "samples"} <= document.keys() and "path" not in document
    assert record_from(EvalResult, document) == result
