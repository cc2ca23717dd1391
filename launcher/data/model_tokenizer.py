"""Tokenizes examples with the model's chat template and tokenizer, within data.seq_len_tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from launcher.config.schema import OverLength
from launcher.data.audit import Tally
from launcher.data.chat_tokenizer import ChatTokenizer, MaskedTokens
from launcher.data.encode import EncodedExample
from launcher.data.example import Example
from launcher.data.mask import Rendered, Turn, render_with_turns
from launcher.data.template import ChatFormat
from launcher.data.template_markers import any_of
from launcher.errors import ExampleError


class ModelTokenizer:
    """The `Tokenizer` of a model."""

    def __init__(self, chat: ChatFormat, tokenizer_json: Path, *, seq_len_tokens: int, over_length: OverLength) -> None:
        self._chat = chat
        self.tokens = ChatTokenizer(tokenizer_json, chat)
        self._seq_len_tokens = seq_len_tokens
        self._over_length = over_length
        self.special_tokens = any_of(chat.added_tokens)
        self.end_token = chat.special_tokens.get("eos_token")
        self.system_prompt = chat.system_prompt

    def tokenize(self, examples: Sequence[Example], tally: Tally) -> list[EncodedExample]:
        ready: list[tuple[Example, Rendered]] = []
        for example in examples:
            with tally.catching(example):
                ready.append((example, self._render(example, tally)))
        encodings = self.tokens.encode([rendered.text for _, rendered in ready])
        kept: list[EncodedExample] = []
        for (example, rendered), encoding in zip(ready, encodings, strict=True):
            with tally.catching(example):
                tokens = self.tokens.masked(rendered.text, rendered.turns, encoding)
                if example.text is not None:
                    text, tokens = self.tokens.as_document(example.text, tokens)
                    rendered = Rendered(text, ())
                kept += self._fit(example, rendered, tokens, tally)
        return kept

    def _render(self, example: Example, tally: Tally) -> Rendered:
        if example.text is not None:
            return Rendered(example.text, ())
        rendered = self._turns(example)
        if not self._chat.end_of_turn:
            tally.note(example, "end_of_turn_not_trained")
        if self._chat.shape.header_added:
            tally.note(example, "generation_prompt_added", repr(self._chat.shape.header))
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
            tally.note(example, "generation_prompt_differs", detail)
        if differing:
            left_out = "" if differing[0].complete else ", part of which is left out"
            detail = f"answer at message {differing[0].message}{left_out}"
            tally.note(example, "earlier_turns_differ", detail)
        if lost:
            tally.note(example, "content_lost", f"answer at message {lost[0].message}")

    def _fit(
        self, example: Example, rendered: Rendered, tokens: MaskedTokens, tally: Tally
    ) -> Iterator[EncodedExample]:
        """The example within seq_len_tokens, unless it is dropped."""
        limit = self._seq_len_tokens
        ids, mask = tokens.ids, tokens.mask
        mask[:1] = False  # nothing comes before the first token, so nothing predicts it
        spans = [(turn.start, turn.end) for turn in rendered.turns] if rendered.turns else [(0, len(rendered.text))]
        detail = f"{len(ids)} tokens"
        if not mask.any():
            tally.note(example, "no_supervised_tokens", detail)
        elif len(ids) <= limit:
            yield EncodedExample(example, rendered.text, spans, ids, mask)
        elif self._over_length is not OverLength.truncate:
            code = "over_length_dropped" if self._over_length is OverLength.drop else "over_length"
            tally.note(example, code, detail)
        elif not mask[:limit].any():
            tally.note(example, "truncated_to_nothing", detail)
        else:
            tally.note(example, "truncated", detail)
            if mask[limit:].any():
                tally.note(example, "truncated_end_of_turn", detail)
            cut = int(tokens.ends[limit - 1])
            spans = [(start, min(end, cut)) for start, end in spans if start < cut]
            yield EncodedExample(example, rendered.text[:cut], spans, ids[:limit], mask[:limit], len(ids) - limit)
