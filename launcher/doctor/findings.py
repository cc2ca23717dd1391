"""What `launcher doctor` found: one line each, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import Enum

from launcher.errors import Problem


class CheckLevel(Enum):
    ok = "OK"
    warn = "WARN"
    fail = "FAIL"


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One thing that was looked at."""

    check: str
    level: CheckLevel
    text: str
    todo: str = ""

    def as_dict(self) -> dict[str, str]:
        return {**asdict(self), "level": self.level.value}


def ok(check: str, text: str) -> CheckResult:
    return CheckResult(check, CheckLevel.ok, text)


def warn(check: str, text: str, todo: str = "") -> CheckResult:
    return CheckResult(check, CheckLevel.warn, text, todo)


def fail(check: str, text: str, todo: str = "") -> CheckResult:
    return CheckResult(check, CheckLevel.fail, text, todo)


def of_problem(check: str, problem: Problem) -> CheckResult:
    """A problem of the settings."""
    return fail(check, f"{problem.key} = {problem.value!r}: {problem.why}", problem.todo)


def has_failed(findings: Iterable[CheckResult]) -> bool:
    return any(finding.level is CheckLevel.fail for finding in findings)
