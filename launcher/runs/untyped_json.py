"""Reads JSON files of other rooms for display: what is missing, cut short or of another kind is empty, no error."""

from __future__ import annotations

import json
import math
from pathlib import Path


class Loose:
    """A value of a JSON file, which may turn out to be missing or of another kind at every step."""

    def __init__(self, value: object) -> None:
        self.value = value

    def at(self, *keys: str) -> Loose:
        """The value under these keys."""
        value = self.value
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return Loose(value)

    @property
    def exists(self) -> bool:
        return self.value is not None

    @property
    def text(self) -> str:
        """Itself as text; empty for what is missing or holds other values."""
        return "" if self.value is None or isinstance(self.value, dict | list) else str(self.value)

    @property
    def number(self) -> float | None:
        """A finite number."""
        if isinstance(self.value, bool) or not isinstance(self.value, int | float):
            return None
        return float(self.value) if math.isfinite(self.value) else None

    @property
    def whole(self) -> int | None:
        number = self.number
        return None if number is None else int(number)

    @property
    def flag(self) -> bool | None:
        return self.value if isinstance(self.value, bool) else None

    @property
    def items(self) -> list[Loose]:
        return [Loose(item) for item in self.value] if isinstance(self.value, list) else []

    @property
    def entries(self) -> dict[str, Loose]:
        return {str(key): Loose(item) for key, item in self.value.items()} if isinstance(self.value, dict) else {}

    @property
    def interval(self) -> tuple[float, float] | None:
        """Two finite numbers."""
        bounds = [item.number for item in self.items]
        if len(bounds) != 2 or bounds[0] is None or bounds[1] is None:
            return None
        return bounds[0], bounds[1]


def read_loose(path: Path) -> Loose:
    """The file's value; a missing or damaged file is a missing value."""
    try:
        return Loose(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, RecursionError):
        return Loose(None)
