"""Rendering: as transformers renders, with the system prompt and preamble of the run, safely, and travelling whole."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from launcher.data.template import ChatFormat
from launcher.errors import DataError, ModelError
from tests.unit.data.chat_models import CHATML, FAMILIES, GEMMA, LLAMA2, PLAIN, PLAIN_CHATML, Family, make_folder

CONVERSATIONS: list[list[dict[str, object]]] = [
    [{"role": "user", "content": "hi"}],
    [{"role": "user", "content": " hi\n"}, {"role": "assistant", "content": "hello <b>&'\" \u00e9"}],
    [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "more"},
    ],
]


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.template and name != "no_prompt"])
def test_renders_what_transformers_renders(name: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = make_folder(tmp_path / name, FAMILIES[name])
    chat = ChatFormat.from_folder(folder)
    reference = AutoTokenizer.from_pretrained(folder)
    for messages in CONVERSATIONS:
        for prompt in (False, True):
            expected = reference.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
            assert chat.render(messages, None, prompt) == expected


def test_renders_tools_as_transformers_does(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = make_folder(tmp_path / "m", FAMILIES["tools"])
    tools = [
        {"type": "function", "function": {"name": "get", "description": "<b> \u4e2d & 'x'", "parameters": {"a": 1}}}
    ]
    call = {"type": "function", "function": {"name": "get", "arguments": {"city": "K\u00f6ln"}}}
    messages = [*CONVERSATIONS[0], {"role": "assistant", "content": "", "tool_calls": [call]}]
    expected = AutoTokenizer.from_pretrained(folder).apply_chat_template(messages, tools=tools, tokenize=False)
    assert ChatFormat.from_folder(folder).render(messages, tools) == expected
    assert "K\u00f6ln" in expected


def test_the_system_prompt_is_put_in_front_unless_there_is_one(tmp_path: Path) -> None:
    chat = ChatFormat.from_folder(make_folder(tmp_path / "m", CHATML), system_prompt="Be brief.")
    assert chat.render(CONVERSATIONS[0]).startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhi")
    own = [{"role": "system", "content": "Be long."}, *CONVERSATIONS[0]]
    assert "Be brief." not in chat.render(own) and "Be long." in chat.render(own)


def test_the_preamble_is_put_before_the_first_user_message_only(tmp_path: Path) -> None:
    chat = ChatFormat.from_folder(make_folder(tmp_path / "m", CHATML), preamble="Task: ")
    text = chat.render(CONVERSATIONS[2])
    assert "user\nTask: weather?" in text and text.count("Task: ") == 1


def test_rendering_does_not_change_the_messages(tmp_path: Path) -> None:
    chat = ChatFormat.from_folder(make_folder(tmp_path / "m", CHATML), preamble="Task: ", system_prompt="Be brief.")
    messages = [{"role": "user", "content": "hi"}]
    chat.render(messages)
    assert messages == [{"role": "user", "content": "hi"}]


def test_a_developer_message_is_a_system_message_to_templates_that_do_not_know_it(tmp_path: Path) -> None:
    chat = ChatFormat.from_folder(make_folder(tmp_path / "m", CHATML))
    text = chat.render([{"role": "developer", "content": "Rules"}, *CONVERSATIONS[0]])
    assert text.startswith("<|im_start|>system\nRules<|im_end|>")


def test_a_system_prompt_the_template_cannot_render_points_to_the_preamble(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"System role not supported.*data\.preamble"):
        ChatFormat.from_folder(make_folder(tmp_path / "m", GEMMA), system_prompt="Be brief.")


@pytest.mark.parametrize("family", [PLAIN, PLAIN_CHATML, CHATML, FAMILIES["no_prompt"], LLAMA2])
def test_what_is_saved_renders_the_same_without_the_tokenizer(family: Family, tmp_path: Path) -> None:
    chat = ChatFormat.from_folder(make_folder(tmp_path / "m", family), system_prompt="Be brief.", preamble="Task: ")
    (tmp_path / "saved").mkdir()
    chat.save(tmp_path / "saved")
    back = ChatFormat.from_folder(tmp_path / "saved")
    assert back == chat
    for messages in CONVERSATIONS:
        assert back.render(messages, None, True) == chat.render(messages, None, True)
    assert (tmp_path / "saved" / "chat_template.jinja").read_text() == chat.template


def test_a_saved_format_wins_over_a_template_beside_it(tmp_path: Path) -> None:
    chat = ChatFormat.from_folder(make_folder(tmp_path / "m", CHATML), preamble="Task: ")
    chat.save(tmp_path / "m")
    (tmp_path / "m" / "chat_template.jinja").write_text("something else")
    assert ChatFormat.from_folder(tmp_path / "m") == chat


def test_tuning_goes_on_from_a_saved_format_with_what_is_set_anew(tmp_path: Path) -> None:
    chat = ChatFormat.from_folder(make_folder(tmp_path / "m", CHATML), preamble="Task: ", system_prompt="Be brief.")
    chat.save(tmp_path / "m")
    again = ChatFormat.from_folder(tmp_path / "m", system_prompt="Be long.")
    assert again == replace(chat, system_prompt="Be long.")


def test_a_template_given_as_a_file_replaces_the_models(tmp_path: Path) -> None:
    own = tmp_path / "own.jinja"
    own.write_text(
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}"
        "\n{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    chat = ChatFormat.from_folder(make_folder(tmp_path / "m", CHATML), template_file=own)
    assert chat.render(CONVERSATIONS[1]) == "[user]  hi\n[assistant] hello <b>&'\" \u00e9<|im_end|>"
    assert (chat.origin, chat.end_of_turn) == ("file", "<|im_end|>")


@pytest.mark.parametrize("place", ["tokenizer_config", "named", "chat_template.json"])
def test_the_template_is_found_wherever_model_folders_keep_it(place: str, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "m", CHATML)
    (folder / "chat_template.jinja").unlink()
    values = json.loads((folder / "tokenizer_config.json").read_text())
    if place == "tokenizer_config":
        values["chat_template"] = CHATML.template
    elif place == "named":
        values["chat_template"] = [{"name": "rag", "template": "x"}, {"name": "default", "template": CHATML.template}]
    else:
        (folder / "chat_template.json").write_text(json.dumps({"chat_template": CHATML.template}))
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
    assert ChatFormat.from_folder(folder).template == CHATML.template


def test_special_tokens_written_as_objects_and_in_the_old_file_are_read(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "m", LLAMA2)
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": {"content": "<s>", "lstrip": False}}))
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": "</s>", "bos_token": "other"}))
    assert ChatFormat.from_folder(folder).special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}


def test_without_a_template_chat_tokens_are_used_if_the_tokenizer_has_them(tmp_path: Path) -> None:
    chat = ChatFormat.from_folder(make_folder(tmp_path / "m", PLAIN_CHATML))
    assert chat.origin == "built-in"
    assert chat.render(CONVERSATIONS[0], None, True) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_without_template_and_chat_tokens_roles_are_words(tmp_path: Path) -> None:
    chat = ChatFormat.from_folder(make_folder(tmp_path / "m", PLAIN))
    assert chat.render(CONVERSATIONS[1][:1], None, True) == "User:\n hi\n\n\nAssistant:\n"
    assert chat.end_of_turn == "</s>"


def test_the_built_in_template_begins_with_bos_where_the_tokenizer_does(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, processors

    folder = make_folder(tmp_path / "m", PLAIN)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    number = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", number)])
    tokenizer.save(str(folder / "tokenizer.json"))
    assert ChatFormat.from_folder(folder).render(CONVERSATIONS[0]).startswith("<s>User:\nhi")


def test_a_folder_without_tokenizer_json_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no tokenizer\.json.*save_pretrained"):
        ChatFormat.from_folder(tmp_path)


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{% for m in messages %}", "not valid Jinja"),
        ("{{ messages[0].content }}", "an answer 0 times"),
        ("{{ raise_exception('never') }}", "never"),
        ("{{ messages.__class__.__mro__ }}", "may not"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "may not"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}{{ messages.append(1) }}", "may not"),
        ("{% for m in messages %}A{{ m.content }}{% endfor %}{% if add_generation_prompt %}B{% endif %}", "'B'"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused(template: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=why):
        ChatFormat.from_folder(make_folder(tmp_path / "m", replace(CHATML, template=template)))


def test_braces_in_a_header_are_not_read_as_template_syntax(tmp_path: Path) -> None:
    odd = "{% for m in messages %}{{ '{{' + m.role + '}}%}' + m.content + '<|im_end|>' }}{% endfor %}"
    chat = ChatFormat.from_folder(make_folder(tmp_path / "m", replace(CHATML, template=odd)))
    assert chat.render(CONVERSATIONS[0], None, True) == "{{user}}%}hi<|im_end|>{{assistant}}%}"
