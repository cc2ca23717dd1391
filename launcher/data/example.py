"""The type that every format is converted to, and the error of a record that cannot be used."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Json = Mapping[str, object]
Turns = Sequence[Json]
"""Messages (or tools) as chat templates take them."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `train` says whether an assistant turn is supervised; it has no meaning for other roles."""

    role: str
    """system, developer, user, assistant or tool."""
    content: str
    train: bool = True
    reasoning: str = ""
    """Thinking that is separate from the content (`reasoning_content`)."""
    tool_calls: tuple[Json, ...] = ()
    """Calls in the form of chat templates: type, function {name, arguments as an object}, id if given."""
    tool_call_id: str = ""
    name: str = ""

    def as_dict(self, *, arguments_as_text: bool = False) -> dict[str, object]:
        """The message as chat templates take it, with arguments of calls as objects or as JSON text."""
        optional = {
            "reasoning_content": self.reasoning,
            "tool_calls": [_as_text(call) if arguments_as_text else call for call in self.tool_calls],
            "tool_call_id": self.tool_call_id,
            "name": self.name,
        }
        given = {key: value for key, value in optional.items() if value}
        return {"role": self.role, "content": self.content, **given}


def _as_text(call: Json) -> Json:
    function = call["function"]
    assert isinstance(function, dict)
    return {**call, "function": {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}}


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation, or plain text: then `text` is set, there are no messages, and all of it is supervised."""

    messages: tuple[Message, ...] = ()
    tools: tuple[Json, ...] = ()
    text: str | None = None
    source: str = ""
    line: int = 0

    @property
    def supervised_messages(self) -> list[int]:
        """Indices of the assistant turns to train on."""
        return [i for i, message in enumerate(self.messages) if message.role == "assistant" and message.train]

    @property
    def last_answer(self) -> int:
        """Index of the last assistant turn, or -1."""
        return max((i for i, message in enumerate(self.messages) if message.role == "assistant"), default=-1)
