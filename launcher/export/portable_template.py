"""The run's chat format as one Jinja template, so that any server renders the prompts the model was tuned on.

It does in Jinja what `ChatFormat.dressed` does in Python; a test holds the two together.
"""

from __future__ import annotations

from launcher.data.template import jinja_literal

# Each part ends in a newline: chat templates are rendered with trim_blocks, which takes exactly that newline away, so
# the model's own template starts at a line start as before and not a character of its output changes.
_DEVELOPER = """\
{#- The model's template knows no developer role: such messages are system messages. -#}
{%- set launcher_roles = namespace(messages=[]) -%}
{%- for message in messages -%}
{%- if message['role'] == 'developer' -%}{%- set message = dict(message, role='system') -%}{%- endif -%}
{%- set launcher_roles.messages = launcher_roles.messages + [message] -%}
{%- endfor -%}
{%- set messages = launcher_roles.messages %}
"""

_SYSTEM = """\
{{#- The system prompt this model was tuned with, for conversations that bring none. -#}}
{{%- if not messages or messages[0]['role'] not in ('system', 'developer') -%}}
{{%- set messages = [{{'role': 'system', 'content': {system_prompt}}}] + (messages | list) -%}}
{{%- endif %}}
"""

_PREAMBLE = """\
{{#- The preamble this model was tuned with, in front of the first user message. -#}}
{{%- set launcher_format = namespace(messages=[], waiting=true) -%}}
{{%- for message in messages -%}}
{{%- if launcher_format.waiting and message['role'] == 'user' -%}}
{{%- set launcher_format.waiting = false -%}}
{{%- if message['content'] is string or not message['content'] -%}}
{{%- set message = dict(message, content={preamble} + (message['content'] or '')) -%}}
{{%- else -%}}
{{%- set message = dict(message, content=[{{'type': 'text', 'text': {preamble}}}] + (message['content'] | list)) -%}}
{{%- endif -%}}
{{%- endif -%}}
{{%- set launcher_format.messages = launcher_format.messages + [message] -%}}
{{%- endfor -%}}
{{%- set messages = launcher_format.messages %}}
"""


def portable_template(template: str, *, system_prompt: str | None, preamble: str | None) -> str:
    """`template` with the run's system prompt and preamble built in, and developer messages where it knows none.

    The system prompt is put in front of conversations that do not begin with one, the preamble in front of the first
    user message.
    """
    parts = [] if "developer" in template else [_DEVELOPER]
    if system_prompt is not None:
        parts.append(_SYSTEM.format(system_prompt=jinja_literal(system_prompt)))
    if preamble is not None:
        parts.append(_PREAMBLE.format(preamble=jinja_literal(preamble)))
    return "".join([*parts, template])
