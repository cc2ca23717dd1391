"""What `launcher doctor` found: one line each, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import Enum

from launcher.errors import Problem


class Level(Enum):
    ok = "OK"
    warn = "WARN"
    fail = "FAIL"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    check: str
    level: Level
    text: str
    todo: str = ""

    def as_dict(self) -> dict[str, str]:
        return {**asdict(self), "level": self.level.value}


def ok(check: str, text: str) -> Finding:
    return Finding(check, Level.ok, text)


def warn(check: str, text: str, todo: str = "") -> Finding:
    return Finding(check, Level.warn, text, todo)


def fail(check: str, text: str, todo: str = "") -> Finding:
    return Finding(check, Level.fail, text, todo)


def of_problem(check: str, problem: Problem) -> Finding:
    """A problem of the settings."""
    return fail(check, f"{problem.key} = {problem.value!r}: {problem.why}", problem.todo)


def has_failed(findings: Iterable[Finding]) -> bool:
    return any(finding.level is Level.fail for finding in findings)
