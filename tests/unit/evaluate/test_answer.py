"""Answers: the batch changes nothing, the end of turn ends them, and what does not fit is refused."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, processors
from transformers import AutoModelForCausalLM, AutoTokenizer

from launcher.config.frozen import load_config
from launcher.errors import ModelError
from launcher.evaluate.answer import Answerer, Tokens, batches_by_length
from launcher.evaluate.questions import Prompt
from launcher.evaluate.scores import mean_loss
from launcher.export.export import export
from tests.unit.export import finished_runs

QUESTIONS = ["1", "a much longer question than the first one", "two", "1" * 60, "last"]


def ask(text: str) -> Prompt:
    return Prompt(({"role": "user", "content": text},))


def greedy(folder: Path, question: str, count: int) -> list[int]:
    """New tokens of plain transformers for one question, unbatched and without any end token."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = model.generate(**inputs, max_new_tokens=count, do_sample=False, eos_token_id=None)
    return list(output[0, inputs["input_ids"].shape[1] :].tolist())


@pytest.fixture(scope="module")
def answerer(tiny_model: Path) -> Answerer:
    return Answerer(tiny_model, device="cpu", dtype=torch.float32)


def test_answers_in_a_batch_are_those_of_plain_transformers_one_by_one(answerer: Answerer, tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    stop = tokenizer.convert_tokens_to_ids("<|im_end|>")
    expected = []
    for question in QUESTIONS:
        ids = greedy(tiny_model, question, 20)
        expected.append(tokenizer.decode(ids[: ids.index(stop)] if stop in ids else ids, skip_special_tokens=True))
    assert answerer.answer([ask(question) for question in QUESTIONS], max_new_tokens=20) == expected


def test_the_end_of_turn_ends_an_answer(tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    ids = greedy(folder, "hello", 12)
    stop = ids[6]
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**settings, "eos_token_id": stop}))
    answer = Answerer(folder, dtype=torch.float32).answer([ask("hello")], max_new_tokens=12)[0]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert answer == tokenizer.decode(ids[: ids.index(stop)], skip_special_tokens=True)


def test_progress_counts_prompts(answerer: Answerer) -> None:
    told: list[tuple[int, int]] = []
    answerer.answer([ask(q) for q in QUESTIONS], max_new_tokens=2, progress=lambda done, of: told.append((done, of)))
    assert told == [(5, 5)]


def test_a_prompt_that_leaves_no_room_is_refused_with_the_numbers(answerer: Answerer) -> None:
    with pytest.raises(ModelError, match=r"prompt of 5\d\d tokens and 20 new tokens exceed the 512"):
        answerer.answer([ask("x" * 500)], max_new_tokens=20)


def test_a_folder_without_weights_is_an_error_that_names_it(tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="model cannot be loaded as a model"):
        Answerer(folder)


def test_the_first_token_is_never_a_label_and_none_gives_no_number(answerer: Answerer) -> None:
    with_first = mean_loss(answerer.losses([Tokens([5, 6, 7], [True, True, True])]))
    assert with_first == pytest.approx(mean_loss(answerer.losses([Tokens([5, 6, 7], [False, True, True])])))
    assert math.isnan(mean_loss(answerer.losses([Tokens([5, 6], [True, False])])))


def test_padding_does_not_change_the_loss(answerer: Answerer) -> None:
    short, long = Tokens([5, 6, 7], [False, True, True]), Tokens(list(range(40)), [False] + [True] * 39)
    apart = (mean_loss(answerer.losses([short])) * 2 + mean_loss(answerer.losses([long])) * 39) / 41
    assert mean_loss(answerer.losses([short, long])) == pytest.approx(apart, rel=1e-5)


def test_an_adapter_over_its_base_answers_as_the_merged_model(tiny_model: Path, tmp_path: Path) -> None:
    data = finished_runs.make_data(tmp_path / "data", tiny_model)
    run = finished_runs.make_run(tmp_path / "tiny", tiny_model, data, "method.kind=lora", "method.rank=4")
    config = load_config(run.config).config
    finished_runs.add_checkpoint(run, config, finished_runs.trained_model(tiny_model, config)[1], 6)
    export(run.root, tmp_path / "adapter")
    export(run.root, tmp_path / "merged", merge=True)
    prompts = [ask(question) for question in QUESTIONS]
    with_adapter = Answerer(tiny_model, adapter=tmp_path / "adapter", dtype=torch.float32)
    merged = Answerer(tmp_path / "merged", dtype=torch.float32)
    answers = with_adapter.answer(prompts, max_new_tokens=12)
    assert answers == merged.answer(prompts, max_new_tokens=12)
    assert answers != Answerer(tiny_model, dtype=torch.float32).answer(prompts, max_new_tokens=12)


def test_a_text_to_go_on_with_begins_as_the_tokenizer_begins_texts_and_once_only(
    tiny_model: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    begin = tokenizer.token_to_id("<|endoftext|>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A <|im_end|>",
        special_tokens=[("<|endoftext|>", begin), ("<|im_end|>", tokenizer.token_to_id("<|im_end|>"))],
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    answerer = Answerer(folder, dtype=torch.float32)
    expected = [begin, *tokenizer.encode("once", add_special_tokens=False).ids]
    assert answerer.encode(Prompt(text="once")) == expected
    assert answerer.encode(Prompt(text="<|endoftext|>once")) == expected


def test_batches_hold_every_row_once_longest_first_within_the_limit() -> None:
    lengths = [3, 50, 7, 200, 7, 1, 30]
    batches = list(batches_by_length(lengths, 100))
    assert sorted(i for batch in batches for i in batch) == list(range(7))
    assert batches == [[3], [1, 6], [2, 4, 0, 5]]
    assert all(len(batch) == 1 or len(batch) * lengths[batch[0]] <= 100 for batch in batches)
