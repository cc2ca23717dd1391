"""Tokenizes examples with the model's chat template and tokenizer, within data.seq_len_tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from launcher.config.schema import OverLength
from launcher.data.audit import Location, Tally
from launcher.data.chat_tokenizer import ChatTokenizer, MaskedTokens
from launcher.data.encode import EncodedExample
from launcher.data.example import Example
from launcher.data.mask import Rendered, Turn, render_with_turns
from launcher.data.template import ChatFormat
from launcher.errors import ExampleError


class ModelTokenizer:
    """The `Tokenizer` of a model."""

    def __init__(self, chat: ChatFormat, tokenizer_json: Path, *, seq_len_tokens: int, over_length: OverLength) -> None:
        self._chat = chat
        self._tokens = ChatTokenizer(tokenizer_json, chat)
        self._seq_len_tokens = seq_len_tokens
        self._over_length = over_length
        longest_first = sorted(chat.added_tokens, key=len, reverse=True)
        self.special_tokens = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None
        self.end_token = chat.special_tokens.get("eos_token")
        self.system_prompt = chat.system_prompt

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens included."""
        return self._tokens.decode(ids)

    def tokenize(self, examples: Sequence[Example], tally: Tally) -> list[EncodedExample]:
        ready: list[tuple[Example, Rendered]] = []
        for example in examples:
            try:
                ready.append((example, self._render(example, tally)))
            except ExampleError as error:
                tally.add(error.code, Location(example.source, example.line, error.why))
        tokenized = self._tokens.encode([(rendered.text, rendered.turns) for _, rendered in ready])
        kept: list[EncodedExample] = []
        for (example, rendered), tokens in zip(ready, tokenized, strict=True):
            if isinstance(tokens, ExampleError):
                tally.add(tokens.code, Location(example.source, example.line, tokens.why))
                continue
            if example.text is not None:
                text, tokens = self._tokens.as_document(example.text, tokens)
                rendered = Rendered(text, ())
            fitted = self._fit(example, rendered, tokens, tally)
            if fitted is not None:
                kept.append(fitted)
        return kept

    def _render(self, example: Example, tally: Tally) -> Rendered:
        if example.text is not None:
            return Rendered(example.text, ())
        rendered = self._turns(example)
        if not self._chat.end_of_turn:
            tally.add("end_of_turn_not_trained", Location(example.source, example.line))
        if self._chat.shape.header_added:
            header = repr(self._chat.shape.header)
            tally.add("generation_prompt_added", Location(example.source, example.line, header))
        self._note_changes(example, rendered.turns, tally)
        return rendered

    def _turns(self, example: Example) -> Rendered:
        tools, supervised = example.tools or None, example.supervised_messages
        messages = [message.as_dict() for message in example.messages]
        try:
            return render_with_turns(self._chat, messages, supervised, tools)
        except ExampleError as error:
            if error.code != "template_error" or not any(message.tool_calls for message in example.messages):
                raise
            # Most templates take the arguments of a call as an object, some as JSON text.
            messages = [message.as_dict(arguments_as_text=True) for message in example.messages]
            return render_with_turns(self._chat, messages, supervised, tools)

    def _note_changes(self, example: Example, turns: Sequence[Turn], tally: Tally) -> None:
        """Findings about answers that the template changes, or does not write as inference asks for them."""
        differing = [turn for turn in turns if not turn.as_last]
        lost = [turn for turn in turns if turn.as_last and not turn.complete]
        if any(turn.as_last and not turn.follows_prompt for turn in turns):
            surplus = self._chat.shape.surplus
            detail = f"the generation prompt ends in {surplus!r}" if surplus else "for this conversation only"
            tally.add("generation_prompt_differs", Location(example.source, example.line, detail))
        if differing:
            left_out = "" if differing[0].complete else ", part of which is left out"
            detail = f"answer at message {differing[0].message}{left_out}"
            tally.add("earlier_turns_differ", Location(example.source, example.line, detail))
        if lost:
            tally.add("content_lost", Location(example.source, example.line, f"answer at message {lost[0].message}"))

    def _fit(self, example: Example, rendered: Rendered, tokens: MaskedTokens, tally: Tally) -> EncodedExample | None:
        """The example within seq_len_tokens, or None if it is dropped."""
        limit = self._seq_len_tokens
        ids, mask = tokens.ids, tokens.mask
        mask[:1] = False  # nothing comes before the first token, so nothing predicts it
        spans = [(turn.start, turn.end) for turn in rendered.turns] if rendered.turns else [(0, len(rendered.text))]
        location = Location(example.source, example.line, f"{len(ids)} tokens")
        if not mask.any():
            tally.add("no_supervised_tokens", location)
            return None
        if len(ids) <= limit:
            return EncodedExample(example, rendered.text, spans, ids, mask)
        if self._over_length is not OverLength.truncate:
            tally.add("over_length_dropped" if self._over_length is OverLength.drop else "over_length", location)
            return None
        if not mask[:limit].any():
            tally.add("truncated_to_nothing", location)
            return None
        tally.add("truncated", location)
        if mask[limit:].any():
            tally.add("truncated_end_of_turn", location)
        cut = int(tokens.ends[limit - 1])
        spans = [(start, min(end, cut)) for start, end in spans if start < cut]
        return EncodedExample(example, rendered.text[:cut], spans, ids[:limit], mask[:limit], len(ids) - limit)
