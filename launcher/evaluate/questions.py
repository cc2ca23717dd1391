"""Prepared examples as questions with known answers, and prompts with worked examples before the question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.config.schema import DataConfig, DataFormat
from launcher.data.audit import Audit
from launcher.data.example import Example, Message
from launcher.data.formats import to_example
from launcher.data.prepared import Prepared
from launcher.data.readers import Payload, parse, read_chunks
from launcher.data.sources import find_sources
from launcher.data.template import ChatFormat
from launcher.errors import DataError, ExampleError
from launcher.files import read_record

MessageDict = dict[str, object]


@dataclass(frozen=True, slots=True)
class Prompt:
    """Input of a model: the conversation up to the answer and the tools it may call, or a plain text to continue."""

    messages: tuple[MessageDict, ...] = ()
    tools: tuple[MessageDict, ...] = ()
    text: str | None = None
    """The beginning of a plain text; then there are no messages, and no template is applied."""


@dataclass(frozen=True, slots=True)
class Question:
    """An example split into the prompt and its last answer, which is expected."""

    prompt: Prompt
    expected: str

    @property
    def asked(self) -> str:
        """The last user message."""
        users = [message["content"] for message in self.prompt.messages if message["role"] == "user"]
        return str(users[-1]) if users else ""


def read_examples(data: DataConfig, data_dir: Path, split: Prepared, wanted: Sequence[int]) -> list[Example]:
    """The examples behind rows of a prepared split, read again from their source, in the order of `wanted`.

    Raises: DataError when the source is gone or no longer holds them.
    """
    places = [split.source_line(index) for index in wanted]
    formats = read_record(Audit, data_dir / "audit.json").formats
    found: dict[tuple[str, int], Example] = {}
    for number, source in enumerate(find_sources(data).all()):
        lines = {line for name, line in places if name == source.name}
        if not lines:
            continue
        kind = DataFormat(formats[source.name])
        for chunk in read_chunks(source, number):
            for line, payload in zip(chunk.lines, chunk.payloads, strict=True):
                if line in lines:
                    found[source.name, line] = _example(payload, kind, source.name, line)
    missing = [f"{name}:{line}" for name, line in places if (name, line) not in found]
    if missing:
        raise DataError(
            f"{len(missing)} examples are missing from the data they were prepared from, such as {missing[0]}. "
            "Evaluation reads them again: restore the data, and run in the folder where training was started."
        )
    return [found[place] for place in places]


def as_question(example: Example) -> Question | None:
    """The example as a question; None if it has no answer to compare with: plain text, or a tool call as answer."""
    at = example.last_answer
    if at < 1 or not example.messages[at].content.strip() or example.messages[at].tool_calls:
        return None
    prompt = Prompt(
        tuple(message.as_dict() for message in example.messages[:at]), tuple(dict(tool) for tool in example.tools)
    )
    return Question(prompt, example.messages[at].content)


def with_shots(question: Question, shots: Sequence[Question], preamble: str | None) -> Prompt:
    """The question after worked examples, each a user turn and its answer; the question's system message stays first.

    A preamble begins each worked example and the question, as in training; rendering adds it to the first user turn.
    """
    messages = list(question.prompt.messages)
    start = next((i for i, message in enumerate(messages) if message["role"] not in ("system", "developer")), 0)
    turns: list[MessageDict] = []
    for shot in shots:
        turns += [Message("user", shot.asked).as_dict(), Message("assistant", shot.expected).as_dict()]
    first_user = len(turns) + next((i for i, m in enumerate(messages[start:]) if m["role"] == "user"), 0)
    turns += messages[start:]
    if preamble is not None and shots:
        for index in (*range(2, 2 * len(shots), 2), first_user):
            turns[index] = {**turns[index], "content": preamble + str(turns[index].get("content") or "")}
    return Prompt((*messages[:start], *turns), question.prompt.tools)


def render(chat: ChatFormat, prompt: Prompt) -> str:
    """The text of a prompt, ending where the answer begins."""
    return chat.render(prompt.messages, tools=prompt.tools or None, add_generation_prompt=True)


def _example(payload: Payload, kind: DataFormat, name: str, line: int) -> Example:
    try:
        return to_example(parse(payload), kind, name, line)
    except ExampleError as error:
        raise DataError(f"{name}:{line} has changed since the data was prepared: {error.why}") from error
