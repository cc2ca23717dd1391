"""`launcher eval` end to end on a tiny model: what it measures, writes, says and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from launcher.errors import DataError, RunError, UserError
from launcher.evaluate.evaluate import evaluate_run, visible_answer
from tests.unit.evaluate import learned_runs
from tests.unit.evaluate.learned_runs import add_learned_checkpoint, make_run, pairs


def test_a_model_that_learned_is_better_than_its_base(learned: Path) -> None:
    stages: list[str] = []
    result = evaluate_run(learned, shots=3, progress=lambda stage, done, of: stages.append(stage))
    assert result.conditions["tuned"].exact_match == 1.0
    assert result.conditions["zero_shot"].exact_match == 0.0
    assert result.better and result.verdict.startswith("Tuning helped: exact match 100.0%")
    assert result.validation_loss["tuned"] < 0.1 < 2 < result.validation_loss["base"]
    document = json.loads((learned / "eval.json").read_text())
    assert document == json.loads(json.dumps(result.as_dict()))
    assert set(document["conditions"]) == {"zero_shot", "few_shot", "retrieval", "tuned"}
    assert document["conditions"]["few_shot"]["shots"] == 3
    assert set(document["difference"]) == {"vs_zero_shot", "vs_few_shot", "vs_retrieval"}
    assert (document["examples"], document["step"]) == (12, 60)
    assert document["samples"][0]["prompt"].startswith("question ") and document["samples"][0]["tuned"] == "ok"
    assert {"zero-shot answers", "retrieval answers", "tuned answers", "validation loss of the tuned"} <= set(stages)


def test_a_model_that_learned_nothing_is_not_called_better(tiny_model: Path, tmp_path: Path) -> None:
    run, _ = make_run(tmp_path, tiny_model, train=pairs(40), validation=pairs(12, start=100))
    add_learned_checkpoint(run, tiny_model, steps=1)
    result = evaluate_run(run.root, conditions=["zero_shot", "tuned"])
    assert not result.better
    assert result.verdict.startswith("Answers are not better yet, but validation loss fell")
    assert "exact match and token F1 are 0 in every condition" in result.verdict


def test_the_validation_loss_is_the_mean_over_all_supervised_tokens(tiny_model: Path, tmp_path: Path) -> None:
    from launcher.config.frozen import load_config
    from launcher.data.prepared import Prepared
    from launcher.evaluate.answer import Answerer, Tokens
    from launcher.evaluate.scores import mean_loss

    answers = ["a", "a much longer answer than the others", "two words"]
    records = [{"prompt": f"question {i}", "completion": answers[i % 3]} for i in range(9)]
    run, _ = make_run(tmp_path, tiny_model, train=pairs(40), validation=records)
    derived = load_config(run.config).derived
    assert derived is not None
    split = Prepared.open(Path(derived.data_dir), "validation")
    total, count = 0.0, 0
    network = learned_runs.AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    with torch.inference_mode():
        for row in range(split.num_examples):
            labels = int(split.mask(row)[1:].sum())
            total += learned_runs.example_loss(network, split, row).item() * labels
            count += labels
    tokens = [Tokens(split.tokens(i).tolist(), split.mask(i).tolist()) for i in range(split.num_examples)]
    answerer = Answerer(tiny_model, dtype=torch.float32)
    assert mean_loss(answerer.losses(tokens)) == pytest.approx(total / count, rel=1e-5)
    # One by one they are the same, in the order of the examples and not of their length.
    apart = [answerer.losses([one])[0] for one in tokens]
    assert [found.total for found in answerer.losses(tokens)] == pytest.approx([one.total for one in apart], rel=1e-4)
    assert [found.labels for found in answerer.losses(tokens)] == [one.labels for one in apart]


def test_a_limit_draws_the_same_examples_each_time(learned: Path) -> None:
    first, second = (evaluate_run(learned, limit=5, conditions=["zero_shot"]) for _ in range(2))
    assert first.examples == 5
    assert [sample["prompt"] for sample in first.samples] == [sample["prompt"] for sample in second.samples]


def test_a_run_without_held_out_examples_says_which_setting_is_missing(tiny_model: Path, tmp_path: Path) -> None:
    run, _ = make_run(tmp_path, tiny_model, train=pairs(40), validation=None)
    add_learned_checkpoint(run, tiny_model, steps=1)
    with pytest.raises(RunError, match=r"data\.validation_path=FILE or data\.validation_fraction"):
        evaluate_run(run.root)


def test_examples_split_off_the_training_file_are_found_again(tiny_model: Path, tmp_path: Path) -> None:
    run, info = make_run(tmp_path, tiny_model, "data.validation_fraction=0.2", train=pairs(40), validation=None)
    add_learned_checkpoint(run, tiny_model, steps=1)
    result = evaluate_run(run.root, conditions=["zero_shot"])
    assert info.validation is not None
    assert result.examples == info.validation.num_examples
    asked = {str(record["prompt"]) for record in pairs(40)}
    assert {sample["prompt"] for sample in result.samples} <= asked


def test_plain_text_is_judged_by_its_loss(tiny_model: Path, tmp_path: Path) -> None:
    train = [{"text": f"the answer to {i} is always ok"} for i in range(40)]
    heldout = [{"text": f"the answer to {i} is always ok"} for i in range(50, 60)]
    run, _ = make_run(tmp_path, tiny_model, train=train, validation=heldout)
    add_learned_checkpoint(run, tiny_model, steps=30)
    result = evaluate_run(run.root)
    assert result.conditions == {} and result.better
    assert result.verdict.startswith("Tuning helped: validation loss")
    assert result.loss_difference is not None and result.loss_difference.ci[1] < 0
    assert result.loss_difference.examples == 10
    assert "no text answer" in result.notes[0]


def test_data_that_was_moved_away_is_an_error_that_says_so(tiny_model: Path, tmp_path: Path) -> None:
    run, _ = make_run(tmp_path, tiny_model, train=pairs(40), validation=pairs(12, start=100))
    add_learned_checkpoint(run, tiny_model, steps=1)
    (tmp_path / "heldout.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    with pytest.raises(DataError, match=r"11 examples are missing from the data.*heldout.jsonl:2"):
        evaluate_run(run.root)


def test_unknown_conditions_and_no_shots_are_refused(learned: Path) -> None:
    with pytest.raises(UserError, match="choose from zero_shot, few_shot, retrieval, tuned"):
        evaluate_run(learned, conditions=["zeroshot"])
    with pytest.raises(UserError, match="--shots 0: at least 1"):
        evaluate_run(learned, shots=0)


def test_thinking_in_front_of_an_answer_does_not_count() -> None:
    assert visible_answer("<think>\n42?\n</think>\n\n43") == "\n\n43"
    assert visible_answer("43") == "43"
