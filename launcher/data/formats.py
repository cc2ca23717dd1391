"""Every example format: how it is recognised, and how one record becomes an Example."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from launcher.config.schema import DataFormat
from launcher.data.example import Example, Json, Message
from launcher.errors import ExampleError

Record = Mapping[str, object]

_ROLES = {
    "system": "system",
    "developer": "developer",
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "bot", "chatbot"), "assistant"),
    **dict.fromkeys(("tool", "function", "function_response", "observation"), "tool"),
}


def detect(record: Record) -> DataFormat | None:
    """The format whose fields the record has, or None."""
    return next((kind for kind, (fields, _) in FORMATS.items() if all(field in record for field in fields)), None)


def describe_formats() -> str:
    """One line with the fields of every format."""
    return "; ".join(f"{kind.value}: {', '.join(fields)}" for kind, (fields, _) in FORMATS.items())


def to_example(record: Record, kind: DataFormat, source: str = "", line: int = 0) -> Example:
    """The record as an Example.

    Raises ExampleError: a field is missing, of a wrong type, or holds something other than text.
    """
    fields, read = FORMATS[kind]
    missing = [field for field in fields if field not in record]
    if missing:
        seen = ", ".join(list(record)[:8]) or "none"
        raise ExampleError("wrong_fields", f"no {' or '.join(missing)} ({kind.value} format); fields seen: {seen}")
    example = read(record)
    _check_unicode(example)
    return replace(example, source=source, line=line)


def _messages(record: Record) -> Example:
    turns = _list(record, "messages")
    return Example(messages=tuple(_openai_message(turn, at) for at, turn in enumerate(turns)), tools=_tools(record))


def _openai_message(turn: object, at: int) -> Message:
    where = f"messages[{at}]"
    fields = _object(turn, where)
    role = _role(fields.get("role"), where)
    calls = fields.get("tool_calls") or []
    if fields.get("function_call") is not None:
        calls = [{"type": "function", "function": fields["function_call"]}]
    content = fields.get("content")
    if content is None and not calls:
        raise ExampleError("wrong_fields", f"{where} ({role}) has no content")
    return Message(
        role=role,
        content=_content(content, where),
        train=_weight(fields, where),
        reasoning=_content(fields.get("reasoning_content"), where),
        tool_calls=tuple(_tool_call(call, where) for call in _as_list(calls, f"{where}.tool_calls")),
        tool_call_id=str(fields.get("tool_call_id") or ""),
        name=str(fields.get("name") or ""),
    )


def _weight(fields: Json, where: str) -> bool:
    """Whether the turn is supervised: OpenAI's `weight` 0 or 1, or `train` true or false."""
    weight = fields.get("weight", fields.get("train"))
    if weight is None:
        return True
    if weight not in (0, 1):
        raise ExampleError("wrong_fields", f"{where}.weight = {weight!r}; it must be 0 or 1")
    return bool(weight)


def _tool_call(call: object, where: str) -> Json:
    fields = _object(call, f"{where}.tool_calls")
    function = _object(fields.get("function", fields), f"{where}.tool_calls.function")
    name = function.get("name")
    if not isinstance(name, str) or not name:
        raise ExampleError("wrong_fields", f"{where}: a tool call without a name")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        # OpenAI writes arguments as a JSON text; chat templates print them, and would quote a text twice.
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except ValueError as error:
            raise ExampleError("broken_tool_arguments", f"{where}: arguments of {name}: {error}") from error
    made: dict[str, object] = {"type": "function", "function": {"name": name, "arguments": arguments or {}}}
    if fields.get("id"):
        made["id"] = str(fields["id"])
    return made


def _tools(record: Record) -> tuple[Json, ...]:
    tools = record.get("tools")
    if tools is None and isinstance(record.get("functions"), list):
        tools = [{"type": "function", "function": function} for function in _list(record, "functions")]
    if tools is None or tools == "":
        return ()
    return tuple(_object(tool, f"tools[{index}]") for index, tool in enumerate(_as_list(tools, "tools")))


def _system(record: Record) -> list[Message]:
    return [Message("system", _text(record, "system"))] if _has_text(record, "system") else []


def _conversations(record: Record) -> Example:
    messages = _system(record)
    for at, turn in enumerate(_list(record, "conversations")):
        where = f"conversations[{at}]"
        fields = _object(turn, where)
        speaker = fields.get("from", fields.get("role"))
        said = fields.get("value", fields.get("content"))
        if speaker == "function_call":
            call = _parse(said, where) if isinstance(said, str) else said
            messages.append(Message("assistant", "", tool_calls=(_tool_call(call, where),)))
            continue
        if said is None:
            raise ExampleError("wrong_fields", f"{where} has no value")
        messages.append(Message(_role(speaker, where), _content(said, where), train=_weight(fields, where)))
    return Example(messages=tuple(messages), tools=_tools(record))


def _contents(record: Record) -> Example:
    """Gemini and Vertex: contents of role and parts. REST writes names in camelCase, the Python SDK in snake_case."""
    messages: list[Message] = []
    system = _either(record, "systemInstruction", "system_instruction")
    if system is not None:
        fields = {**_object(system, "systemInstruction"), "role": "system"}
        messages.append(_gemini_message(fields, "systemInstruction"))
    for at, turn in enumerate(_list(record, "contents")):
        where = f"contents[{at}]"
        messages.append(_gemini_message(_object(turn, where), where))
    groups = [_either(group, "functionDeclarations", "function_declarations") for group in _tools(record)]
    functions = [function for group in groups for function in _as_list(group, "functionDeclarations")]
    tools = tuple({"type": "function", "function": function} for function in functions)
    return Example(messages=tuple(messages), tools=tools)


def _either(fields: Json, camel: str, snake: str) -> object:
    """The value under one of two spellings; None where there is neither."""
    value = fields.get(camel)
    return fields.get(snake) if value is None else value


def _gemini_message(fields: Json, where: str) -> Message:
    role = _role(fields.get("role", "user"), where)
    texts: list[str] = []
    calls: list[Json] = []
    name = ""
    for at, part in enumerate(_list(fields, "parts")):
        piece = _object(part, f"{where}.parts[{at}]")
        if isinstance(piece.get("text"), str):
            texts.append(str(piece["text"]))
        elif (called := _either(piece, "functionCall", "function_call")) is not None:
            call = _object(called, f"{where}.parts[{at}].functionCall")
            calls.append(_tool_call({"name": call.get("name"), "arguments": call.get("args") or {}}, where))
        elif (answered := _either(piece, "functionResponse", "function_response")) is not None:
            answer = _object(answered, f"{where}.parts[{at}].functionResponse")
            role, name = "tool", str(answer.get("name") or "")
            texts.append(json.dumps(answer.get("response"), ensure_ascii=False))
        else:
            raise ExampleError("non_text_content", f"{where}.parts[{at}] holds {', '.join(piece) or 'nothing'}")
    return Message(role, "".join(texts), train=_weight(fields, where), tool_calls=tuple(calls), name=name)


def _text_input_output(record: Record) -> Example:
    return _pair(_text(record, "text_input"), _text(record, "output"))


def _instruction(record: Record) -> Example:
    asked = _text(record, "instruction")
    if _has_text(record, "input"):
        asked = f"{asked}\n\n{_text(record, 'input')}"
    messages = _system(record)
    for at, turn in enumerate(_list(record, "history") if record.get("history") else []):
        if not isinstance(turn, list | tuple) or len(turn) != 2:
            raise ExampleError("wrong_fields", f"history[{at}] is not a pair of question and answer")
        messages += [Message("user", _content(turn[0], "history")), Message("assistant", _content(turn[1], "history"))]
    return Example(messages=(*messages, *_pair(asked, _text(record, "output")).messages))


def _prompt_completion(record: Record) -> Example:
    prompt, completion = record["prompt"], record["completion"]
    if not isinstance(prompt, list) and not isinstance(completion, list):
        return _pair(_text(record, "prompt"), _text(record, "completion"))
    asked = [_openai_message(turn, at) for at, turn in enumerate(_list(record, "prompt"))]
    answered = [_openai_message(turn, at) for at, turn in enumerate(_list(record, "completion"))]
    # Answers inside the prompt are context; they are not supervised.
    return Example(messages=(*(replace(turn, train=False) for turn in asked), *answered), tools=_tools(record))


def _question_answer(record: Record) -> Example:
    asked = _text(record, "question")
    if _has_text(record, "context"):
        asked = f"question: {asked}\ncontext: {_text(record, 'context')}"
    return _pair(asked, _text(record, "answer"))


def _plain_text(record: Record) -> Example:
    text = _text(record, "text")
    if not text.strip():
        raise ExampleError("empty_output", "text is empty")
    return Example(text=text)


def _pair(asked: str, answered: str) -> Example:
    return Example(messages=(Message("user", asked), Message("assistant", answered)))


FORMATS: dict[DataFormat, tuple[tuple[str, ...], Callable[[Record], Example]]] = {
    DataFormat.messages: (("messages",), _messages),
    DataFormat.contents: (("contents",), _contents),
    DataFormat.conversations: (("conversations",), _conversations),
    DataFormat.text_input_output: (("text_input", "output"), _text_input_output),
    DataFormat.instruction: (("instruction", "output"), _instruction),
    DataFormat.prompt_completion: (("prompt", "completion"), _prompt_completion),
    DataFormat.question_answer: (("question", "answer"), _question_answer),
    DataFormat.text: (("text",), _plain_text),
}
"""Fields that make a record one of a format, and what reads it; the first format that fits is taken."""


def _role(role: object, where: str) -> str:
    known = _ROLES.get(role) if isinstance(role, str) else None
    if known is None:
        raise ExampleError("unknown_role", f"{where}: role {role!r}; known: {', '.join(_ROLES)}")
    return known


def _content(content: object, where: str) -> str:
    """Content as text; a list of text parts is joined."""
    if content is None:
        return ""
    if isinstance(content, list):
        return "".join(_part(part, where) for part in content)
    return _as_text(content, where)


def _part(part: object, where: str) -> str:
    if isinstance(part, str):
        return part
    fields = _object(part, f"{where}.content")
    if fields.get("type", "text") == "text" and isinstance(fields.get("text"), str):
        return str(fields["text"])
    if fields.get("type") == "refusal" and isinstance(fields.get("refusal"), str):
        return str(fields["refusal"])
    raise ExampleError("non_text_content", f"{where}: a part of type {fields.get('type')!r}; only text is supported")


def _has_text(record: Record, field: str) -> bool:
    value = record.get(field)
    return value is not None and not (isinstance(value, str) and not value.strip())


def _text(record: Record, field: str) -> str:
    value = record[field]
    if value is None:
        raise ExampleError("wrong_fields", f"{field} is null")
    return _as_text(value, field)


def _as_text(value: object, where: str) -> str:
    """Text, or a number as text (labels of a classification often are numbers)."""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and not math.isfinite(value):
        raise ExampleError("nan_value", f"{where} is {value}")
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise ExampleError("wrong_fields", f"{where} is of type {type(value).__name__}; text expected")


def _list(record: Json, field: str) -> list[object]:
    return _as_list(record.get(field), field)


def _as_list(value: object, where: str) -> list[object]:
    if isinstance(value, str):
        # A cell of a table can hold a list only as JSON text.
        value = _parse(value, where)
    if not isinstance(value, list):
        raise ExampleError("wrong_fields", f"{where} is of type {type(value).__name__}; a list expected")
    return value


def _parse(text: str, where: str) -> object:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ExampleError("wrong_fields", f"{where} is not JSON: {error}") from error


def _object(value: object, where: str) -> Json:
    if not isinstance(value, dict):
        raise ExampleError("wrong_fields", f"{where} is of type {type(value).__name__}; an object expected")
    return value


def _check_unicode(example: Example) -> None:
    texts = [example.text or "", *(message.content + message.reasoning for message in example.messages)]
    texts += [
        json.dumps(calls, ensure_ascii=False) for calls in (*(m.tool_calls for m in example.messages), example.tools)
    ]
    for text in texts:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            why = f"half of a surrogate pair (\\u{ord(text[error.start]):04x}) at character {error.start}"
            raise ExampleError("bad_unicode", why) from error
