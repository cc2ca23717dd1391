"""Questions out of examples, and worked examples in front of them."""

from __future__ import annotations

from pathlib import Path

from launcher.config.frozen import load_config
from launcher.data.example import Example, Message
from launcher.data.prepared import Prepared
from launcher.data.template import ChatFormat
from launcher.evaluate.questions import Prompt, Question, as_question, read_examples, render, with_shots
from tests.tiny_model import CHATML
from tests.unit.evaluate.learned_runs import make_run

USER, ANSWER = Message("user", "one"), Message("assistant", "two")


def question(asked: str, expected: str = "?", system: str | None = None) -> Question:
    messages = [{"role": "user", "content": asked}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return Question(Prompt(tuple(dict(message) for message in messages)), expected)


def test_the_last_answer_is_expected_and_all_before_it_is_asked() -> None:
    example = Example((Message("system", "s"), USER, ANSWER, Message("user", "three"), Message("assistant", "four")))
    found = as_question(example)
    assert found is not None
    assert found.expected == "four" and found.asked == "three"
    assert [message["content"] for message in found.prompt.messages] == ["s", "one", "two", "three"]


def test_what_has_no_answer_in_words_is_no_question() -> None:
    call = Message("assistant", "", tool_calls=({"type": "function", "function": {"name": "f", "arguments": {}}},))
    assert as_question(Example(text="plain text")) is None
    assert as_question(Example((USER, call))) is None
    assert as_question(Example((USER, Message("assistant", "  ")))) is None
    assert as_question(Example((ANSWER,))) is None


def test_shots_stand_between_the_system_message_and_the_question() -> None:
    prompt = with_shots(question("5", system="Count."), [question("1", "2"), question("3", "4")], None)
    assert [(message["role"], message["content"]) for message in prompt.messages] == [
        ("system", "Count."),
        ("user", "1"),
        ("assistant", "2"),
        ("user", "3"),
        ("assistant", "4"),
        ("user", "5"),
    ]


def test_the_preamble_is_in_front_of_every_shot_and_of_the_question() -> None:
    chat = ChatFormat(CHATML, preamble="Q: ")
    shots = [question("1", "2"), question("3", "4")]
    text = render(chat, with_shots(question("5", system="Count."), shots, chat.preamble))
    assert [line for line in text.splitlines() if line.startswith("Q: ")] == [
        "Q: 1<|im_end|>",
        "Q: 3<|im_end|>",
        "Q: 5<|im_end|>",
    ]
    assert render(chat, with_shots(question("5"), [], chat.preamble)).count("Q: ") == 1


def test_examples_are_read_again_from_where_they_came_in_the_order_asked(tiny_model: Path, tmp_path: Path) -> None:
    records = [
        {"messages": [{"role": "user", "content": f"{i}"}, {"role": "assistant", "content": f"{i + 1}"}]}
        for i in range(30)
    ]
    run, info = make_run(tmp_path, tiny_model, train=records, validation=records[:3])
    split = Prepared.open(info.folder, "train")
    examples = read_examples(load_config(run.config).config.data, info.folder, split, [7, 2])
    lines = [split.source_line(row)[1] for row in (7, 2)]
    assert [example.messages[0].content for example in examples] == [str(line - 1) for line in lines]
