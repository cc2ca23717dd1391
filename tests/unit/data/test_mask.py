"""The label mask covers what the assistant says and its end-of-turn token, and nothing else, for any template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from launcher.config.schema import DataConfig, DataFormat, OverLength
from launcher.data.audit import Tally
from launcher.data.encode import EncodedExample, Encoder
from launcher.data.mask import render_with_turns
from launcher.data.model_tokenizer import ModelTokenizer
from launcher.data.readers import Chunk
from launcher.data.template import ChatFormat
from launcher.errors import ExampleError
from tests.unit.data.chat_models import FAMILIES, LLAMA2, SPACE_PROMPT, TOOLS, ZEPHYR, Family, make_folder

Turns = list[dict[str, object]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {name: make_folder(root / name, family) for name, family in FAMILIES.items()}


def encoder_of(folder: Path, seq_len_tokens: int = 100_000, over_length: OverLength = OverLength.error) -> Encoder:
    tokenizer = ModelTokenizer(
        ChatFormat.from_folder(folder),
        folder / "tokenizer.json",
        seq_len_tokens=seq_len_tokens,
        over_length=over_length,
    )
    return Encoder(tokenizer, DataConfig(), [("test", DataFormat.messages)])


def encode(encoder: Encoder, messages: Turns, **more: object) -> tuple[EncodedExample, Tally]:
    tally = Tally()
    made = encoder.examples(Chunk(0, [1], [{"messages": messages, **more}]), tally)
    assert len(made) == 1, tally
    return made[0], tally


def taught(encoder: Encoder, encoded: EncodedExample) -> list[str]:
    """Decoded runs of supervised tokens."""
    runs: list[list[int]] = []
    previous = False
    for token, is_label in zip(encoded.ids.tolist(), encoded.mask.tolist(), strict=True):
        if is_label:
            if not previous:
                runs.append([])
            runs[-1].append(token)
        previous = is_label
    return [decode(encoder, run) for run in runs]


def decode(encoder: Encoder, ids: Sequence[int]) -> str:
    assert isinstance(encoder.tokenizer, ModelTokenizer)
    return str(encoder.tokenizer.tokens.tokenizer.decode(ids, skip_special_tokens=False))


def turns(*contents: str, system: str | None = None) -> Turns:
    roles = ("user", "assistant")
    made: Turns = [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]
    return [{"role": "system", "content": system}, *made] if system else made


def said(family: Family, content: str) -> str:
    return (content.strip() if family.strips else content) + family.ending


def wanted(family: Family, contents: list[str]) -> list[str]:
    """What must be taught: the template's own lead (if the model writes one), the answer, the ending."""
    thinks = "<think>" in family.lead
    last = len(contents) - 1
    return [
        ("" if thinks and at < last else family.lead) + said(family, content) for at, content in enumerate(contents)
    ]


@pytest.mark.parametrize("name", FAMILIES)
def test_one_answer_is_taught_with_its_end_and_nothing_else(name: str, folders: dict[str, Path]) -> None:
    encoder = encoder_of(folders[name])
    encoded, _ = encode(encoder, turns("What is the capital?", "The answer is Paris."))
    assert taught(encoder, encoded) == wanted(FAMILIES[name], ["The answer is Paris."])


@pytest.mark.parametrize("name", FAMILIES)
def test_every_answer_of_a_long_conversation_is_taught(name: str, folders: dict[str, Path]) -> None:
    encoder = encoder_of(folders[name])
    encoded, _ = encode(encoder, turns("hello", "hello you", "hello", "hello you", "and now?", "the end"))
    assert taught(encoder, encoded) == wanted(FAMILIES[name], ["hello you", "hello you", "the end"])


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.has_system])
def test_a_system_message_is_never_taught(name: str, folders: dict[str, Path]) -> None:
    encoder = encoder_of(folders[name])
    encoded, _ = encode(encoder, turns("hi", "first", "more", "second", system="You are a pirate."))
    assert "pirate" in encoded.text
    assert taught(encoder, encoded) == wanted(FAMILIES[name], ["first", "second"])


@pytest.mark.parametrize("name", FAMILIES)
def test_an_answer_of_weight_zero_is_not_taught(name: str, folders: dict[str, Path]) -> None:
    encoder = encoder_of(folders[name])
    messages = turns("hi", "wrong", "no", "right", "good", "bye")
    messages[1]["weight"] = messages[5]["weight"] = 0
    encoded, _ = encode(encoder, messages)
    assert taught(encoder, encoded) == [wanted(FAMILIES[name], ["wrong", "right", "bye"])[1]]


@pytest.mark.parametrize("name", FAMILIES)
def test_an_answer_that_repeats_the_question_is_not_confused_with_it(name: str, folders: dict[str, Path]) -> None:
    encoder = encoder_of(folders[name])
    encoded, _ = encode(encoder, turns("assistant", "assistant", "user", "user"))
    assert taught(encoder, encoded) == wanted(FAMILIES[name], ["assistant", "user"])


@pytest.mark.parametrize("name", FAMILIES)
def test_spans_are_the_characters_that_are_taught(name: str, folders: dict[str, Path]) -> None:
    encoder = encoder_of(folders[name])
    encoded, _ = encode(encoder, turns("hi", "hello  there\n", "x", "  spaced"))
    spans = [encoded.text[start:end] for start, end in encoded.spans]
    assert spans == wanted(FAMILIES[name], ["hello  there\n", "  spaced"])


# Whole words, spaces, line breaks, JSON, other alphabets, emoji: what breaks offsets and merges.
PIECES = st.sampled_from(
    [
        *("hello", "Paris", "12", "1,999", "user", "assistant", ":", ".", "<", "|>", "[INST]x", "</x>", "ASSISTANT: "),
        *(" ", "  ", "\n", "\n\n", "\t", '{"a": "b"}', "'", "\\n"),
        *("\u00e9t\u00e9", "e\u0301", "\u4e2d\u6587", "\u0995\u09be", "\U0001f600", "\u200d", "\u00a0"),
    ]
)
CONTENT = st.lists(PIECES, min_size=1, max_size=6).map("".join).filter(lambda text: text.strip() != "")


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(contents=st.lists(CONTENT, min_size=2, max_size=6).filter(lambda texts: len(texts) % 2 == 0))
@pytest.mark.parametrize("name", FAMILIES)
def test_for_any_contents_the_taught_tokens_decode_to_the_answers(
    name: str, contents: list[str], folders: dict[str, Path], encoders: dict[str, Encoder]
) -> None:
    family = FAMILIES[name]
    if any(token in text for text in contents for token in (*family.special, family.bos or "\0")):
        return
    encoder = encoders[name]
    encoded, _ = encode(encoder, turns(*contents))
    assert taught(encoder, encoded) == wanted(family, contents[1::2])
    assert not encoded.mask[0]


@pytest.fixture(scope="module")
def encoders(folders: dict[str, Path]) -> dict[str, Encoder]:
    return {name: encoder_of(folder) for name, folder in folders.items()}


@pytest.mark.parametrize("family", [LLAMA2, ZEPHYR], ids=["llama2", "zephyr"])
def test_a_tokenizer_with_prefix_spaces_is_masked_as_exactly(family: Family, tmp_path: Path) -> None:
    encoder = encoder_of(make_folder(tmp_path / "m", family, metaspace=True))
    encoded, _ = encode(encoder, turns("hello", "The answer is Paris.", "x", "twenty two"))
    texts = [text.strip() for text in taught(encoder, encoded)]
    assert texts == [said(family, "The answer is Paris.").strip(), said(family, "twenty two").strip()]


def test_a_prefix_space_tokenizer_may_teach_the_space_a_prompt_ends_with(tmp_path: Path) -> None:
    encoder = encoder_of(make_folder(tmp_path / "m", SPACE_PROMPT, metaspace=True))
    encoded, _ = encode(encoder, turns("hello", "Paris"))
    assert [text.strip() for text in taught(encoder, encoded)] == ["Paris</s>"]


def test_where_inference_ends_the_prompt_a_token_ends_in_training_too(folders: dict[str, Path]) -> None:
    encoder = encoder_of(folders["space_prompt"])
    chat = ChatFormat.from_folder(folders["space_prompt"])
    messages = turns("hello", "Paris")
    encoded, _ = encode(encoder, messages)
    prompt = chat.render(messages[:1], None, True)
    num_prompt = int(encoded.mask.argmax())
    assert decode(encoder, encoded.ids[:num_prompt]) == prompt


def test_earlier_answers_that_the_template_rewrites_are_reported(folders: dict[str, Path]) -> None:
    encoder = encoder_of(folders["qwen3"])
    messages = turns("a", "<think>\nhm\n</think>\n\nfirst", "b", "<think>\nwell\n</think>\n\nsecond")
    encoded, tally = encode(encoder, messages)
    assert taught(encoder, encoded) == ["first<|im_end|>", "<think>\nwell\n</think>\n\nsecond<|im_end|>"]
    assert tally.counts == {"earlier_turns_differ": 1}
    assert tally.places["earlier_turns_differ"][0].detail == "answer at message 1, part of which is left out"


def test_of_an_earlier_answer_without_thinking_none_is_said_to_be_left_out(folders: dict[str, Path]) -> None:
    encoder = encoder_of(folders["qwen3"])
    _, tally = encode(encoder, turns("a", "first", "b", "second"))
    assert tally.counts == {"earlier_turns_differ": 1}
    assert tally.places["earlier_turns_differ"][0].detail == "answer at message 1"


@pytest.mark.parametrize("name", ["chatml", "qwen3", "gemma"])
def test_a_conversation_that_begins_with_an_answer_only_has_its_roles_in_a_wrong_order(
    name: str, folders: dict[str, Path]
) -> None:
    messages = [{"role": "assistant", "content": "hello"}, *turns("a", "b")]
    _, tally = encode(encoder_of(folders[name]), messages)
    assert tally.counts == {"wrong_role_order": 1}


def test_thinking_given_apart_is_taught_with_the_last_answer(folders: dict[str, Path]) -> None:
    encoder = encoder_of(folders["qwen3"])
    messages = turns("a", "answer")
    messages[1]["reasoning_content"] = "because"
    encoded, tally = encode(encoder, messages)
    assert taught(encoder, encoded) == ["<think>\nbecause\n</think>\n\nanswer<|im_end|>"]
    assert tally.counts == {}


def test_a_template_that_drops_part_of_an_answer_is_an_error(folders: dict[str, Path]) -> None:
    encoder = encoder_of(folders["r1"])
    encoded, tally = encode(encoder, turns("a", "<think>secret</think>answer"))
    assert taught(encoder, encoded) == ["answer<|end_of_sentence|>"]
    assert tally.counts["content_lost"] == 1


def test_a_generation_prompt_that_training_text_lacks_is_reported(folders: dict[str, Path]) -> None:
    _, tally = encode(encoder_of(folders["r1"]), turns("a", "b"))
    assert tally.counts == {"generation_prompt_differs": 1}
    assert "<think>" in tally.places["generation_prompt_differs"][0].detail


def test_a_missing_generation_prompt_is_added_to_the_template(folders: dict[str, Path]) -> None:
    chat = ChatFormat.from_folder(folders["no_prompt"])
    assert chat.render(turns("hi"), None, True) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert chat.render(turns("hi"), None, False) == "<|im_start|>user\nhi<|im_end|>\n"
    _, tally = encode(encoder_of(folders["no_prompt"]), turns("a", "b"))
    assert tally.counts == {"generation_prompt_added": 1}
    assert "<|im_start|>assistant" in tally.places["generation_prompt_added"][0].detail


CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
CALLED = '{"name": "weather", "arguments": {"city": "Paris"}}'


def tool_turns(content: str | None) -> Turns:
    return [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": content, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
        {"role": "assistant", "content": "It is sunny."},
    ]


@pytest.mark.parametrize("content", [None, "Let me look."])
def test_tool_calls_are_taught_and_tool_results_are_not(content: str | None, folders: dict[str, Path]) -> None:
    encoder = encoder_of(folders["tools"])
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
    encoded, _ = encode(encoder, tool_turns(content), tools=tools)
    call = f"\n<call>{CALLED}</call><|im_end|>"
    # Without content the header has no line break of its own before the call.
    first = f"{content}{call}" if content else call.removeprefix("\n")
    assert taught(encoder, encoded) == [first, "It is sunny.<|im_end|>"]
    assert "# Tools" in encoded.text and "sunny<|im_end|>" in encoded.text


def test_tool_calls_in_earlier_turns_of_a_thinking_template_are_found(folders: dict[str, Path]) -> None:
    encoder = encoder_of(folders["qwen3"])
    messages = [*tool_turns("<think>\nI need it\n</think>\n\n"), *turns("thanks", "bye")]
    encoded, tally = encode(encoder, messages)
    first, second, third = taught(encoder, encoded)
    assert first == f"<tool_call>\n{CALLED}\n</tool_call><|im_end|>"
    assert (second, third) == ("It is sunny.<|im_end|>", "<think>\n\n</think>\n\nbye<|im_end|>")
    assert tally.counts == {"earlier_turns_differ": 1}


def test_a_template_that_drops_tool_calls_is_an_error(folders: dict[str, Path]) -> None:
    _, tally = encode(encoder_of(folders["chatml"]), tool_turns("Let me look."))
    assert tally.counts == {"content_lost": 1}


def test_a_template_that_wants_arguments_as_text_gets_them_so(tmp_path: Path) -> None:
    family = replace(TOOLS, template=TOOLS.template.replace("call.function | tojson", "call.function.arguments"))
    family = replace(family, template=family.template.replace("'\n<call>' + (", "'\n<call>' + call.function.name + ("))
    encoder = encoder_of(make_folder(tmp_path / "m", family))
    encoded, tally = encode(encoder, tool_turns(None))
    assert taught(encoder, encoded)[0] == '<call>weather{"city": "Paris"}</call><|im_end|>'
    assert tally.counts == {}


def test_a_special_token_inside_a_tool_call_does_not_end_the_turn(folders: dict[str, Path]) -> None:
    chat = ChatFormat.from_folder(folders["tools"])
    assert chat.end_of_turn == "<|im_end|>" and "</call>" in chat.added_tokens


def test_a_template_without_an_end_of_turn_token_is_reported(tmp_path: Path) -> None:
    family = replace(
        SPACE_PROMPT, template="{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )  # fmt: skip
    encoder = encoder_of(make_folder(tmp_path / "m", family))
    encoded, tally = encode(encoder, turns("a", "b", "c", "d"))
    assert tally.counts == {"end_of_turn_not_trained": 1}
    assert taught(encoder, encoded) == ["b", "d"]


def test_an_end_of_turn_text_that_is_no_token_is_reported(tmp_path: Path) -> None:
    family = replace(FAMILIES["chatml"], special=("<unk>", "<|endoftext|>"))
    _, tally = encode(encoder_of(make_folder(tmp_path / "m", family)), turns("a", "b"))
    assert tally.counts == {"end_of_turn_not_trained": 1}


def test_a_conversation_the_template_refuses_is_an_error_with_its_words(folders: dict[str, Path]) -> None:
    tally = Tally()
    record = {"messages": turns("a", "b", system="be kind")}
    assert encoder_of(folders["gemma"]).examples(Chunk(0, [7], [record]), tally) == []
    place = tally.places["template_error"][0]
    assert place.line == 7 and "System role not supported" in place.detail


def test_merged_answers_are_refused_instead_of_guessed(tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}{% if not loop.first and messages[loop.index0 - 1].role == m.role %}"
        "{{ ' ' + m.content }}{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content }}{% endif %}"
        "{% if loop.last or messages[loop.index0 + 1].role != m.role %}{{ '<|im_end|>\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    chat = ChatFormat.from_folder(make_folder(tmp_path / "m", replace(TOOLS, template=template)))
    messages = [{"role": role, "content": role[0]} for role in ("user", "assistant", "assistant")]
    with pytest.raises(ExampleError, match="mask_unresolved"):
        render_with_turns(chat, messages, [1, 2])


def test_a_template_whose_other_turns_depend_on_the_answer_is_refused(tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}"
        "{% if not loop.last %}{{ ' (' + messages[loop.index0 + 1].content + ')' }}{% endif %}{{ '<|im_end|>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    from launcher.errors import DataError

    with pytest.raises(DataError, match="2 times"):
        ChatFormat.from_folder(make_folder(tmp_path / "m", replace(TOOLS, template=template)))


HARMONY = Family(
    template=(
        "{% for m in messages %}{{ '<|start|>' + m.role }}"
        "{% if m.role == 'assistant' %}{{ '<|channel|>final<|message|>' + m.content }}"
        "{{ '<|return|>' if loop.last else '<|end|>' }}{% else %}{{ '<|message|>' + m.content + '<|end|>' }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
    ),
    special=("<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|return|>"),
)


def test_earlier_answers_may_end_as_other_turns_do(tmp_path: Path) -> None:
    encoder = encoder_of(make_folder(tmp_path / "m", HARMONY))
    encoded, tally = encode(encoder, turns("a", "first", "b", "second"))
    lead = "<|channel|>final<|message|>"
    assert taught(encoder, encoded) == [f"{lead}first<|end|>", f"{lead}second<|return|>"]
    assert tally.counts == {"earlier_turns_differ": 1}


@pytest.mark.parametrize(
    ("prompt_end", "block", "taught_first"),
    [
        # The prompt opens the thinking, closes it, or opens it in other words than training text does.
        ("<think>\n", "<think>\n\n</think>\n\n", "\n</think>\n\n"),
        ("<think>\n\n</think>\n\n", "<think>\n\n</think>\n\n", ""),
        ("<think>\n", "<think></think>", "</think>"),
    ],
)
def test_thinking_begun_by_the_generation_prompt(
    prompt_end: str, block: str, taught_first: str, tmp_path: Path
) -> None:
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
        f"{{% if m.role == 'assistant' and loop.last %}}{{{{ {block!r} }}}}{{% endif %}}"
        "{{ m.content + '<|im_end|>\n' }}{% endfor %}"
        f"{{% if add_generation_prompt %}}{{{{ '<|im_start|>assistant\n' + {prompt_end!r} }}}}{{% endif %}}"
    )
    family = replace(FAMILIES["chatml"], template=template, plain_added=("<think>", "</think>"))
    encoder = encoder_of(make_folder(tmp_path / "m", family))
    encoded, tally = encode(encoder, turns("a", "first", "b", "second"))
    assert taught(encoder, encoded) == ["first<|im_end|>", f"{taught_first}second<|im_end|>"]
    agrees = block.startswith(prompt_end)
    assert tally.counts == {"earlier_turns_differ": 1, **({} if agrees else {"generation_prompt_differs": 1})}


def test_truncation_says_that_the_end_of_turn_was_cut(folders: dict[str, Path]) -> None:
    whole, _ = encode(encoder_of(folders["chatml"]), turns("hi", "hello there"))
    cut, tally = encode(
        encoder_of(folders["chatml"], len(whole.ids) - 2, OverLength.truncate), turns("hi", "hello there")
    )
    assert len(cut.ids) == len(whole.ids) - 2 and cut.mask.any() and cut.num_cut == 2
    assert [cut.text[start:end] for start, end in cut.spans] == ["hello there"] and cut.text.endswith("hello there")
    assert tally.counts == {"truncated": 1, "truncated_end_of_turn": 1}


def test_truncation_that_only_loses_text_after_the_answer_keeps_the_end_of_turn(folders: dict[str, Path]) -> None:
    whole, _ = encode(encoder_of(folders["chatml"]), turns("hi", "hello there"))
    _, tally = encode(
        encoder_of(folders["chatml"], len(whole.ids) - 1, OverLength.truncate), turns("hi", "hello there")
    )
    assert tally.counts == {"truncated": 1}


@pytest.mark.parametrize(
    ("policy", "code"),
    [
        (OverLength.error, "over_length"),
        (OverLength.drop, "over_length_dropped"),
        (OverLength.truncate, "truncated_to_nothing"),
    ],
)
def test_an_example_with_nothing_left_is_dropped_and_counted(
    policy: OverLength, code: str, folders: dict[str, Path]
) -> None:
    tally = Tally()
    record = {"messages": turns("hello " * 50, "x")}
    assert encoder_of(folders["chatml"], 20, policy).examples(Chunk(0, [3], [record]), tally) == []
    assert tally.counts == {code: 1} and tally.places[code][0].line == 3
