"""Number types of the schema, with the values each allows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True, slots=True)
class Limits:
    """A range of numbers; the ends belong to it unless `above` or `below` is set."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False

    def complaint(self, value: float) -> str:
        """Why the value is out of range; empty if it is not."""
        if value < self.low or (self.above and value == self.low):
            return f"must be {'more than' if self.above else 'at least'} {self.low:g}"
        if value > self.high or (self.below and value == self.high):
            return f"must be {'less than' if self.below else 'at most'} {self.high:g}"
        return ""


PositiveInt = Annotated[int, Limits(1)]
NonNegativeInt = Annotated[int, Limits(0)]
PositiveFloat = Annotated[float, Limits(0, above=True)]
NonNegativeFloat = Annotated[float, Limits(0)]
Ratio = Annotated[float, Limits(0, 1)]
RatioBelowOne = Annotated[float, Limits(0, 1, below=True)]
Seed = Annotated[int, Limits(0, 2**32 - 1)]
