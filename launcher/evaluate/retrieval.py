"""The nearest training examples to a question, by TF-IDF over character n-grams. No model, plain numpy."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from launcher.evaluate.scores import normalize_exact

NGRAM_CHARS = (2, 3, 4)


class NearestTexts:
    """An inverted index over texts, searched by cosine similarity."""

    def __init__(self, texts: Sequence[str]) -> None:
        counts = [_ngrams(text) for text in texts]
        documents = Counter(gram for count in counts for gram in count)
        self._weight = {gram: math.log((1 + len(texts)) / (1 + seen)) + 1 for gram, seen in documents.items()}
        postings: dict[str, list[tuple[int, float]]] = {}
        for index, count in enumerate(counts):
            for gram, weight in self._unit_vector(count).items():
                postings.setdefault(gram, []).append((index, weight))
        self._postings = {
            gram: (np.array([i for i, _ in found], np.int64), np.array([w for _, w in found], np.float64))
            for gram, found in postings.items()
        }
        self._size = len(texts)

    def search(self, query: str, k: int) -> list[int]:
        """Indices of the `k` most similar texts, best first; ties in input order."""
        scores = np.zeros(self._size)
        for gram, weight in self._unit_vector(_ngrams(query)).items():
            if gram in self._postings:
                indices, weights = self._postings[gram]
                scores[indices] += weight * weights
        return [int(index) for index in np.argsort(-scores, kind="stable")[:k]]

    def _unit_vector(self, count: Counter[str]) -> dict[str, float]:
        vector = {gram: (1 + math.log(n)) * self._weight[gram] for gram, n in count.items() if gram in self._weight}
        norm = math.sqrt(sum(value * value for value in vector.values())) or 1.0
        return {gram: value / norm for gram, value in vector.items()}


def _ngrams(text: str) -> Counter[str]:
    padded = f" {normalize_exact(text).lower()} "
    return Counter(padded[start : start + n] for n in NGRAM_CHARS for start in range(len(padded) - n + 1))
