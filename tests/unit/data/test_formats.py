"""Every format: what it reads as, what is refused, and that the documentation shows it truly."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.config.schema import DataFormat
from launcher.data.audit import RULES
from launcher.data.example import Example
from launcher.data.formats import FORMATS, detect, to_example
from launcher.errors import ExampleError

DOC = Path(__file__).parents[3] / "docs" / "data.md"


def read(record: dict[str, object]) -> Example:
    kind = detect(record)
    assert kind is not None
    return to_example(record, kind)


def dialogue(example: Example) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in example.messages]


def documented() -> dict[str, list[dict[str, object]]]:
    formats = DOC.read_text().split("\n## Formats\n")[1].split("\n## ")[0]
    sections = re.findall(r"\n### (\w+)\n.*?```json\n(.*?)```", formats, flags=re.DOTALL)
    return {name: [json.loads(line) for line in lines.splitlines()] for name, lines in sections}


def test_the_documentation_shows_every_format() -> None:
    assert set(documented()) == {kind.value for kind in FORMATS}


@pytest.mark.parametrize("kind", FORMATS)
def test_the_documented_examples_are_detected_and_read(kind: DataFormat) -> None:
    for record in documented()[kind.value]:
        assert detect(record) is kind
        example = to_example(record, kind)
        assert example.text if kind is DataFormat.text else example.messages[example.last_answer].content


def test_pairs_become_user_and_assistant() -> None:
    pair = [("user", "a"), ("assistant", "b")]
    assert dialogue(read({"prompt": "a", "completion": "b"})) == pair
    assert dialogue(read({"text_input": "a", "output": "b"})) == pair
    assert dialogue(read({"question": "a", "answer": "b"})) == pair
    assert dialogue(read({"instruction": "a", "output": "b"})) == pair


def test_instruction_with_input_system_and_history() -> None:
    record = {"instruction": "i", "input": "x", "output": "o", "system": "s", "history": [["q", "a"]]}
    assert dialogue(read(record)) == [
        ("system", "s"), ("user", "q"), ("assistant", "a"), ("user", "i\n\nx"), ("assistant", "o")
    ]  # fmt: skip


def test_a_context_is_written_with_its_keyword() -> None:
    record = {"question": "How many?", "context": "Twelve.", "answer": "12"}
    assert dialogue(read(record))[0] == ("user", "question: How many?\ncontext: Twelve.")


def test_weight_zero_and_its_twin_train_false() -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}]
    assert not read({"messages": turns}).messages[1].train
    turns[1] = {"role": "assistant", "content": "b", "train": False}
    assert not read({"messages": turns}).messages[1].train


def test_answers_inside_a_prompt_are_not_taught() -> None:
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    example = read({"prompt": said, "completion": [{"role": "assistant", "content": "d"}]})
    assert [message.train for message in example.messages if message.role == "assistant"] == [False, True]


def test_tool_arguments_become_objects_and_functions_become_tools() -> None:
    call = {"id": "x", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    turns = [
        {"role": "user", "content": "go"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "x", "content": "done"},
        {"role": "assistant", "function_call": {"name": "g", "arguments": ""}},
    ]
    example = read({"messages": turns, "functions": [{"name": "f"}]})
    assert example.messages[1].tool_calls == (
        {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}, "id": "x"},
    )
    assert example.messages[2].as_dict() == {"role": "tool", "content": "done", "tool_call_id": "x"}
    assert example.messages[3].tool_calls[0]["function"] == {"name": "g", "arguments": {}}
    assert example.tools == ({"type": "function", "function": {"name": "f"}},)


@pytest.mark.parametrize("spelling", ["camelCase", "snake_case"])
def test_gemini_function_calls_and_responses_in_both_spellings(spelling: str) -> None:
    record: dict[str, object] = {
        "systemInstruction": {"parts": [{"text": "be brief"}]},
        "contents": [
            {"role": "user", "parts": [{"text": "go "}, {"text": "on"}]},
            {"role": "model", "parts": [{"functionCall": {"name": "f", "args": {"a": 1}}}]},
            {"role": "function", "parts": [{"functionResponse": {"name": "f", "response": {"ok": True}}}]},
            {"role": "model", "parts": [{"text": "done"}]},
        ],
        "tools": [{"functionDeclarations": [{"name": "f"}]}],
    }
    if spelling == "snake_case":
        text = re.sub(r'"(system|function)([ICRD]\w+)"', lambda m: f'"{m[1]}_{m[2].lower()}"', json.dumps(record))
        assert text.count("_") == 4
        record = json.loads(text)
    example = read(record)
    assert [message.role for message in example.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert example.messages[1].content == "go on" and example.messages[3].content == '{"ok": true}'
    assert example.messages[2].tool_calls[0]["function"] == {"name": "f", "arguments": {"a": 1}}
    assert example.tools == ({"type": "function", "function": {"name": "f"}},)


def test_lists_written_as_json_text_in_a_table_cell_are_read() -> None:
    cell = json.dumps([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    assert dialogue(read({"messages": cell})) == [("user", "a"), ("assistant", "b")]


def test_numbers_are_read_as_text() -> None:
    assert dialogue(read({"text_input": 1, "output": 2.5})) == [("user", "1"), ("assistant", "2.5")]


@pytest.mark.parametrize(
    ("record", "code"),
    [
        ({"text_input": "a", "output": None}, "wrong_fields"),
        ({"text_input": "a", "output": ["b"]}, "wrong_fields"),
        ({"text_input": "a", "output": True}, "wrong_fields"),
        ({"text_input": float("nan"), "output": "b"}, "nan_value"),
        ({"text_input": "a", "output": "\ud83d"}, "bad_unicode"),
        ({"text": "  "}, "empty_output"),
        ({"messages": "no json"}, "wrong_fields"),
        ({"messages": {"role": "user"}}, "wrong_fields"),
        ({"messages": ["hello"]}, "wrong_fields"),
        ({"messages": [{"role": "wizard", "content": "a"}]}, "unknown_role"),
        ({"messages": [{"content": "a"}]}, "unknown_role"),
        ({"messages": [{"role": "user"}]}, "wrong_fields"),
        ({"messages": [{"role": "assistant", "content": "a", "weight": 0.5}]}, "wrong_fields"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "non_text_content"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"function": {}}]}]}, "wrong_fields"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]},
            "broken_tool_arguments",
        ),
        ({"contents": [{"role": "user", "parts": [{"inlineData": {}}]}]}, "non_text_content"),
        ({"conversations": [{"from": "human"}]}, "wrong_fields"),
        ({"instruction": "a", "output": "b", "history": ["x"]}, "wrong_fields"),
    ],
)
def test_what_cannot_be_taught_is_refused_by_code(record: dict[str, object], code: str) -> None:
    with pytest.raises(ExampleError) as caught:
        read(record)
    assert caught.value.code == code


def test_a_record_of_another_format_names_the_fields_it_has() -> None:
    with pytest.raises(ExampleError, match=r"no output \(text_input_output format\); fields seen: text_input, answer"):
        to_example({"text_input": "a", "answer": "b"}, DataFormat.text_input_output)


def test_unknown_fields_are_no_format() -> None:
    assert detect({"foo": 1}) is None


KEYS = ("role", "content", "from", "value", "parts", "text", "tool_calls", "function", "name", "arguments", "weight")
VALUES = ("user", "assistant", "model", "gpt", "function_call", "tool")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(VALUES),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(data=st.data(), kind=st.sampled_from([*FORMATS]))
def test_any_json_is_read_or_refused_with_a_code(data: st.DataObject, kind: DataFormat) -> None:
    fields = [*FORMATS[kind][0], "system", "history", "tools", "functions", "input", "context", "systemInstruction"]
    record = data.draw(st.dictionaries(st.sampled_from(fields), JSON | st.lists(JSON, max_size=3)))
    try:
        example = to_example(record, kind)
    except ExampleError as error:
        assert error.code in RULES
    else:
        assert example.text is not None or isinstance(example.messages, tuple)
