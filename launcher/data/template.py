"""Renders conversations as the text a model reads: template, special tokens, system prompt, preamble.

The same object renders in training and at inference; it travels with the tuned model (`save`, `from_folder`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import lru_cache
from pathlib import Path

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from launcher.data.example import Json, Turns
from launcher.data.template_markers import TurnShape, learn_turn_shape
from launcher.errors import DataError, ModelError, ProbeError, RecordError
from launcher.files import as_json, read_record, write_json

FORMAT_FILE = "prompt_format.json"
TEMPLATE_FILE = "chat_template.jinja"

_TOKEN_KEYS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

# Roles as plain words and an end token after each answer: all that a tokenizer without chat tokens can express.
_PLAIN = """\
{{ START }}
{%- if tools %}{{ 'Tools:\\n' + (tools | tojson) + '\\n\\n' }}{% endif %}
{%- for message in messages %}
{%- if message.role == 'assistant' %}
{{- 'Assistant:\\n' + message.content }}
{%- for call in message.tool_calls or [] %}{{ '\\nCall: ' + (call.function | tojson) }}{% endfor %}
{{- eos_token + '\\n\\n' }}
{%- else %}
{{- message.role | capitalize + ':\\n' + message.content + '\\n\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'Assistant:\\n' }}{% endif %}"""

_CHATML = """\
{{ START }}
{%- if tools %}{{ '<|im_start|>system\\nTools:\\n' + (tools | tojson) + '<|im_end|>\\n' }}{% endif %}
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + message.content }}
{%- for call in message.tool_calls or [] %}{{ '\\nCall: ' + (call.function | tojson) }}{% endfor %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

# Jinja drops one newline at the very end of a template; it must not come back when something is added behind it.
_ADD_HEADER = "{template}{{% if add_generation_prompt %}}{{{{ {header} }}}}{{% endif %}}"


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """A chat template with all that it needs to render."""

    template: str
    special_tokens: dict[str, str] = field(default_factory=dict)
    """bos_token, eos_token, ... as the template names them; only those the tokenizer has."""
    added_tokens: tuple[str, ...] = ()
    """Texts the tokenizer turns into one special token wherever they appear."""
    system_prompt: str | None = None
    preamble: str | None = None
    origin: str = "model"
    """Where the template is from: model, file or built-in."""
    shape: TurnShape = field(default_factory=TurnShape)
    """The text around an answer, learned from the template."""

    @property
    def end_of_turn(self) -> str | None:
        """The special token that ends an answer, or None where the template writes none."""
        return self.shape.end_token

    @classmethod
    def from_folder(
        cls,
        folder: Path,
        *,
        template_file: Path | None = None,
        system_prompt: str | None = None,
        preamble: str | None = None,
    ) -> ChatFormat:
        """The format of a model folder: the one saved by `save`, or the model's own.

        Args:
            template_file: a Jinja template used instead of the one in the folder.
            system_prompt, preamble: used instead of saved ones.
        Raises:
            ModelError: no tokenizer.json. DataError: the template cannot be used.
        """
        saved = folder / FORMAT_FILE
        if saved.is_file() and template_file is None:
            try:
                made = read_record(cls, saved)
            except (OSError, RecordError) as error:
                raise DataError(f"this version cannot read the prompt format: {error}") from error
            if preamble is not None:
                made = replace(made, preamble=preamble)
            return made if system_prompt is None else _checked(replace(made, system_prompt=system_prompt))
        if not (folder / "tokenizer.json").is_file():
            raise ModelError(
                f"{folder} has no tokenizer.json, the one tokenizer format read here. "
                "Make it with transformers: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
            )
        tokenizer = _read_object(folder / "tokenizer.json")
        special = _special_tokens(folder)
        added = _added_tokens(tokenizer, special)
        text, origin = _template_text(folder, template_file)
        if text is None:
            text, origin = _default_template(tokenizer, added), "built-in"
        return _with_shape(cls(text, special, added, system_prompt, preamble, origin))

    def save(self, folder: Path) -> None:
        """Writes prompt_format.json, complete in itself, and the template as chat_template.jinja for other programs."""
        values = as_json(self)
        shape = values.pop("shape")
        document = {"format_version": 1, **values, "end_of_turn": self.end_of_turn, "shape": shape}
        write_json(folder / FORMAT_FILE, document, durable=False)
        (folder / TEMPLATE_FILE).write_text(self.template, encoding="utf-8", newline="")

    def render(self, messages: Turns, tools: Turns | None = None, add_generation_prompt: bool = False) -> str:
        """The text of a conversation, system prompt and preamble put in where they belong.

        Args:
            add_generation_prompt: end where an answer begins.
        Raises:
            DataError: the template refuses the conversation; carries the template's own message.
        """
        return self.render_dressed(self.dressed(messages), tools, add_generation_prompt)

    def render_dressed(self, messages: Turns, tools: Turns | None = None, add_generation_prompt: bool = False) -> str:
        """As `render`, of messages that are dressed already."""
        try:
            return _compiled(self.template).render(
                messages=list(messages),
                tools=list(tools) if tools else None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self.special_tokens,
            )
        except jinja2.exceptions.SecurityError as error:
            raise DataError(f"the chat template does something that templates may not do: {error}") from error
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
            raise DataError(f"the chat template refuses this conversation: {error}") from error

    def dressed(self, messages: Turns) -> list[Json]:
        """The messages with the system prompt (unless they begin with one) and the preamble put in."""
        made = list(messages)
        if "developer" not in self.template:
            made = [{**m, "role": "system"} if m.get("role") == "developer" else m for m in made]
        if self.system_prompt is not None and (not made or made[0].get("role") not in ("system", "developer")):
            made.insert(0, {"role": "system", "content": self.system_prompt})
        if self.preamble is not None:
            first = next((i for i, message in enumerate(made) if message.get("role") == "user"), None)
            if first is not None:
                made[first] = {**made[first], "content": self.preamble + str(made[first].get("content") or "")}
        return made


def _with_shape(made: ChatFormat) -> ChatFormat:
    """The format with the shape of its turns; a missing generation prompt is added to the template."""
    try:
        shape = learn_turn_shape(made.render_dressed, made.added_tokens)
        if shape.ignores_flag and shape.lead.strip():
            header = _ADD_HEADER.format(template=made.template.removesuffix("\n"), header=jinja_literal(shape.lead))
            made = replace(made, template=header)
            shape = replace(learn_turn_shape(made.render_dressed, made.added_tokens), header_added=True)
    except ProbeError as error:
        raise DataError(f"the chat template ({made.origin}) cannot be used: {error}") from error
    return _checked(replace(made, shape=shape))


def _checked(made: ChatFormat) -> ChatFormat:
    """The format, if its template can render its system prompt."""
    if made.system_prompt is not None:
        question = [{"role": "system", "content": made.system_prompt}, {"role": "user", "content": "question"}]
        try:
            made.render_dressed(question, None, True)
        except DataError as error:
            raise DataError(f"data.system_prompt is set, but {error}. Use data.preamble instead") from error
    return made


def jinja_literal(text: str) -> str:
    """`text` as a Jinja string; nothing in it can be read as template syntax."""
    quoted = ascii(text)
    for character in "{}%#":
        quoted = quoted.replace(character, f"\\x{ord(character):02x}")
    return quoted


def _read_object(path: Path) -> dict[str, object]:
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}") from error
    return values if isinstance(values, dict) else {}


def _special_tokens(folder: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        for key, value in _read_object(folder / name).items():
            text = value.get("content") if isinstance(value, dict) else value
            if key in _TOKEN_KEYS and isinstance(text, str):
                found.setdefault(key, text)
    return found


def _added_tokens(tokenizer: dict[str, object], special: Mapping[str, str]) -> tuple[str, ...]:
    entries = tokenizer.get("added_tokens")
    known = [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    contents = {str(entry.get("content")): bool(entry.get("special")) for entry in known}
    marked = {text for text, is_special in contents.items() if is_special and text}
    return tuple(sorted(marked | {text for text in special.values() if text in contents}))


def _template_text(folder: Path, template_file: Path | None) -> tuple[str | None, str]:
    if template_file is not None:
        try:
            return Path(template_file).expanduser().read_text(encoding="utf-8"), "file"
        except (OSError, ValueError) as error:
            raise DataError(f"data.chat_template = {str(template_file)!r} cannot be read: {error}") from error
    own = folder / TEMPLATE_FILE
    if own.is_file():
        return own.read_text(encoding="utf-8"), "model"
    for name in ("chat_template.json", "tokenizer_config.json"):
        value = _read_object(folder / name).get("chat_template")
        if isinstance(value, list):
            named = {str(entry.get("name")): entry.get("template") for entry in value if isinstance(entry, dict)}
            value = named.get("default")
        if isinstance(value, str) and value:
            return value, "model"
    return None, "built-in"


def _default_template(tokenizer: dict[str, object], added: tuple[str, ...]) -> str:
    base = _CHATML if {"<|im_start|>", "<|im_end|>"} <= set(added) else _PLAIN
    return base.replace("{{ START }}", "{{ bos_token }}" if _starts_with_bos(tokenizer.get("post_processor")) else "")


def _starts_with_bos(processor: object) -> bool:
    """Whether the tokenizer itself puts a token in front of every text."""
    if not isinstance(processor, dict):
        return False
    if processor.get("type") == "Sequence":
        return any(_starts_with_bos(step) for step in processor.get("processors") or [])
    single = processor.get("single")
    return isinstance(single, list) and bool(single) and isinstance(single[0], dict) and "SpecialToken" in single[0]


class _GenerationTag(jinja2.ext.Extension):
    """Accepts `{% generation %}` blocks, which some templates carry; what is inside has a scope of its own."""

    tags = {"generation"}  # noqa: RUF012 (the type is jinja2's)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_inside"), [], [], body).set_lineno(line)

    def _inside(self, caller: Callable[[], str]) -> str:
        return caller()


@lru_cache(maxsize=32)
def _compiled(template: str) -> jinja2.Template:
    """The template in a sandbox, with the filters and functions chat templates expect."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
    try:
        return environment.from_string(template)
    except jinja2.TemplateSyntaxError as error:
        raise DataError(f"the chat template is not valid Jinja: line {error.lineno}: {error.message}") from error


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without the HTML escapes of Jinja's own filter."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> str:
    raise jinja2.TemplateError(message)
