"""Checks of one example before it is rendered: order of roles, empty turns, sizes, special tokens; and digests."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator

from launcher.config.schema import DataConfig
from launcher.data.example import Example, Message

Issue = tuple[str, str]
"""Audit code and detail."""


def check_example(
    example: Example, data: DataConfig, special_tokens: re.Pattern[str], end_token: str | None
) -> list[Issue]:
    """Findings in one example."""
    if example.text is not None:
        # One end token at the end is fine: it would be added there.
        body = example.text.removesuffix(end_token) if end_token else example.text
        issues = [] if body.strip() else [("empty_output", "text is empty")]
        return [*issues, *_sizes(0, [body], data), *_special([("", body)], special_tokens)]
    last = example.last_answer
    if last < 0:
        roles = ", ".join(message.role for message in example.messages) or "none"
        return [("no_assistant_turn", f"roles: {roles}")]
    issues = [*_order(example.messages)]
    if last < len(example.messages) - 1:
        issues.append(("last_turn_not_assistant", f"last role: {example.messages[-1].role}"))
    issues += _empty(example.messages)
    num_input = sum(len(message.content) for message in example.messages[:last])
    issues += _sizes(num_input, [example.messages[index].content for index in example.supervised_messages], data)
    texts = ((f" in message {index} ({m.role})", _all_text(m)) for index, m in enumerate(example.messages))
    return [*issues, *_special(texts, special_tokens)]


def digests(example: Example) -> tuple[int, int]:
    """64-bit digests of the input (all before the last answer) and of the whole; plain text is its own input."""
    if example.text is not None:
        digest = _digest(example.text.strip())
        return digest, digest
    return _digest(_joined(example, example.messages[: example.last_answer])), _digest(
        _joined(example, example.messages)
    )


def _order(messages: tuple[Message, ...]) -> Iterator[Issue]:
    """At most one finding: the first turn that is out of order."""
    previous = ""
    for at, message in enumerate(messages):
        role = "system" if message.role == "developer" else message.role
        allowed = {
            "": ("system", "user"),
            "system": ("user",),
            "user": ("assistant",),
            "assistant": ("user",),
            "call": ("tool",),
            "tool": ("tool", "assistant"),
        }[previous]
        if role not in allowed:
            after = "after a tool call" if previous == "call" else f"after {previous}" if previous else "at the start"
            yield "wrong_role_order", f"message {at} is {role} {after}"
            return
        previous = "call" if message.tool_calls else role


def _empty(messages: tuple[Message, ...]) -> Iterator[Issue]:
    for at, message in enumerate(messages):
        if message.content.strip() or message.tool_calls:
            continue
        if message.role == "assistant" and message.train:
            yield "empty_output", f"message {at}"
        elif message.role == "user":
            yield "empty_input", f"message {at}"


def _sizes(num_input: int, answers: list[str], data: DataConfig) -> Iterator[Issue]:
    num_output = max(map(len, answers), default=0)
    if data.max_input_chars is not None and num_input > data.max_input_chars:
        yield "too_long_input_chars", f"{num_input} characters"
    if data.max_output_chars is not None and num_output > data.max_output_chars:
        yield "too_long_output_chars", f"{num_output} characters"


def _special(texts: Iterable[tuple[str, str]], special_tokens: re.Pattern[str]) -> Iterator[Issue]:
    """At most one finding, for (place, text) pairs; where the place is empty, the character is given."""
    for place, text in texts:
        if found := special_tokens.search(text):
            yield "special_token_in_text", f"{found.group()!r}{place or f' at character {found.start()}'}"
            return


def _all_text(message: Message) -> str:
    calls = json.dumps(message.tool_calls, ensure_ascii=False) if message.tool_calls else ""
    return message.content + message.reasoning + calls


def _joined(example: Example, messages: tuple[Message, ...]) -> str:
    turns = [
        [message.role, message.content.strip(), message.reasoning, list(message.tool_calls)] for message in messages
    ]
    return json.dumps([turns, list(example.tools)], ensure_ascii=False, sort_keys=True)


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "little")
