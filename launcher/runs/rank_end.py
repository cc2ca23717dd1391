"""How a rank ended, `end-RRRR.json`: its exit code and its error. A rank without such a file was killed."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from launcher.errors import LauncherError, causes, public_name
from launcher.files import write_json
from launcher.runs import jsonl


@dataclass(frozen=True, slots=True, kw_only=True)
class RankEnd:
    """The end of one rank of an attempt, as it saw it."""

    rank: int
    host: str
    exit_code: int
    error: str = ""
    """Class of the exception as users know it; empty after an orderly end."""
    message: str = ""
    """For people: no decision hangs on it."""
    time: str = ""
    """UTC, ISO 8601; the earliest bad end is most often the cause of the others."""
    kind: str = ""
    """Exact class of the exception, or of the one that rank 0 raised; empty in records of older versions."""
    data: dict[str, object] = field(default_factory=dict)
    """Fields of the exception."""


def end_of(rank: int, *, host: str, exit_code: int, error: BaseException | None, message: str) -> RankEnd:
    """The record of a rank that ends now with `error`, or without one."""
    end = RankEnd(rank=rank, host=host, exit_code=int(exit_code), message=message, time=jsonl.utc_now())
    if error is None:
        return end
    kind = error.kind if isinstance(error, LauncherError) else type(error).__name__
    return replace(end, error=public_name(error), kind=kind, data=fields_of(error))


def fields_of(error: BaseException) -> dict[str, object]:
    """The fields of an error of ours, and errno and path of the OSError that it is or was raised from."""
    data = dict(error.data) if isinstance(error, LauncherError) else {}
    failed = next((cause for cause in causes(error) if isinstance(cause, OSError) and cause.errno is not None), None)
    if failed is not None and data.get("errno") is None:
        data |= {"errno": failed.errno, "path": str(failed.filename or "")}
    return data


def write_rank_end(path: Path, end: RankEnd) -> None:
    """Writes it whole: a reader sees all of it or no file. Ranks: any, each its own.

    Raises: OSError; the caller is leaving and may go on without.
    """
    write_json(path, end, indent=None, durable=False)
