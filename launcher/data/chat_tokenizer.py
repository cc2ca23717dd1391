"""Token ids of rendered conversations, and which of them are labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding, Tokenizer, processors

from launcher.data.example import ExampleError
from launcher.data.mask import Turn
from launcher.data.template import ChatFormat
from launcher.errors import ModelError

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Tokens:
    """A text as tokens: ids, whether each is a label, and the character of the text each one ends before."""

    ids: npt.NDArray[np.int32]
    mask: npt.NDArray[np.bool_]
    ends: IntArray


class ChatTokenizer:
    """A tokenizer.json, and the token masks it gives for rendered conversations."""

    def __init__(self, tokenizer_json: Path, chat: ChatFormat) -> None:
        try:
            self._tokenizer: Tokenizer = Tokenizer.from_file(str(tokenizer_json))
        except Exception as error:  # the library raises no narrower type
            raise ModelError(f"{tokenizer_json} cannot be read as a tokenizer: {error}") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._prefix_ids = self._read_prefix()
        self._joins = self._can_join()
        self._special_ids = np.array(
            [self._tokenizer.token_to_id(token) for token in chat.added_tokens], dtype=np.int32
        )
        # Offsets must cover the space a token begins with; templates write their own special tokens.
        self._tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
        self._eos = chat.special_tokens.get("eos_token")
        self._eos_id = self._tokenizer.token_to_id(self._eos) if self._eos else None
        self._ends_turns = chat.end_of_turn is not None

    def encode(self, texts: Sequence[tuple[str, Sequence[Turn]]]) -> list[Tokens | ExampleError]:
        """Ids and label mask for each text with its taught turns, or why there is no sure mask."""
        encodings = self._tokenizer.encode_batch([text for text, _ in texts], add_special_tokens=False)
        made: list[Tokens | ExampleError] = []
        for (text, turns), encoding in zip(texts, encodings, strict=True):
            try:
                made.append(self._masked(text, turns, encoding))
            except ExampleError as error:
                made.append(error)
        return made

    def as_document(self, text: str, tokens: Tokens) -> tuple[str, Tokens]:
        """Plain text as a document: begun as the tokenizer begins texts, ended by one eos; everything is taught."""
        begun = tokens.ids[: len(self._prefix_ids)].tolist() == self._prefix_ids
        before = [] if begun else self._prefix_ids
        after = [] if self._eos_id is None or tokens.ids[-1:].tolist() == [self._eos_id] else [self._eos_id]
        ids = np.concatenate([np.array(before, np.int32), tokens.ids, np.array(after, np.int32)])
        mask = np.ones(len(ids), dtype=np.bool_)
        mask[: len(self._prefix_ids)] = False
        ends = np.pad(tokens.ends, (len(before), len(after)), constant_values=(0, len(text) + len(self._eos or "")))
        return text + (self._eos or "" if after else ""), Tokens(ids, mask, ends)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of some ids, special tokens included."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))

    def _read_prefix(self) -> list[int]:
        bare = self._tokenizer.encode("a", add_special_tokens=False).ids
        dressed = self._tokenizer.encode("a", add_special_tokens=True).ids
        at = next((i for i in range(len(dressed)) if dressed[i : i + len(bare)] == bare), 0)
        return list(dressed[:at])

    def _can_join(self) -> bool:
        """Whether a text encoded in pieces is the same text; not so where a space is put in front of each piece."""
        apart = self._tokenizer.encode("x", add_special_tokens=False).ids
        behind = self._tokenizer.encode("y", add_special_tokens=False).ids
        return self.decode(apart + behind) == "xy"

    def _masked(self, text: str, turns: Sequence[Turn], encoding: Encoding) -> Tokens:
        ids = np.array(encoding.ids, dtype=np.int32)
        offsets = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
        starts, ends = offsets[:, 0], offsets[:, 1]
        torn = [turn.start for turn in turns if bool(((starts < turn.start) & (ends > turn.start)).any())]
        if torn and self._joins:
            ids, starts, ends = self._in_pieces(text, torn)
        mask = np.zeros(len(ids), dtype=np.bool_)
        for turn in turns:
            inside = (starts >= turn.start) & (starts < turn.end)
            if turn.start in torn and not self._joins:
                inside |= self._torn(text, turn, ids, starts, ends)
            taught = np.flatnonzero(inside)
            if self._ends_turns and (len(taught) == 0 or ids[taught[-1]] not in self._special_ids):
                raise ExampleError("end_of_turn_not_trained", f"answer at message {turn.message}")
            mask |= inside
        return Tokens(ids, mask, ends)

    def _torn(
        self, text: str, turn: Turn, ids: npt.NDArray[np.int32], starts: IntArray, ends: IntArray
    ) -> npt.NDArray[np.bool_]:
        """Of a token that lies across the beginning of an answer: whether it is taught.

        A special token that swallowed the white space behind it is not; a word that took the space the prompt ends
        with is. Anything else would teach part of the prompt, or not teach part of the answer.
        """
        across = (starts < turn.start) & (ends > turn.start)
        across &= ~np.isin(ids, self._special_ids)
        if across.any() and text[int(starts[across].min()) : turn.start].strip():
            why = f"a token holds both the prompt's end and the answer's beginning at character {turn.start}"
            raise ExampleError("mask_unresolved", why)
        return across

    def _in_pieces(self, text: str, cuts: Sequence[int]) -> tuple[npt.NDArray[np.int32], IntArray, IntArray]:
        """Ids and offsets with a token boundary at each cut: where inference ends the prompt, so does training."""
        bounds = [0, *cuts, len(text)]
        parts = [text[a:b] for a, b in pairwise(bounds)]
        encodings = self._tokenizer.encode_batch(parts, add_special_tokens=False)
        ids = np.array([i for encoding in encodings for i in encoding.ids], dtype=np.int32)
        shifted = [
            np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2) + bound
            for encoding, bound in zip(encodings, bounds[:-1], strict=True)
        ]
        offsets = np.concatenate(shifted)
        return ids, offsets[:, 0], offsets[:, 1]
