"""Sizes of data for tests that plan a run."""

from __future__ import annotations

from launcher.plan.plan import DataFacts


def facts_of(num_packs: int, *, pack_tokens: float, longest: int) -> DataFacts:
    """Facts of a dataset with the given number of packs, their mean length and the longest one."""
    return DataFacts(
        examples=num_packs,
        validation_examples=0,
        tokens=round(num_packs * pack_tokens),
        supervised_tokens=num_packs,
        num_packs=num_packs,
        max_pack_tokens=longest,
        max_pack_supervised=1,
    )
