"""Examples to token ids and label masks, a chunk of records at a time."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from launcher.config.schema import DataFormat, OverLength
from launcher.data.audit import RULES, Place, Severity, Tally
from launcher.data.chat_tokenizer import ChatTokenizer, Tokens
from launcher.data.example import Example, ExampleError
from launcher.data.example_checks import Issue, check_example, check_text, digests
from launcher.data.formats import to_example
from launcher.data.mask import Rendered, Turn, render_with_turns
from launcher.data.prepared import TokenBatch
from launcher.data.prompt_prefix import Opening, opening_of
from launcher.data.readers import Chunk, parse
from launcher.data.template import ChatFormat


@dataclass(frozen=True, slots=True)
class EncoderSettings:
    """All an encoder needs; travels to other processes."""

    chat: ChatFormat
    tokenizer_json: Path
    seq_len_tokens: int
    over_length: OverLength
    max_input_chars: int | None
    max_output_chars: int | None
    sources: tuple[tuple[str, DataFormat | None], ...]
    """Name and format of each source a chunk may come from; None where no format fits."""


@dataclass(slots=True)
class EncodedExample:
    """One example with all that is known about it; the text ends where the last token does if some were cut."""

    example: Example
    text: str
    spans: list[tuple[int, int]]
    """Taught characters of `text`, end-of-turn tokens included."""
    ids: npt.NDArray[np.int32]
    mask: npt.NDArray[np.bool_]
    num_cut: int = 0
    """Tokens cut off at the end."""


@dataclass(slots=True)
class EncodedChunk:
    """What became of one chunk."""

    source: int
    batch: TokenBatch
    input_digest: npt.NDArray[np.uint64]
    example_digest: npt.NDArray[np.uint64]
    openings: list[Opening | None]
    tally: Tally
    num_read: int
    num_truncated: int
    tokens_cut: int
    size_bytes: int


class Encoder:
    """Turns chunks of records into tokens. One for each process."""

    def __init__(self, settings: EncoderSettings) -> None:
        self._settings = settings
        self._chat = settings.chat
        self._tokens = ChatTokenizer(settings.tokenizer_json, settings.chat)
        self._special = _pattern(settings.chat.added_tokens)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of some ids, special tokens included."""
        return self._tokens.decode(ids)

    def encode(self, chunk: Chunk) -> EncodedChunk:
        """Token ids, masks, digests and findings of a chunk, in the order of its records."""
        tally = Tally()
        kept = self.examples(chunk, tally)
        lengths = [len(encoded.ids) for encoded in kept]
        marks = [digests(encoded.example) for encoded in kept]
        batch = TokenBatch(
            tokens=np.concatenate([np.zeros(0, np.int32), *(encoded.ids for encoded in kept)]),
            mask=np.concatenate([np.zeros(0, np.bool_), *(encoded.mask for encoded in kept)]).view(np.uint8),
            offsets=np.cumsum([0, *lengths]).astype(np.int32),
            file=np.full(len(kept), chunk.source, dtype=np.int32),
            line=np.array([encoded.example.line for encoded in kept], dtype=np.int64),
        )
        return EncodedChunk(
            source=chunk.source,
            batch=batch,
            input_digest=np.array([mark[0] for mark in marks], dtype=np.uint64),
            example_digest=np.array([mark[1] for mark in marks], dtype=np.uint64),
            openings=[opening_of(encoded.example, self._chat.system_prompt) for encoded in kept],
            tally=tally,
            num_read=sum(not _is_blank(payload) for payload in chunk.payloads),
            num_truncated=sum(encoded.num_cut > 0 for encoded in kept),
            tokens_cut=sum(encoded.num_cut for encoded in kept),
            size_bytes=chunk.size_bytes,
        )

    def examples(self, chunk: Chunk, tally: Tally) -> list[EncodedExample]:
        """The usable examples of a chunk; what is wrong with it goes to `tally`."""
        name, kind = self._settings.sources[chunk.source]
        assert kind is not None
        ready: list[tuple[Example, Rendered]] = []
        for line, payload in zip(chunk.lines, chunk.payloads, strict=True):
            try:
                example = to_example(parse(payload), kind, name, line)
                rendered = self._render(example, tally)
            except ExampleError as error:
                tally.add(error.code, Place(name, line, error.why))
                continue
            if rendered is not None:
                ready.append((example, rendered))
        pieces = self._tokens.encode([(rendered.text, rendered.turns) for _, rendered in ready])
        kept: list[EncodedExample] = []
        for (example, rendered), tokens in zip(ready, pieces, strict=True):
            if isinstance(tokens, ExampleError):
                tally.add(tokens.code, Place(name, example.line, tokens.why))
                continue
            if example.text is not None:
                text, tokens = self._tokens.as_document(example.text, tokens)
                rendered = Rendered(text, ())
            fitted = self._fit(example, rendered, tokens, tally)
            if fitted is not None:
                kept.append(fitted)
        return kept

    def _render(self, example: Example, tally: Tally) -> Rendered | None:
        """Text and turns, or None when a finding makes the example unusable."""
        place = Place(example.source, example.line)
        usable = True
        for code, detail in self._issues(example):
            tally.add(code, Place(place.file, place.line, detail))
            usable = usable and (RULES[code].keeps or RULES[code].severity is Severity.warning)
        if not usable:
            return None
        if example.text is not None:
            return Rendered(example.text, ())
        taught = [i for i, message in enumerate(example.messages) if message.role == "assistant" and message.train]
        if not taught:
            raise ExampleError("no_supervised_tokens", "every answer has weight 0")
        rendered = self._turns(example, taught)
        if not self._chat.end_of_turn:
            tally.add("end_of_turn_not_trained", place)
        if self._chat.shape.header_added:
            tally.add("generation_prompt_added", Place(place.file, place.line, repr(self._chat.shape.header)))
        self._note_changes(example, rendered.turns, tally)
        return rendered

    def _issues(self, example: Example) -> list[Issue]:
        limits = self._settings
        if example.text is not None:
            end_token = self._chat.special_tokens.get("eos_token")
            return check_text(example.text, self._special, end_token, limits.max_output_chars)
        return check_example(example, self._special, limits.max_input_chars, limits.max_output_chars)

    def _turns(self, example: Example, taught: list[int]) -> Rendered:
        tools = example.tools or None
        try:
            return render_with_turns(self._chat, [message.as_dict() for message in example.messages], taught, tools)
        except ExampleError as error:
            if error.code != "template_error" or not any(message.tool_calls for message in example.messages):
                raise
            # Most templates want the arguments of a call as an object, some as JSON text.
            as_text = [message.as_dict(arguments_as_text=True) for message in example.messages]
            return render_with_turns(self._chat, as_text, taught, tools)

    def _note_changes(self, example: Example, turns: Sequence[Turn], tally: Tally) -> None:
        differing = [turn for turn in turns if not turn.as_last]
        lost = [turn for turn in turns if turn.as_last and not turn.complete]
        if any(turn.as_last and not turn.follows_prompt for turn in turns):
            surplus = self._chat.shape.surplus
            detail = f"the generation prompt ends in {surplus!r}" if surplus else "for this conversation only"
            tally.add("generation_prompt_differs", Place(example.source, example.line, detail))
        if differing:
            left_out = "" if differing[0].complete else ", of which part is left out"
            detail = f"answer at message {differing[0].message}{left_out}"
            tally.add("earlier_turns_differ", Place(example.source, example.line, detail))
        if lost:
            tally.add("content_lost", Place(example.source, example.line, f"answer at message {lost[0].message}"))

    def _fit(self, example: Example, rendered: Rendered, tokens: Tokens, tally: Tally) -> EncodedExample | None:
        """The example within seq_len_tokens, or None; says in the tally what was done."""
        limit = self._settings.seq_len_tokens
        ids, mask = tokens.ids, tokens.mask
        mask[:1] = False  # nothing comes before the first token, so nothing predicts it
        spans = [(turn.start, turn.end) for turn in rendered.turns] if rendered.turns else [(0, len(rendered.text))]
        place = Place(example.source, example.line, f"{len(ids)} tokens")
        if not mask.any():
            tally.add("no_supervised_tokens", place)
            return None
        if len(ids) <= limit:
            return EncodedExample(example, rendered.text, spans, ids, mask)
        if self._settings.over_length is not OverLength.truncate:
            dropped = self._settings.over_length is OverLength.drop
            tally.add("over_length_dropped" if dropped else "over_length", place)
            return None
        if not mask[:limit].any():
            tally.add("truncated_to_nothing", place)
            return None
        tally.add("truncated", place)
        if mask[limit:].any():
            tally.add("truncated_end_of_turn", place)
        cut = int(tokens.ends[limit - 1])
        spans = [(start, min(end, cut)) for start, end in spans if start < cut]
        return EncodedExample(example, rendered.text[:cut], spans, ids[:limit], mask[:limit], len(ids) - limit)


def _pattern(tokens: Sequence[str]) -> re.Pattern[str] | None:
    ordered = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(re.escape(token) for token in ordered)) if ordered else None


def _is_blank(payload: object) -> bool:
    return isinstance(payload, ExampleError) and payload.code == "empty_line"
