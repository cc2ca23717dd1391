"""Finds the characters of a rendered conversation that the assistant writes, its end-of-turn token included.

Works for any template, in two ways, each verified against the final text; if neither holds, an error, never a guess.

1. An answer is what `conversation up to and with the answer` has after `conversation so far + generation prompt`: by
   definition what the model has to write at inference.
2. Some templates write earlier turns differently once later ones exist (thinking removed, tools moved to the last
   question). There the answer is replaced by a mark in the final text: what stays the same before and after the mark
   bounds the answer.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from launcher.data.example import Json, Turns
from launcher.data.template import ChatFormat
from launcher.data.template_markers import ANSWER_MARK
from launcher.errors import DataError, ExampleError


@dataclass(frozen=True, slots=True)
class Turn:
    """One answer in the rendered text: characters `start` to `end`, the end-of-turn token included."""

    message: int
    start: int
    end: int
    as_last: bool
    """False if the answer is not written as it would be if it were the last turn, which is what inference asks for."""
    follows_prompt: bool
    """False if it does not follow exactly what inference puts before it."""
    complete: bool
    """Whether the whole answer is in the text (white space aside)."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as text, with its supervised turns."""

    text: str
    turns: tuple[Turn, ...]


def render_with_turns(
    chat: ChatFormat, messages: Turns, supervised: Sequence[int], tools: Turns | None = None
) -> Rendered:
    """The text of a conversation and where the answers `supervised` (indices into `messages`, ascending) are in it.

    Raises ExampleError: the template refuses the conversation, or an answer cannot be found beyond doubt.
    """
    finder = _TurnFinder(chat, messages, tools)
    turns: list[Turn] = []
    for index in supervised:
        turn = finder.find(index)
        if turns and turn.start < turns[-1].end:
            raise ExampleError("mask_unresolved", f"answers {turns[-1].message} and {index} overlap in the text")
        turns.append(turn)
    return Rendered(finder.text, tuple(turns))


class _TurnFinder:
    """Finds answers in one conversation."""

    def __init__(self, chat: ChatFormat, messages: Turns, tools: Turns | None) -> None:
        self._chat = chat
        self._shape = chat.shape
        self._original = messages
        self._messages = chat.dressed(messages)
        # The system prompt may have been put in front.
        self._shift = len(self._messages) - len(messages)
        self._tools = tools
        self.text = self._render(self._messages)

    def find(self, index: int) -> Turn:
        """The answer at `index` of the conversation as given."""
        at = index + self._shift
        prompts = self._prompts(at)
        span = self._as_last(at, prompts)
        # There is no prompt to compare with before the first message, or if the template refuses it.
        comparable = at > 0 and bool(prompts)
        as_last = span is not None or at == len(self._messages) - 1 or not comparable
        if span is None:
            span = self._by_mark(at, prompts)
        start, end = span
        says_all = _says_all(self._messages[at], self.text[start:end])
        follows = not comparable or start == len(prompts[0])
        return Turn(index, start, end, as_last=as_last, follows_prompt=follows, complete=says_all)

    def _prompts(self, at: int) -> list[str]:
        """The prompt before this answer at inference, and the same without the surplus that is not in training text."""
        try:
            prompt = self._chat.render_dressed(self._messages[:at], self._tools, True)
        except DataError:
            return []
        shorter = prompt.removesuffix(self._shape.surplus)
        return [prompt] if shorter == prompt else [prompt, shorter]

    def _as_last(self, at: int, prompts: list[str]) -> tuple[int, int] | None:
        upto = self.text if at == len(self._messages) - 1 else self._render(self._messages[: at + 1])
        tail = self._shape.ending + self._shape.rest
        for prompt in prompts:
            if upto.startswith(prompt) and upto.endswith(tail) and len(upto) >= len(prompt) + len(tail):
                answer = upto[len(prompt) : len(upto) - len(self._shape.rest)]
                if self.text.startswith(prompt) and self.text.startswith(answer, len(prompt)):
                    return len(prompt), len(prompt) + len(answer)
        return None

    def _by_mark(self, at: int, prompts: list[str]) -> tuple[int, int]:
        message = {key: value for key, value in self._messages[at].items() if key != "reasoning_content"}
        marked = self._render([*self._messages[:at], {**message, "content": ANSWER_MARK}, *self._messages[at + 1 :]])
        if marked.count(ANSWER_MARK) != 1 or ANSWER_MARK in self.text:
            raise self._unresolved(at, f"the template writes it {marked.count(ANSWER_MARK)} times")
        before, after = marked.split(ANSWER_MARK)
        close, ending = self._close(after, bool(message.get("tool_calls")))
        if close < 0:
            raise self._unresolved(at, f"it is not followed by {self._shape.ending!r}")
        if not self.text.endswith(after[close:]):
            raise self._unresolved(at, "what follows it depends on what it says")
        end = len(self.text) - len(after[close:]) + len(ending)
        start = self._start_by_mark(before, prompts)
        if start is None or start >= end:
            raise self._unresolved(at, "where it begins is not clear")
        return start, end

    def _close(self, after: str, has_calls: bool) -> tuple[int, str]:
        """Where the ending starts in the text after an answer's content, and that ending; -1 if nowhere.

        Only tool calls may come between content and ending.
        """
        for ending in dict.fromkeys((self._shape.ending, self._shape.other_ending)):
            close = after.find(ending) if has_calls else 0 if after.startswith(ending) else -1
            if close >= 0 and (ending or not self._shape.ending):
                return close, ending
        return -1, ""

    def _start_by_mark(self, before: str, prompts: list[str]) -> int | None:
        for prompt in prompts:
            if self.text.startswith(prompt) and before.startswith(prompt):
                return len(prompt)
        for lead in (self._shape.lead, ""):
            head = before.removesuffix(lead)
            if before.endswith(self._shape.header + lead) and self.text.startswith(head):
                return len(head)
        # At least the content itself: what is before it does not depend on it.
        return len(before) if self.text.startswith(before) else None

    def _render(self, messages: Turns) -> str:
        try:
            return self._chat.render_dressed(messages, self._tools)
        except DataError as error:
            raise ExampleError("template_error", str(error)) from error

    def _unresolved(self, at: int, why: str) -> ExampleError:
        return ExampleError("mask_unresolved", f"answer {at - self._shift} cannot be found in the text: {why}")


def _says_all(message: Json, answer: str) -> bool:
    """Whether content, reasoning and tool names are in `answer`, white space and JSON escapes aside."""
    squeezed = "".join(answer.split())
    texts = [str(message.get("content") or ""), str(message.get("reasoning_content") or "")]
    calls = message.get("tool_calls")
    if isinstance(calls, list):
        texts += [str(call["function"]["name"]) for call in calls]
    return all(
        "".join(text.split()) in squeezed or "".join(json.dumps(text)[1:-1].split()) in squeezed for text in texts
    )
