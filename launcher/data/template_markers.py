"""The text a chat template writes around an answer, learned by rendering a question and an answer made of marks."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from launcher.data.example import Turns
from launcher.errors import DataError, ProbeError

Render = Callable[[Turns, Turns | None, bool], str]
"""(messages, tools, add_generation_prompt) -> text."""

# Letters and digits only: nothing a template strips, splits at or escapes.
_QUESTION = "Qm7launcherQuestionQm7"
ANSWER_MARK = "Am7launcherAnswerAm7"


@dataclass(frozen=True, slots=True)
class TurnShape:
    """The fixed text around an answer.

    A conversation that ends in an answer reads: ... + header + lead + answer + ending + rest.
    """

    header: str = ""
    """Opens an answer and is given at inference: the end of the generation prompt."""
    lead: str = ""
    """Text before the answer that the model must write itself, e.g. an empty thinking block."""
    ending: str = ""
    """Text after the answer up to and including the end-of-turn token; empty if there is no such token."""
    rest: str = ""
    """Text after the ending when the answer is the last turn."""
    other_ending: str = ""
    """How turns of the user end; some templates end earlier answers so, and only the last one with `ending`."""
    end_token: str | None = None
    """The special token inside `ending`."""
    surplus: str = ""
    """End of the generation prompt that training text does not have; a defect of some templates."""
    ignores_flag: bool = False
    """The template writes the same with and without add_generation_prompt."""
    header_added: bool = False
    """The generation prompt was added to the template by us."""


def learn_turn_shape(render: Render, special_tokens: Sequence[str]) -> TurnShape:
    """The shape of the turns `render` writes.

    Raises ProbeError: a plain question and answer cannot be rendered, or not so that the answer can be found.
    """
    question = [{"role": "user", "content": _QUESTION}]
    try:
        asked = render(question, None, False)
        prompt = render(question, None, True)
        full = render([*question, {"role": "assistant", "content": ANSWER_MARK}], None, False)
    except DataError as error:
        raise ProbeError(f"it cannot render a plain question and answer: {error}") from error
    if full.count(ANSWER_MARK) != 1:
        raise ProbeError(f"it writes an answer {full.count(ANSWER_MARK)} times instead of once")
    if _QUESTION not in prompt:
        raise ProbeError("it does not write the question of the user into the text")
    before, after = full.split(ANSWER_MARK)
    opening, shared = _common_length(asked, prompt), _common_length(prompt, before)
    prompt, surplus = prompt[:shared], prompt[shared:]
    if surplus and not prompt[opening:].strip():
        raise ProbeError(
            f"its generation prompt has {surplus[:40]!r} where a finished conversation has "
            f"{before[shared : shared + 40]!r}"
        )
    ending, token = _ending(after, special_tokens)
    return TurnShape(
        header=prompt[opening:],
        lead=before[len(prompt) :],
        ending=ending,
        rest=after[len(ending) :],
        other_ending=_ending(asked.partition(_QUESTION)[2], special_tokens)[0],
        end_token=token,
        surplus=surplus,
        ignores_flag=asked == prompt and not surplus,
    )


def _ending(after: str, special_tokens: Sequence[str]) -> tuple[str, str | None]:
    """Text up to and including the first special token, and that token."""
    found = any_of(special_tokens).search(after)
    return (after[: found.end()], found.group()) if found else ("", None)


def any_of(tokens: Sequence[str]) -> re.Pattern[str]:
    """Matches each of the tokens; without any, no text."""
    # Longest first: one token may be the beginning of another.
    ordered = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, ordered)) or "(?!)")


def _common_length(one: str, other: str) -> int:
    """The length of the common prefix."""
    length = min(len(one), len(other))
    return next((i for i in range(length) if one[i] != other[i]), length)
