"""The exported template renders, in plain transformers, what the run's format renders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.data.template import ChatFormat
from launcher.export.portable_template import portable_template
from tests.tiny_model import CHATML

Messages = Sequence[dict[str, Any]]

STRICT = "{%- if messages[0]['role'] != 'system' %}{{ raise_exception('no system') }}{% endif %}\n" + CHATML
SPLITS_SYSTEM = (
    "{%- if messages[0]['role'] == 'system' %}"
    "{%- set system = messages[0]['content'] %}{%- set messages = messages[1:] %}"
    "{%- else %}{%- set system = 'default' %}{%- endif %}<<{{ system }}>>"
    "{%- for m in messages %}[{{ m['role'] }}]{{ m['content'] | trim }}{%- endfor %}"
)
INDENTED = "\n  {% for m in messages %}\n  {{ m.content }}\n  {% endfor %}\n"
WITH_DEVELOPER = CHATML + "{# developer #}"
TEMPLATES = [
    CHATML,
    STRICT,
    SPLITS_SYSTEM,
    INDENTED,
    WITH_DEVELOPER,
    "\n" + CHATML,
    "  " + CHATML,
    "\n\n a",
    "{#- c -#} b",
]


def in_transformers(template: str, messages: Messages) -> str:
    from transformers.utils.chat_template_utils import render_jinja_template

    texts, _ = render_jinja_template([list(messages)], chat_template=template, add_generation_prompt=True)
    return str(texts[0])


def turn(role: str, content: str | None) -> dict[str, Any]:
    return {"role": role, "content": content}


CONVERSATIONS = [
    [turn("user", "one"), turn("assistant", "1"), turn("user", "two")],
    [turn("system", "Be long."), turn("user", "x")],
    [turn("developer", "Be long."), turn("user", "x")],
    [turn("system", "a"), turn("developer", "b"), turn("user", "x")],
]


@pytest.mark.parametrize("messages", CONVERSATIONS)
@pytest.mark.parametrize("preamble", [None, "Q: "])
@pytest.mark.parametrize("system_prompt", [None, "Be brief."])
@pytest.mark.parametrize("template", TEMPLATES)
def test_transformers_renders_what_the_run_renders(
    template: str, system_prompt: str | None, preamble: str | None, messages: Messages
) -> None:
    if template is STRICT and system_prompt is None:
        messages = [turn("system", "always"), *messages]
    ours = ChatFormat(template, system_prompt=system_prompt, preamble=preamble)
    exported = portable_template(template, system_prompt=system_prompt, preamble=preamble)
    expected = ours.render(messages, add_generation_prompt=True)
    assert in_transformers(exported, messages) == expected
    # The exported format is read by this program too.
    assert ChatFormat(exported).render(messages, add_generation_prompt=True) == expected


def test_content_in_parts_gets_the_preamble_as_a_part() -> None:
    template = "{% for m in messages %}{% for part in m.content %}({{ part.text }}){% endfor %}{% endfor %}"
    exported = portable_template(template, system_prompt=None, preamble="Q: ")
    assert in_transformers(exported, [{"role": "user", "content": [{"type": "text", "text": "x"}]}]) == "(Q: )(x)"


def test_a_template_that_needs_nothing_is_not_touched() -> None:
    assert portable_template(WITH_DEVELOPER, system_prompt=None, preamble=None) == WITH_DEVELOPER


@given(st.text(max_size=30) | st.text(alphabet="{}%#'\"\\n-", max_size=12))
def test_any_text_survives_as_prompt_and_preamble(text: str) -> None:
    ours = ChatFormat(CHATML, system_prompt=text, preamble=text)
    exported = portable_template(CHATML, system_prompt=text, preamble=text)
    messages = [turn("user", "x")]
    assert in_transformers(exported, messages) == ours.render(messages, add_generation_prompt=True)
