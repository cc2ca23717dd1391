"""Token ids of rendered conversations, and which of them are labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding, Tokenizer, processors

from launcher.data.mask import Turn
from launcher.data.template import ChatFormat
from launcher.errors import ExampleError, ModelError

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class MaskedTokens:
    """Token ids of a text, whether each is a label, and the character offset where each ends."""

    ids: npt.NDArray[np.int32]
    mask: npt.NDArray[np.bool_]
    ends: IntArray


class ChatTokenizer:
    """A tokenizer.json that also masks rendered conversations."""

    def __init__(self, tokenizer_json: Path, chat: ChatFormat) -> None:
        try:
            self.tokenizer: Tokenizer = Tokenizer.from_file(str(tokenizer_json))
        except Exception as error:  # the library raises no narrower type
            raise ModelError(f"{tokenizer_json} cannot be read as a tokenizer: {error}") from error
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self._prefix_ids = self._read_prefix()
        self._joins = self._can_join()
        self._special_ids = np.array([self.tokenizer.token_to_id(x) for x in chat.added_tokens], dtype=np.int32)
        # Offsets must include the leading space of a token; templates write their own special tokens.
        self.tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
        self._eos = chat.special_tokens.get("eos_token")
        self._eos_id = self.tokenizer.token_to_id(self._eos) if self._eos else None
        self._ends_turns = chat.end_of_turn is not None

    def encode(self, texts: Sequence[str]) -> list[Encoding]:
        encodings: list[Encoding] = self.tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return encodings

    def masked(self, text: str, turns: Sequence[Turn], encoding: Encoding) -> MaskedTokens:
        """Token ids of an encoded text, with the tokens of its supervised turns as labels.

        Raises ExampleError: the mask is ambiguous.
        """
        ids = np.array(encoding.ids, dtype=np.int32)
        starts, ends = _offsets(encoding)
        torn = [turn.start for turn in turns if bool(((starts < turn.start) & (ends > turn.start)).any())]
        if torn and self._joins:
            ids, starts, ends = self._in_pieces(text, torn)
        mask = np.zeros(len(ids), dtype=np.bool_)
        for turn in turns:
            inside = (starts >= turn.start) & (starts < turn.end)
            if turn.start in torn and not self._joins:
                inside |= self._torn(text, turn, ids, starts, ends)
            labels = np.flatnonzero(inside)
            if self._ends_turns and (len(labels) == 0 or ids[labels[-1]] not in self._special_ids):
                raise ExampleError("end_of_turn_not_trained", f"answer at message {turn.message}")
            mask |= inside
        return MaskedTokens(ids, mask, ends)

    def as_document(self, text: str, tokens: MaskedTokens) -> tuple[str, MaskedTokens]:
        """Plain text as a document: with the tokenizer's prefix and one eos token; all of it is supervised."""
        begun = tokens.ids[: len(self._prefix_ids)].tolist() == self._prefix_ids
        before = [] if begun else self._prefix_ids
        after = [] if self._eos_id is None or tokens.ids[-1:].tolist() == [self._eos_id] else [self._eos_id]
        ids = np.concatenate([np.array(before, np.int32), tokens.ids, np.array(after, np.int32)])
        mask = np.ones(len(ids), dtype=np.bool_)
        mask[: len(self._prefix_ids)] = False
        ends = np.pad(tokens.ends, (len(before), len(after)), constant_values=(0, len(text) + len(self._eos or "")))
        return text + (self._eos or "" if after else ""), MaskedTokens(ids, mask, ends)

    def _read_prefix(self) -> list[int]:
        bare = self.tokenizer.encode("a", add_special_tokens=False).ids
        prefixed = self.tokenizer.encode("a", add_special_tokens=True).ids
        at = next((i for i in range(len(prefixed)) if prefixed[i : i + len(bare)] == bare), 0)
        return list(prefixed[:at])

    def _can_join(self) -> bool:
        """Whether pieces can be encoded on their own; not if the tokenizer puts a space in front of each."""
        x_ids, y_ids = (self.tokenizer.encode(text, add_special_tokens=False).ids for text in "xy")
        return bool(self.tokenizer.decode(x_ids + y_ids, skip_special_tokens=False) == "xy")

    def _torn(
        self, text: str, turn: Turn, ids: npt.NDArray[np.int32], starts: IntArray, ends: IntArray
    ) -> npt.NDArray[np.bool_]:
        """The tokens across the beginning of an answer that are labels.

        A special token that includes the white space after it is not a label. A word that includes the space at the
        end of the prompt is. Any other token is ambiguous.
        """
        across = (starts < turn.start) & (ends > turn.start) & ~np.isin(ids, self._special_ids)
        if across.any() and text[int(starts[across].min()) : turn.start].strip():
            why = "one token contains both the end of the prompt and the start of the answer"
            raise ExampleError("mask_unresolved", f"{why}, at character {turn.start}")
        return across

    def _in_pieces(self, text: str, cuts: Sequence[int]) -> tuple[npt.NDArray[np.int32], IntArray, IntArray]:
        """Ids and offsets with a token boundary at each cut, where the prompt ends at inference."""
        bounds = [0, *cuts, len(text)]
        encodings = self.encode([text[a:b] for a, b in pairwise(bounds)])
        ids = np.array([i for encoding in encodings for i in encoding.ids], dtype=np.int32)
        offsets = [_offsets(encoding) + bound for encoding, bound in zip(encodings, bounds, strict=False)]
        starts, ends = np.concatenate(offsets, axis=1)
        return ids, starts, ends


def _offsets(encoding: Encoding) -> IntArray:
    """[2, num_tokens], the characters where each token starts and ends."""
    return np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2).T
