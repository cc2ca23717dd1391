"""The last word of a rank, `end-RRRR.json`: what it exits with and why. A rank that leaves none was killed."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from launcher.runs import jsonl


@dataclass(frozen=True, slots=True, kw_only=True)
class RankEnd:
    """How one rank of an attempt ended, in its own words."""

    rank: int
    host: str
    exit_code: int
    error: str = ""
    """Class of the exception; empty after an orderly end."""
    message: str = ""
    time: str = ""
    """UTC, ISO 8601; the earliest bad end is most often the cause of the others."""


def write_rank_end(path: Path, end: RankEnd) -> None:
    """Writes it whole: a reader sees all of it or no file. Ranks: any, each its own.

    Raises: OSError; the caller is leaving and may go on without.
    """
    draft = path.with_name(f".{path.name}.draft")
    draft.write_bytes(jsonl.encode(asdict(end)) + b"\n")
    draft.replace(path)


def read_rank_end(path: Path) -> RankEnd | None:
    """None where there is no file, or none that can be read."""
    try:
        found = json.loads(path.read_text("utf-8"))
        known = {item.name for item in fields(RankEnd)}
        return RankEnd(**{key: value for key, value in found.items() if key in known})
    except (OSError, ValueError, TypeError, AttributeError):
        return None
