"""Greedy answers of a model, in batches: to chat prompts in the run's format, or as continuation of plain text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from peft import PeftModel
from tokenizers import Tokenizer
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, GenerationConfig

from launcher.data.template import ChatFormat
from launcher.errors import ModelError
from launcher.evaluate.questions import Prompt, render
from launcher.evaluate.scores import LabelLoss
from launcher.export.hf_weights import quiet_transformers

T = TypeVar("T")
Progress = Callable[[int, int], None]
"""Called with how much is done, and of how much."""

BATCH_SEQUENCES = 64
ANSWER_BATCH_TOKENS = 16_384
# Losses need logits at every position, a hundred thousand numbers for each token.
LOSS_BATCH_TOKENS = 4_096


@dataclass(frozen=True, slots=True)
class Tokens:
    """One tokenized example: ids int[len], and which of them are labels (bool[len])."""

    ids: list[int]
    is_label: list[bool] = field(default_factory=list)


def pick_dtype(device: str) -> torch.dtype:
    """bf16 if the device multiplies it natively, otherwise fp32.

    On a CPU with AMX, 100 short answers of a 135M model took 3.2 s in bf16 and 9.8 s in fp32.
    """
    if device != "cpu":
        return torch.bfloat16
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text() if cpuinfo.exists() else ""
    return torch.bfloat16 if "amx_bf16" in flags or "avx512_bf16" in flags else torch.float32


class Answerer:
    """A loaded model. One process, one device."""

    def __init__(
        self,
        folder: Path,
        *,
        chat_format: ChatFormat | None = None,
        adapter: Path | None = None,
        device: str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """
        Args:
            folder: Hugging Face folder with all weights.
            chat_format: how prompts are written; None: the format in `folder`.
            adapter: folder of a peft adapter for the model in `folder`.
            device: cpu or cuda; None: cuda if a GPU is visible. dtype: None: see `pick_dtype`.
        Raises: ModelError when the model in the folder cannot be loaded.
        """
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.format = chat_format or ChatFormat.from_folder(folder)
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        try:
            with quiet_transformers():
                model = AutoModelForCausalLM.from_pretrained(
                    folder,
                    dtype=dtype or pick_dtype(self.device),
                    # auto spreads a model that is larger than one GPU over all that are visible.
                    device_map="auto" if self.device == "cuda" else self.device,
                    local_files_only=True,
                )
                if adapter is not None:
                    model = PeftModel.from_pretrained(model, adapter)
        except (OSError, ValueError) as error:
            raise ModelError(f"{adapter or folder} cannot be loaded as a model: {error}") from error
        self._model = model.eval()
        self._stop_ids = sorted(self._stop_tokens())
        self.max_tokens = int(getattr(model.config, "max_position_embeddings", 0) or 1 << 20)

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of the rendered prompt, ending where the answer begins."""
        if prompt.text is not None:
            return self._encode_text(prompt.text)
        ids: list[int] = self._tokenizer.encode(render(self.format, prompt), add_special_tokens=False).ids
        return ids

    def _encode_text(self, text: str) -> list[int]:
        """A text with the tokens that begin a document in training (data/chat_tokenizer.py), not those that end it."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        wrapped: list[int] = self._tokenizer.encode(text, add_special_tokens=True).ids
        before = wrapped[: next((i for i in range(len(wrapped)) if wrapped[i : i + len(ids)] == ids), 0)]
        return ids if ids[: len(before)] == before else before + ids

    def count(self, text: str) -> int:
        """Tokens in a text."""
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def answer(
        self, prompts: Sequence[Prompt], *, max_new_tokens: int = 256, progress: Progress | None = None
    ) -> list[str]:
        """The greedy answer to each prompt, in order; it ends before the end-of-turn token or after `max_new_tokens`.

        Raises: ModelError when a prompt and its answer would not fit into the model's positions.
        """
        encoded = [self.encode(prompt) for prompt in prompts]
        longest = max((len(ids) for ids in encoded), default=0)
        if longest + max_new_tokens > self.max_tokens:
            raise ModelError(
                f"A prompt of {longest} tokens and {max_new_tokens} new tokens exceed the {self.max_tokens} tokens of "
                "this model; shorten the prompt or lower --max-new-tokens."
            )

        def generate(batch: list[int]) -> list[str]:
            return self._generate([encoded[i] for i in batch], max_new_tokens)

        return _by_batch([len(ids) + max_new_tokens for ids in encoded], ANSWER_BATCH_TOKENS, generate, progress)

    @torch.inference_mode()
    def losses(self, examples: Sequence[Tokens], *, progress: Progress | None = None) -> list[LabelLoss]:
        """The loss of each example, in order."""

        def losses(batch: list[int]) -> list[LabelLoss]:
            return self._losses([examples[i] for i in batch])

        return _by_batch([len(example.ids) for example in examples], LOSS_BATCH_TOKENS, losses, progress)

    @torch.inference_mode()
    def _generate(self, encoded: list[list[int]], max_new_tokens: int) -> list[str]:
        width = max(len(ids) for ids in encoded)
        pad = self._stop_ids[0] if self._stop_ids else 0
        input_ids = torch.tensor([[pad] * (width - len(ids)) + ids for ids in encoded])
        attention = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in encoded])
        # Our own configuration: many models ship one that samples.
        greedy = GenerationConfig(
            max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=self._stop_ids or None, pad_token_id=pad
        )
        output = self._model.generate(
            input_ids=input_ids.to(self.device), attention_mask=attention.to(self.device), generation_config=greedy
        )
        return [self._decode(row[width:]) for row in output.tolist()]

    def _decode(self, ids: list[int]) -> str:
        end = next((index for index, token in enumerate(ids) if token in self._stop_ids), len(ids))
        text: str = self._tokenizer.decode(ids[:end], skip_special_tokens=True)
        return text

    def _losses(self, batch: list[Tokens]) -> list[LabelLoss]:
        """Right-padded, so causal attention needs no mask."""
        width = max(len(example.ids) for example in batch)
        input_ids = torch.tensor([example.ids + [0] * (width - len(example.ids)) for example in batch])
        is_label = torch.tensor([example.is_label + [False] * (width - len(example.ids)) for example in batch])
        # The token at position i is predicted at i - 1; nothing predicts the first token of an example.
        wanted = is_label[:, 1:].to(self.device)
        if not bool(wanted.any()):
            return [LabelLoss(0.0, 0)] * len(batch)
        targets = input_ids[:, 1:].to(self.device)[wanted]
        logits = self._model(input_ids=input_ids.to(self.device)).logits[:, :-1][wanted]
        losses = cross_entropy(logits.float(), targets, reduction="none")
        rows = wanted.nonzero()[:, 0]
        totals = torch.zeros(len(batch), dtype=torch.float64, device=losses.device).index_add_(0, rows, losses.double())
        return [LabelLoss(*found) for found in zip(totals.tolist(), wanted.sum(dim=1).tolist(), strict=True)]

    def _stop_tokens(self) -> set[int]:
        configured = self._model.generation_config.eos_token_id
        stops = set(configured if isinstance(configured, list) else [configured]) - {None}
        # Training ends an answer with the end of a turn, and plain text with the end of a document.
        ends = (self.format.end_of_turn, self.format.special_tokens.get("eos_token"))
        found = [self._tokenizer.token_to_id(end) for end in ends if end]
        return stops | {token for token in found if token is not None}


def _by_batch(
    lengths: list[int], most_tokens: int, compute: Callable[[list[int]], list[T]], progress: Progress | None
) -> list[T]:
    """What `compute` returns for each index, calling it with batches of similar length."""
    found: dict[int, T] = {}
    for batch in batches_by_length(lengths, most_tokens):
        found.update(zip(batch, compute(batch), strict=True))
        if progress is not None:
            progress(len(found), len(lengths))
    return [found[index] for index in range(len(lengths))]


def batches_by_length(lengths: Sequence[int], most_tokens: int) -> Iterator[list[int]]:
    """Indices in batches of similar length, longest first, so that memory peaks in the first batch.

    A batch, padded to its longest, has at most `most_tokens` tokens, or one row.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batch and (len(batch) == BATCH_SEQUENCES or (len(batch) + 1) * lengths[batch[0]] > most_tokens):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
