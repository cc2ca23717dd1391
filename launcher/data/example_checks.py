"""What can be said about one example without rendering it: order of roles, empty turns, sizes, digests."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator

from launcher.data.example import Example, Message

Issue = tuple[str, str]
"""Audit code and detail."""


def check_example(
    example: Example, special_tokens: re.Pattern[str] | None, max_input_chars: int | None, max_output_chars: int | None
) -> list[Issue]:
    """Findings in one conversation."""
    issues: list[Issue] = []
    last = example.last_answer
    if last < 0:
        roles = ", ".join(message.role for message in example.messages) or "none"
        return [("no_assistant_turn", f"roles: {roles}")]
    issues += _order(example.messages)
    if last < len(example.messages) - 1:
        issues.append(("last_turn_not_assistant", f"last role: {example.messages[-1].role}"))
    issues += _empty(example.messages)
    issues += _sizes(example, max_input_chars, max_output_chars)
    if special_tokens is not None:
        issues += _special(example, special_tokens)
    return issues


def check_text(
    text: str, special_tokens: re.Pattern[str] | None, end_token: str | None, max_output_chars: int | None
) -> list[Issue]:
    """Findings in plain text, all of which is output. One end token at its end is no fault: it would be added there."""
    body = text.removesuffix(end_token) if end_token else text
    issues: list[Issue] = []
    if not body.strip():
        issues.append(("empty_output", "text is empty"))
    if max_output_chars is not None and len(body) > max_output_chars:
        issues.append(("too_long_output_chars", f"{len(body)} characters"))
    found = special_tokens.search(body) if special_tokens is not None else None
    if found:
        issues.append(("special_token_in_text", f"{found.group()!r} at character {found.start()}"))
    return issues


def input_text(example: Example) -> str:
    """All that stands before the last answer, as one text that is equal only for equal inputs."""
    return _joined(example, example.messages[: example.last_answer])


def digests(example: Example) -> tuple[int, int]:
    """64-bit digests of the input and of the whole example; plain text is its own input."""
    if example.text is not None:
        digest = _digest(example.text.strip())
        return digest, digest
    return _digest(input_text(example)), _digest(_joined(example, example.messages))


def _order(messages: tuple[Message, ...]) -> Iterator[Issue]:
    """At most one finding: the first turn that cannot stand where it does."""
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


def _sizes(example: Example, max_input_chars: int | None, max_output_chars: int | None) -> Iterator[Issue]:
    num_input = sum(len(message.content) for message in example.messages[: example.last_answer])
    answers = [message for message in example.messages if message.role == "assistant" and message.train]
    num_output = max((len(message.content) for message in answers), default=0)
    if max_input_chars is not None and num_input > max_input_chars:
        yield "too_long_input_chars", f"{num_input} characters"
    if max_output_chars is not None and num_output > max_output_chars:
        yield "too_long_output_chars", f"{num_output} characters"


def _special(example: Example, special_tokens: re.Pattern[str]) -> Iterator[Issue]:
    for at, message in enumerate(example.messages):
        calls = json.dumps(message.tool_calls, ensure_ascii=False) if message.tool_calls else ""
        found = special_tokens.search(message.content + message.reasoning + calls)
        if found:
            yield "special_token_in_text", f"{found.group()!r} in message {at} ({message.role})"
            return


def _joined(example: Example, messages: tuple[Message, ...]) -> str:
    turns = [
        [message.role, message.content.strip(), message.reasoning, list(message.tool_calls)] for message in messages
    ]
    return json.dumps([turns, list(example.tools)], ensure_ascii=False, sort_keys=True)


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "little")
